"""Ops that a card runs otherwise than a CPU, though both have them by one name in Python.

PyTorch chooses by device in C++, above autograd, where it sees fake CPU tensors and takes a CPU's ops: attention in the
CPU's own kernel, or in many ops with a whole matrix of scores; RMSNorm and dropout in several ops that each keep
something for the backward. A card has one kernel for each, and plans name them (the default save list has the card's
attention, not the CPU's). So on a simulated card the choice is made here, by the rules that PyTorch follows on one
(`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`, `aten/src/ATen/native/layer_norm.cpp`, `Dropout.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_FLASH_HEAD_WIDTH = 256
_cpu_rms_norm, _cpu_dropout = torch.rms_norm, F.dropout


@contextmanager
def card_ops() -> Iterator[None]:
    """Within the block, attention, RMSNorm and dropout are dispatched as on a card.

    The functions are exchanged where models look them up. A mode for functions would not see calls from within other
    functions, and not those of a recomputation in the backward.
    """
    before = [(home, name, getattr(home, name)) for home, name, _ in _ON_CARD]
    for home, name, function in _ON_CARD:
        setattr(home, name, function)
    try:
        yield
    finally:
        for home, name, function in before:
            setattr(home, name, function)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """FlashAttention (Dao 2023, arXiv:2307.08691), else the memory-efficient kernel, else the scores as a matrix.

    cuDNN's kernel, which newer cards prefer, keeps the same and is not told apart.
    """
    widths = {query.shape[-1], key.shape[-1], value.shape[-1]}
    is_4d = query.dim() == key.dim() == value.dim() == 4
    output: Tensor
    if is_4d and attn_mask is None and query.dtype in _HALF and len(widths) == 1 and max(widths) <= _FLASH_HEAD_WIDTH:
        output = _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[
            0
        ]
        return output
    if is_4d and not enable_gqa and query.dtype != torch.float64:
        if attn_mask is not None:
            attn_mask = _additive(attn_mask, query).expand(*query.shape[:-1], key.shape[-2])
        needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        output = _aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needs_gradient, dropout_p, is_causal, scale=scale
        )[0]
        return output
    output = _aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return output


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    """A mask of booleans as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.tensor(float("-inf"), dtype=query.dtype))


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if weight is not None and weight.dtype != input.dtype:
        return _cpu_rms_norm(input, normalized_shape, weight, eps)
    output: Tensor = _FusedRMSNorm.apply(input, list(normalized_shape), weight, eps)  # type: ignore[no-untyped-call]
    return output


class _FusedRMSNorm(torch.autograd.Function):
    """The card's kernels, called below autograd, which for fake CPU tensors would take them apart."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
        output: Tensor
        with torch._C._AutoDispatchBelowAutograd():
            output, root_mean_square = _aten._fused_rms_norm(input, shape, weight, eps)
        ctx.save_for_backward(input, weight, root_mean_square)
        ctx.shape = shape
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, root_mean_square = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        with torch._C._AutoDispatchBelowAutograd():
            of_input, of_weight = _aten._fused_rms_norm_backward(
                gradient, input, ctx.shape, root_mean_square, weight, wanted
            )
        return of_input, None, of_weight, None


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or inplace or not 0 < p < 1 or not input.numel():
        return _cpu_dropout(input, p, training, inplace)
    output: Tensor = _aten.native_dropout(input, p, True)[0]
    return output


_ON_CARD: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (F, "scaled_dot_product_attention", _attention),
    (F, "rms_norm", _rms_norm),
    (torch, "rms_norm", _rms_norm),
    (F, "dropout", _dropout),
    (torch, "dropout", _dropout),
)
