"""Ops on fake tensors, each run once for arguments of the same sizes: layers repeat, and so do their ops.

FakeTensorMode has a cache too, but a hit in it takes as long as running the op does for small tensors. Here a hit is a
look-up of sizes and the making of the outputs, several times faster; and what the op took is kept beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from actune.ac.ops import Op
from actune.measure.simulated.fake_ops import run_op

OpTime = Callable[[Op, tuple[Any, ...], dict[str, Any], Any], float]

_CPU = torch.device("cpu")
_PLAIN = frozenset(
    {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
)


class Ran(NamedTuple):
    """A call of an op.

    Attributes:
        output: what it returned.
        made: those of the tensors in it that may lie in storages of their own.
        time_s: what it takes on the device.
    """

    output: Any
    made: list[Tensor]
    time_s: float


class _Part(NamedTuple):
    """One item of an output.

    Attributes:
        literal: the item itself, where it is no tensor.
        argument: the number, among the tensors that the op is given, of the one that is returned or viewed; -1 for a
            new tensor.
        is_view: the item is a new tensor in the argument's storage.
        size, stride, dtype, offset: of a new tensor.
    """

    literal: Any = None
    argument: int | None = None
    is_view: bool = False
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    offset: int = 0


class _Recipe(NamedTuple):
    """How to make an output again: its parts, and the list or tuple they come in, None for a single one."""

    parts: tuple[_Part, ...]
    container: type | None
    time_s: float


class OpCache:
    """Runs ops, at the first time through the FakeTensorMode."""

    def __init__(self, fake_mode: FakeTensorMode, op_time_s: OpTime) -> None:
        self._fake_mode = fake_mode
        self._op_time_s = op_time_s
        self._recipes: dict[tuple[Any, ...], _Recipe | None] = {}

    def run(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ran:
        """The op's output, without a view of its values: there are none."""
        description: list[Any] = [op]
        tensors: list[FakeTensor] = []
        if not _describe((args, kwargs), description, tensors) or not isinstance(op, OpOverload):
            return self._run(op, args, kwargs)
        key = tuple(description)
        recipe = self._recipes.get(key)
        if recipe is not None:
            return self._repeat(recipe, tensors)
        ran = self._run(op, args, kwargs)
        if key not in self._recipes:
            after: list[Any] = [op]
            changes_sizes = not _describe((args, kwargs), after, []) or after != description
            self._recipes[key] = None if changes_sizes else _recipe_of(ran, tensors)
        return ran

    def _run(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ran:
        output = run_op(op, args, kwargs)
        items = output if isinstance(output, tuple | list) else (output,)
        made = [item for item in items if isinstance(item, Tensor)]
        return Ran(output, made, self._op_time_s(op, args, kwargs, output))

    def _repeat(self, recipe: _Recipe, tensors: list[FakeTensor]) -> Ran:
        items: list[Any] = []
        made: list[Tensor] = []
        for part in recipe.parts:
            if part.argument is None:
                items.append(part.literal)
            elif part.argument >= 0 and not part.is_view:
                items.append(tensors[part.argument])
            else:
                items.append(self._tensor(part, tensors))
                if not part.is_view:
                    made.append(items[-1])
        output = items[0] if recipe.container is None else recipe.container(items)
        return Ran(output, made, recipe.time_s)

    def _tensor(self, part: _Part, tensors: list[FakeTensor]) -> FakeTensor:
        with torch._C._DisableTorchDispatch():
            inner = torch.empty_strided(part.size, part.stride, dtype=part.dtype, device="meta")
            if part.is_view:
                assert part.argument is not None
                inner.set_(tensors[part.argument].untyped_storage(), part.offset, part.size, part.stride)
        return FakeTensor(self._fake_mode, inner, _CPU)


def _describe(value: Any, description: list[Any], tensors: list[FakeTensor]) -> bool:
    """Adds to the description all that the sizes of an op's output may depend on; False if there is more to it."""
    kind = type(value)
    if kind is FakeTensor:
        if value.constant is not None or value.layout is not torch.strided or value.dtype.is_complex:
            return False
        tensors.append(value)
        description += (value.shape, value.stride(), value.dtype, value.storage_offset())
        return True
    if kind in _PLAIN:
        description += (kind, value)
        return True
    if kind is dict:
        description.append(tuple(value))
        return all(_describe(item, description, tensors) for item in value.values())
    if kind is tuple or kind is list:
        description.append(len(value))
        return all(_describe(item, description, tensors) for item in value)
    return False


def _recipe_of(ran: Ran, tensors: list[FakeTensor]) -> _Recipe | None:
    """The recipe, None if the output can't be made of sizes alone."""
    container = type(ran.output) if isinstance(ran.output, tuple | list) else None
    if container not in (None, tuple, list):
        return None
    items = (ran.output,) if container is None else ran.output
    storages = {tensor.untyped_storage()._cdata: number for number, tensor in reversed(list(enumerate(tensors)))}
    parts: list[_Part] = []
    for item in items:
        part = _part_of(item, tensors, storages)
        if part is None:
            return None
        parts.append(part)
        if part.argument == -1:
            storages[item.untyped_storage()._cdata] = -2  # a second item in it can't be made again
    return _Recipe(tuple(parts), container, ran.time_s)


def _part_of(item: Any, tensors: list[FakeTensor], storages: dict[int, int]) -> _Part | None:
    if not isinstance(item, Tensor):
        return _Part(literal=item) if type(item) in _PLAIN else None
    for number, tensor in enumerate(tensors):
        if item is tensor:
            return _Part(argument=number)
    if (
        type(item) is not FakeTensor
        or item.constant is not None
        or item.layout is not torch.strided
        or item.dtype.is_complex
        or item.requires_grad
        or item.fake_device != _CPU
    ):
        return None
    storage = item.untyped_storage()
    number = storages.get(storage._cdata, -1)
    size, stride, offset = tuple(item.shape), item.stride(), int(item.storage_offset())
    if number == -1:
        with torch._C._DisableTorchDispatch():
            alike = torch.empty_strided(size, stride, dtype=item.dtype, device="meta")
        if offset or alike.untyped_storage().nbytes() != storage.nbytes():
            return None
    elif number < 0:
        return None
    return _Part(argument=number, is_view=number >= 0, size=size, stride=stride, dtype=item.dtype, offset=offset)
