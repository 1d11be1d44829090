"""Finds a model's repeated layers, sorts them into classes of the same structure, and names their large parts."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence

from torch import nn

from actune.errors import TargetError
from actune.profiler.signature import LayerSignature, layer_signature, structure_lines
from actune.profiler.stacks import find_layers, is_block, like_blocks
from actune.records import LayerClass, ModelStructure


def discover(model: nn.Module, layer_fqns: Sequence[str] | None = None) -> ModelStructure:
    """The model's layers and their classes.

    Args:
        model: before a plan, compile or FSDP is applied to it; may be on the meta device.
        layer_fqns: the layers, where the target names them; None to find them (see `actune.profiler.stacks`).

    Returns:
        layers in the model's order. Layers of one class have submodules of the same names and types, and parameters
        and buffers of the same names, shapes and dtypes.

    Raises:
        TargetError: no layers are found; or those named do not exist, lie inside one another, or can't be called.
    """
    named = dict(model.named_modules())
    layers = find_layers(model) if layer_fqns is None else _named_layers(model, named, layer_fqns)
    if not layers:
        raise TargetError(
            f"no repeated layers are found in {type(model).__name__}. Looked for a ModuleList, ModuleDict or "
            "Sequential whose elements are alike and have two or more weight matrices each. If the model has its "
            'layers elsewhere, name them in the target: layers = ["encoder.block1", "encoder.block2"].'
            f"{_outline(model)}"
        )
    return ModelStructure(tuple(layers), _classes({fqn: named[fqn] for fqn in layers}))


def structure_fingerprint(model: nn.Module) -> str:
    """16 hex digits: equal for models of the same structure, whatever the values of their weights.

    That is: modules of the same FQNs and type names, parameters and buffers of the same FQNs, shapes and dtypes.
    """
    return hashlib.sha256("\n".join(structure_lines(model)).encode()).hexdigest()[:16]


def _classes(layers: dict[str, nn.Module]) -> tuple[LayerClass, ...]:
    fqns_of: dict[LayerSignature, list[str]] = {}
    for fqn, layer in layers.items():
        fqns_of.setdefault(layer_signature(layer), []).append(fqn)
    classes = []
    seen: dict[str, int] = {}
    for fqns in fqns_of.values():
        layer = layers[fqns[0]]
        type_name = type(layer).__name__
        seen[type_name] = seen.get(type_name, 0) + 1
        submodules = [(fqn, module) for fqn, module in layer.named_modules() if fqn]
        classes.append(
            LayerClass(
                name=type_name if seen[type_name] == 1 else f"{type_name}#{seen[type_name]}",
                layer_fqns=tuple(fqns),
                parts=_parts(layer),
                module_fqns=tuple(fqn for fqn, _ in submodules),
                linear_fqns=tuple(fqn for fqn, module in submodules if isinstance(module, nn.Linear)),
            )
        )
    return tuple(classes)


def _parts(layer: nn.Module) -> tuple[str, ...]:
    """The children worth a region of their own: attention, feed-forward, mixture.

    A norm has no weight matrix, and a lone Linear has one: wrapping that apart would recompute it and free nothing
    that its neighbours do not keep. One part is no split, so then there are none.
    """
    parts = _blocks_below(layer, "")
    return tuple(parts) if len(parts) > 1 else ()


def _blocks_below(module: nn.Module, prefix: str) -> list[str]:
    parts = []
    for name, child in module.named_children():
        fqn = prefix + name
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            # T5 keeps attention and feed-forward in a list; a list of like blocks is experts, one part at the most.
            if not like_blocks(child):
                parts += _blocks_below(child, f"{fqn}.")
        elif is_block(child):
            parts.append(fqn)
    return parts


def _named_layers(model: nn.Module, named: dict[str, nn.Module], layer_fqns: Sequence[str]) -> list[str]:
    hint = "Correct `layers` in the target, or remove it to have the layers discovered."
    for fqn in layer_fqns:
        if fqn not in named or not fqn:
            near = difflib.get_close_matches(fqn, [name for name in named if name], n=3)
            like = f" Did you mean {' or '.join(near)}?" if near else _outline(model)
            raise TargetError(f"layers: {type(model).__name__} has no module '{fqn}'.{like} {hint}")
        if isinstance(named[fqn], nn.ModuleList | nn.ModuleDict):
            elements = ", ".join(f"{fqn}.{name}" for name, _ in list(named[fqn].named_children())[:3])
            raise TargetError(
                f"layers: '{fqn}' is a {type(named[fqn]).__name__}, which is never called itself. Name its elements: "
                f"{elements}, …"
            )
        for other in layer_fqns:
            if fqn.startswith(f"{other}."):
                raise TargetError(f"layers: '{fqn}' lies inside '{other}'. A module can be in one layer only. {hint}")
    if len(set(layer_fqns)) != len(layer_fqns):
        twice = next(fqn for fqn in layer_fqns if list(layer_fqns).count(fqn) > 1)
        raise TargetError(f"layers: '{twice}' stands twice. {hint}")
    chosen = set(layer_fqns)
    return [fqn for fqn in named if fqn in chosen]


def _outline(model: nn.Module) -> str:
    names = [f"{name} ({type(child).__name__})" for name, child in model.named_children()]
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f" The model's children: {shown}." if names else " The model has no submodules."
