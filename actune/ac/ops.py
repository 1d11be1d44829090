"""Ops by name: the save list of SAC, its named extra sets, and what an op does to its arguments.

The default save list is torchtitan 0.3.0's (`torchtitan/distributed/activation_checkpoint.py`; PRs #1672, #2357,
#2445, #3146), which builds on `torch._functorch.partitioners.get_default_op_list().compute_intensive_ops`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._functorch.partitioners import get_default_op_list
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from actune.errors import PlanError

Op = OpOverload | HigherOrderOperator

# Named by namespace.packet.overload; ops that this build of torch does not have are left out of the sets.
_TORCHTITAN_ADDS = (
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_attention_math.default",
    "aten._scaled_dot_product_fused_attention_overrideable.default",
    "aten.max.default",
    "aten.linear.default",
    "aten.topk.default",
    "torch_attn._varlen_attn.default",
    "_c10d_functional.reduce_scatter_tensor.default",
    "_c10d_functional.all_to_all_single.default",
    "deepep.dispatch.default",
    "deepep.combine.default",
    "hybridep.dispatch.default",
    "hybridep.combine.default",
)
COMPILED_CODE = "inductor_compiled_code"
"""The one op that compiled code is for SAC under `torch._inductor.config.wrap_inductor_compiled_regions`."""

_TORCHTITAN_ADDS_HIGHER_ORDER = ("flex_attention", COMPILED_CODE)
_NAMED_SETS = {
    "grouped_mm": (
        "aten._grouped_mm.default",
        "aten._scaled_grouped_mm.default",
        "aten._scaled_grouped_mm_v2.default",
        "aten.baddbmm.default",
    ),
    "cpu_attention": ("aten._scaled_dot_product_flash_attention_for_cpu.default",),
}
SAVE_SETS = ("default", *_NAMED_SETS)

COUNTED_MATMULS: frozenset[Op] = frozenset({torch.ops.aten.mm.default, torch.ops.aten.linear.default})
"""The matmuls that torchtitan's every-second rule counts; Linears with a bias (`addmm`) escape it."""

MATMULS: frozenset[Op] = COUNTED_MATMULS | {
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_mm.default,
}

CHOOSING_OPS: frozenset[Op] = frozenset(
    {torch.ops.aten.topk.default, torch.ops.aten.argmax.default, torch.ops.aten.max.dim}
)
"""By which routers choose experts."""


def op_name(op: Op) -> str:
    """How plans name an op: the bare name for aten and higher-order ops, else `namespace.name`."""
    if isinstance(op, HigherOrderOperator):
        return str(op.name())
    namespace, _, name = op._schema.name.partition("::")
    return name if namespace == "aten" else f"{namespace}.{name}"


@cache
def default_save_ops() -> frozenset[Op]:
    """The save list of torchtitan, as far as this build of torch has the ops."""
    packets: Iterable[Any] = get_default_op_list().compute_intensive_ops
    base = {packet.default for packet in packets}
    higher = {
        op for name in _TORCHTITAN_ADDS_HIGHER_ORDER if (op := getattr(torch._higher_order_ops, name, None)) is not None
    }
    return frozenset(base | higher | _existing(_TORCHTITAN_ADDS))


def _existing(qualified_names: Iterable[str]) -> set[Op]:
    ops: set[Op] = set()
    for qualified_name in qualified_names:
        found: Any = torch.ops
        try:
            for part in qualified_name.split("."):
                found = getattr(found, part)
        except AttributeError:
            continue
        ops.add(found)
    return ops


def op_from_qualified_name(qualified_name: str) -> Op:
    """The inverse of `str(op)`: from `aten.mm.default`, or `flex_attention` for a higher-order op."""
    if "." not in qualified_name:
        higher_order: Op = getattr(torch.ops.higher_order, qualified_name)
        return higher_order
    return _existing([qualified_name]).pop()


def resolve_save_ops(names: Iterable[str]) -> frozenset[Op]:
    """The ops that `save_ops` names.

    Args:
        names: of sets (`default`, `grouped_mm`, `cpu_attention`) or of ops (`topk`, `_c10d_functional.all_reduce`); the
            name of an op stands for all its overloads that return something new.

    Raises:
        PlanError: there is no such op in this build of torch.
    """
    ops: set[Op] = set()
    for name in names:
        if name == "default":
            ops |= default_save_ops()
        elif name in _NAMED_SETS:
            ops |= _existing(_NAMED_SETS[name])
        else:
            ops |= _named(name, key="save_ops")
    return frozenset(ops)


def check_op_exists(name: str) -> None:
    """Raises PlanError if this build of torch has no op of that name."""
    _named(name, key="save")


def _named(name: str, *, key: str) -> set[Op]:
    higher_order = getattr(torch.ops.higher_order, name, None) if "." not in name else None
    if isinstance(higher_order, HigherOrderOperator):
        return {higher_order}
    namespace, _, bare = name.rpartition(".")
    packet = getattr(getattr(torch.ops, namespace or "aten"), bare, None)
    if not isinstance(packet, OpOverloadPacket):
        known = {n.removeprefix("aten::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")}
        near = difflib.get_close_matches(name, {n.partition(".")[0] for n in known} | set(SAVE_SETS), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise PlanError(
            f"{key}: '{name}' is no op of torch {torch.__version__}.{hint} Name ops as in torch.ops.aten, others as "
            f"namespace.name; sets of ops are: {', '.join(SAVE_SETS)}."
        )
    overloads: set[Op] = {overload for o in packet.overloads() if not is_mutable(overload := getattr(packet, o))}
    if not overloads:
        raise PlanError(
            f"{key}: '{name}' only writes in place, and has no output of its own to keep. Name the op whose output it "
            "writes to: what writes to a kept output is kept with it."
        )
    return overloads


@cache
def written_arguments(op: Op) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that the op writes to; empty for ops that only return something new."""
    if isinstance(op, HigherOrderOperator):
        return ()
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def is_mutable(op: Op) -> bool:
    """Whether the op writes to one of its arguments."""
    return bool(written_arguments(op))


def draws_random_numbers(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call advances the random number generator.

    Attention kernels carry the tag whatever their dropout; with a dropout probability of 0 they draw nothing. Compiled
    code draws if an op of its graph does.
    """
    if isinstance(op, HigherOrderOperator) and op.name() == COMPILED_CODE:
        return _compiled_code_draws(args[0])
    if isinstance(op, HigherOrderOperator) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    for position, argument in enumerate(op._schema.arguments):
        if argument.name == "dropout_p":
            value = kwargs.get("dropout_p", args[position] if position < len(args) else argument.default_value)
            return value != 0.0
    return True


def _compiled_code_draws(compiled: Any) -> bool:
    """Whether a compiled graph draws random numbers. One whose graph is not at hand may: older torch keeps none."""
    graph_module: torch.fx.GraphModule | None = getattr(compiled, "original_gm", None)
    if graph_module is None:
        return True
    if compiled not in _graph_draws:
        _graph_draws[compiled] = any(
            draws_random_numbers(node.target, node.args, node.kwargs)
            for module in graph_module.modules()
            if isinstance(module, torch.fx.GraphModule)
            for node in module.graph.nodes
            if isinstance(node.target, OpOverload)
        )
    return _graph_draws[compiled]


_graph_draws: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
