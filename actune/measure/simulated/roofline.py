"""How long an op takes on a simulated device: the roofline model (Williams et al. 2009, doi:10.1145/1498765.1498785).

An op takes the longer of its FLOPs over the device's rate and its bytes over the device's bandwidth, and a launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator

from actune.ac.ops import Op
from actune.device_spec import SimulatedDevice
from actune.measure.flops import op_flops

_aten = torch.ops.aten

# They launch nothing, though no schema says so. Views are known by their schema.
_WITHOUT_KERNEL = frozenset(
    {
        _aten._unsafe_view,
        _aten._reshape_alias,
        _aten.lift_fresh,
        _aten.empty,
        _aten.empty_like,
        _aten.empty_strided,
        _aten.new_empty,
        _aten.new_empty_strided,
        _aten.set_,
        _aten.resize_,
    }
)
# They read of their first tensor what they return, and not all of it.
_GATHERING = frozenset({_aten.embedding, _aten.index, _aten.index_select, _aten.gather, _aten.take})

_FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})


@dataclass(frozen=True, slots=True)
class _Traits:
    """What there is to know of an op whatever its arguments. `is_causal` is its argument's position and name."""

    has_kernel: bool
    gathers: bool
    written: tuple[tuple[int, str], ...]
    is_causal: tuple[int, str] | None


class Roofline:
    """Times of ops on one device."""

    def __init__(self, spec: SimulatedDevice) -> None:
        self._spec = spec
        self._bandwidth_bytes_per_s = spec.bandwidth_bytes_per_s * spec.bandwidth_efficiency
        self._traits: dict[Op, _Traits] = {}

    def op_time_s(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> float:
        """Seconds of a call that returned `output`; 0 for one that launches no kernel, such as a view."""
        traits = self._traits.get(op)
        if traits is None:
            traits = self._traits[op] = _traits_of(op)
        if not traits.has_kernel:
            return 0.0
        inputs = list(_tensors((args, kwargs)))
        outputs = list(_tensors(output))
        if not inputs and not outputs:
            return 0.0
        moved_bytes = self._moved_bytes(traits, inputs, outputs, args, kwargs)
        compute_s = self._compute_s(op, traits, inputs, args, kwargs, output)
        return max(compute_s, moved_bytes / self._bandwidth_bytes_per_s) + self._spec.launch_s

    def _moved_bytes(
        self,
        traits: _Traits,
        inputs: list[Tensor],
        outputs: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> int:
        written_bytes = sum(map(_bytes_of, outputs))
        if not outputs:  # what is written is among the arguments, as in fused optimizers
            written = [args[at] if at < len(args) else kwargs.get(name) for at, name in traits.written]
            written_bytes = sum(map(_bytes_of, _tensors(written)))
        read_bytes = sum(map(_bytes_of, inputs))
        if traits.gathers and inputs:
            read_bytes -= max(0, _bytes_of(inputs[0]) - written_bytes)
        return read_bytes + written_bytes

    def _compute_s(
        self,
        op: Op,
        traits: _Traits,
        inputs: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> float:
        flops = op_flops(op, args, kwargs, output)
        if not flops:
            return 0.0
        if traits.is_causal is not None:
            position, name = traits.is_causal
            if args[position] if position < len(args) else kwargs.get(name):
                flops //= 2  # kernels skip the half above the diagonal, which the formulas count
        return flops / self.flops_per_s(inputs[0].dtype)

    def flops_per_s(self, dtype: torch.dtype) -> float:
        """The rate that matmuls of that dtype reach."""
        rates = self._spec.flops_per_s
        if dtype in _FLOAT8:
            rate = rates.float8 or rates.bfloat16
        elif dtype == torch.bfloat16:
            rate = rates.bfloat16
        elif dtype == torch.float16:
            rate = rates.float16
        else:
            rate = rates.float32 if torch.get_float32_matmul_precision() == "highest" else rates.tf32
        return rate * self._spec.compute_efficiency


def _traits_of(op: Op) -> _Traits:
    if isinstance(op, HigherOrderOperator):
        return _Traits(has_kernel=True, gathers=False, written=(), is_causal=None)
    packet = op.overloadpacket
    arguments = list(enumerate(op._schema.arguments))
    causal = [(position, argument.name) for position, argument in arguments if argument.name == "is_causal"]
    return _Traits(
        has_kernel=op.namespace != "prim" and packet not in _WITHOUT_KERNEL and not op.is_view,
        gathers=packet in _GATHERING,
        written=tuple((at, a.name) for at, a in arguments if a.alias_info is not None and a.alias_info.is_write),
        is_causal=causal[0] if causal else None,
    )


def _bytes_of(tensor: Tensor) -> int:
    """What a kernel moves of it: along a dimension that is expanded it reads the same again."""
    size_bytes = tensor.itemsize
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride != 0 or size == 0:
            size_bytes *= size
    return size_bytes


def _tensors(value: Any) -> Iterator[Tensor]:
    """As torch's tree_iter, for what ops take and return alone, and several times as fast."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
