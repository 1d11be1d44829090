"""Ops that devices run and FakeTensorMode refuses: what they return, by their sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actune.ac.ops import Op

_GROUPED_MM = torch.ops.aten._grouped_mm.default
_ROW_ALIGNMENT_BYTES = 16


def run_op(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The op's output on fake tensors, under a FakeTensorMode."""
    if op is _GROUPED_MM and args[0].dtype != torch.bfloat16:
        return _grouped_mm(*args, **kwargs)
    return op(*args, **kwargs)


def _grouped_mm(
    left: Tensor,
    right: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """As devices compute it in other dtypes than bfloat16, for which torch 2.13 has no meta kernel.

    Sizes and row strides follow `create_grouped_gemm_output_tensor` in `aten/src/ATen/native/GroupedMMUtils.h`.
    """
    dtype = out_dtype or left.dtype
    size = [left.shape[-2], right.shape[-1]]
    if left.dim() == right.dim() == 2:
        assert offs is not None
        size.insert(0, offs.shape[0])
    elif left.dim() == right.dim() == 3:
        size.insert(0, left.shape[0])
    aligned = _ROW_ALIGNMENT_BYTES // dtype.itemsize
    row = -(-size[-1] // aligned) * aligned
    stride = [row, 1] if len(size) == 2 else [size[-2] * row, row, 1]
    return torch.empty_strided(size, stride, dtype=dtype)
