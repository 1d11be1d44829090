"""The tensors that layers are given: which layer holds which of them after its forward, and when each is freed.

A layer's input is freed by whoever lets go of it last: by the layer itself, in its backward; by an earlier layer that
was given it too; or, if no layer holds it, by the model's own code in the forward. Which of these depends on the plan,
so that the bytes belong to no slot.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from actune.step_profile import InputFreed, LayerCall, LayerInput


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


class InputWatch:
    """Watches the inputs of the layers' calls in one step.

    Attributes:
        calls: what each call was given.
        freed: what was freed so far.
    """

    def __init__(self, slot_now: Callable[[], int]) -> None:
        """Args: slot_now: the position of the slot that runs."""
        self.calls: list[LayerCall] = []
        self.freed: list[InputFreed] = []
        self._slot_now = slot_now
        self._numbers: dict[int, int] = {}
        self._seen = 0

    def after(self, call: int, given: GivenTensors, references_before: list[int], output: Any) -> None:
        """Notes what a call holds: what has more references than before it, those of its output not counted."""
        returned = Counter(id(value) for value in tree_iter(output) if isinstance(value, Tensor))
        references = given.references()
        inputs = [
            LayerInput(
                self._number(tensor), tensor.untyped_storage().nbytes(), is_held=now - before > returned[id(tensor)]
            )
            for tensor, now, before in zip(given.tensors, references, references_before, strict=True)
        ]
        self.calls.append(LayerCall(call, tuple(inputs)))

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
        self.freed.append(InputFreed(number, self._slot_now()))


def _tensors_in(value: Any, containers: tuple[Any, ...]) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    if isinstance(value, Tensor):
        yield value, containers
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item, (*containers, value))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item, (*containers, value))
