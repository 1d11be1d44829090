"""The tensors that layers are given and return: which layer holds which of them, and when each is freed.

A layer's input is freed by whoever lets go of it last: by the layer itself, in its backward; by an earlier layer that
was given it too; by the layer that made it, if that one's backward needs it, as a ReLU's does; or, if no layer holds
it, by the model's own code in the forward. Which of these depends on the plan, so that the bytes belong to no slot.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from actune.step_profile import LayerCall, LayerTensor, TensorFreed


class GivenTensors:
    """The tensors among a call's arguments, each once, and the containers that it was found in.

    A checkpoint that keeps a keyword's tuple for its recomputation holds the tensors in it by holding the tuple.
    """

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.tensors: list[Tensor] = []
        self._containers: list[list[Any]] = []
        for tensor, containers in _tensors_in([*args, *kwargs.values()], ()):
            if not any(tensor is known for known in self.tensors):
                self.tensors.append(tensor)
                self._containers.append([*containers[1:]])  # the first is the list made here

    def references(self) -> list[int]:
        """How often Python, autograd, and other tensors of the same storage hold each, or a container of it."""
        return [
            sys.getrefcount(self.tensors[i])
            + self.tensors[i]._use_count()  # type: ignore[attr-defined]
            + torch._C._storage_Use_Count(self.tensors[i].untyped_storage()._cdata)
            + sum(sys.getrefcount(self._containers[i][j]) for j in range(len(self._containers[i])))
            for i in range(len(self.tensors))
        ]


class TensorWatch:
    """Watches the inputs and outputs of the layers' calls in one step.

    Attributes:
        freed: what was freed so far.
    """

    def __init__(self, slot_now: Callable[[], int]) -> None:
        """Args: slot_now: the position of the slot that runs."""
        self.freed: list[TensorFreed] = []
        self._calls: list[LayerCall] = []
        self._slot_now = slot_now
        self._numbers: dict[int, int] = {}
        self._seen = 0

    def after(self, call: int, given: GivenTensors, references_before: list[int], output: Any) -> None:
        """Notes what a call holds: what has more references than before it, those of its output not counted."""
        references = given.references()  # before a list of what was returned adds to them
        returned = [value for value in tree_iter(output) if _has_storage(value)]
        times_returned = Counter(map(id, returned))
        inputs = [
            self._tensor(tensor, is_held=now - before > times_returned[id(tensor)])
            for tensor, now, before in zip(given.tensors, references, references_before, strict=True)
        ]
        seen = {tensor.storage for tensor in inputs}
        outputs = {made.storage: made for made in map(self._tensor, returned) if made.storage not in seen}
        self._calls.append(LayerCall(call, tuple(inputs), tuple(outputs.values())))

    def calls(self, backward_slots: Mapping[int, int]) -> tuple[LayerCall, ...]:
        """What each call was given and returned, once the step has ended.

        Layers that are given an output have their backward before the one that made it, so that an output that lives
        until that one's backward is held by it.

        Args:
            backward_slots: the position of each call's backward.
        """
        ended = {(freed.storage, freed.slot) for freed in self.freed}
        return tuple(
            replace(
                call,
                outputs=tuple(
                    replace(made, is_held=(made.storage, backward_slots.get(call.call)) in ended)
                    for made in call.outputs
                ),
            )
            for call in self._calls
        )

    def _tensor(self, tensor: Tensor, is_held: bool = False) -> LayerTensor:
        return LayerTensor(self._number(tensor), tensor.untyped_storage().nbytes(), is_held)

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._numbers:
            self._numbers[key] = self._seen
            weakref.finalize(storage, self._on_free, key, self._seen)
            self._seen += 1
        return self._numbers[key]

    def _on_free(self, key: int, number: int) -> None:
        self._numbers.pop(key, None)  # the address may be another storage's from here on
        self.freed.append(TensorFreed(number, self._slot_now()))


def _has_storage(value: Any) -> TypeGuard[Tensor]:
    """Sparse tensors have several, which nothing tells."""
    return isinstance(value, Tensor) and value.layout == torch.strided


def _tensors_in(value: Any, containers: tuple[Any, ...]) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    if _has_storage(value):
        yield value, containers
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item, (*containers, value))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item, (*containers, value))
