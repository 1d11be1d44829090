"""Floating-point operations of an op call: PyTorch's formulas, and what they lack.

Formulas: `torch.utils.flop_counter`, which counts a multiply-add as two and causal attention as if it were full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils.flop_counter import flop_registry

from actune.ac.ops import Op

_aten = torch.ops.aten
# The CPU's attention takes the same leading arguments as the card's.
_SAME_FORMULA: dict[Any, Any] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}


# By the place of the query among the arguments, before key and value.
_ATTENTION: dict[Any, int] = {
    getattr(_aten, f"_scaled_dot_product_{kind}{suffix}"): query
    for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    for suffix, query in (("", 0), ("_backward", 1))
}


def op_flops(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int | None:
    """FLOPs of a call, None for an op without a formula."""
    packet: Any = op if isinstance(op, HigherOrderOperator) else op.overloadpacket
    if packet is _aten._grouped_mm:
        return _grouped_mm_flops(*args[:2])
    if packet in _ATTENTION:
        args = _with_all_heads(args, _ATTENTION[packet])
    formula: Callable[..., Any] | None = flop_registry.get(_SAME_FORMULA.get(packet, packet))
    return None if formula is None else int(formula(*args, **kwargs, out_val=output))


def _grouped_mm_flops(left: Tensor, right: Tensor) -> int:
    """Each row of `left` meets the matrix of one group; groups that are cut along the inner dimension add up to it."""
    groups = left.shape[0] if left.dim() == right.dim() == 3 else 1
    return 2 * groups * left.shape[-2] * left.shape[-1] * right.shape[-1]


def _with_all_heads(args: tuple[Any, ...], query: int) -> tuple[Any, ...]:
    """The arguments of an attention, key and value as shapes with as many heads as the query.

    Kernels of grouped-query attention share heads among queries and compute as much as if each had its own. PyTorch's
    formulas allow for fewer heads only since pytorch #177188, but take shapes in the place of tensors.
    """
    heads = args[query].shape[1]
    shapes = [torch.Size((shape[0], heads, *shape[2:])) for shape in (args[query + 1].shape, args[query + 2].shape)]
    return (*args[: query + 1], *shapes, *args[query + 3 :])
