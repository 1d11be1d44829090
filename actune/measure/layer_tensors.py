"""The tensors that layers are given and return: which layer holds which of them, and when each is freed.

A layer's input is freed by whoever lets go of it last: by the layer itself, in its backward; by an earlier layer that
was given it too; by the layer that made it, if that one's backward needs it, as a ReLU's does; or, if no layer holds
it, by the model's own code in the forward. Which of these depends on the plan, so that the bytes belong to no slot.

A layer may also leave something to the model that it does not return: transformers collects what routers return by
hooks on them, and an auxiliary loss is computed of it. Who frees that depends on the plan as well.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_iter

from actune.step_profile import LayerCall, LayerTensor, LeftBehind, TensorFreed


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
        self._inner: dict[int, object] = {}
        self._inner_freed: list[tuple[int, int, int]] = []

    @contextmanager
    def inside(self, call: int) -> Iterator[None]:
        """Watches what modules return within the block, in which a call of a layer runs.

        The hook is on all modules, of any model, but only within the block.
        """

        def note(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in tree_iter(output):
                if _has_storage(tensor):
                    self._watch_inner(call, tensor.untyped_storage())

        handle = register_module_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def _watch_inner(self, call: int, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._inner:
            this = self._inner[key] = object()
            weakref.finalize(storage, self._on_inner_free, key, this, call, storage.nbytes())

    def _on_inner_free(self, key: int, this: object, call: int, size_bytes: int) -> None:
        if self._inner.get(key) is this:  # else it was given to the layer or returned
            del self._inner[key]
            self._inner_freed.append((call, self._slot_now(), size_bytes))

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
        for tensor in (*given.tensors, *returned):
            self._inner.pop(tensor.untyped_storage()._cdata, None)
        self._calls.append(LayerCall(call, tuple(inputs), tuple(outputs.values())))

    def calls(self, backward_slots: Mapping[int, int], outer_slots: Container[int]) -> tuple[LayerCall, ...]:
        """What each call was given and returned, once the step has ended.

        Layers that are given an output have their backward before the one that made it, so that an output that lives
        until that one's backward is held by it.

        Args:
            backward_slots: the position of each call's backward.
            outer_slots: the positions of what comes after all layers' forwards and is no layer's backward.
        """
        left: dict[int, Counter[int]] = {}
        for call_number, slot, size_bytes in self._inner_freed:
            if slot in outer_slots:
                left.setdefault(call_number, Counter())[slot] += size_bytes
        ended = {(freed.storage, freed.slot) for freed in self.freed}
        return tuple(
            replace(
                call,
                outputs=tuple(
                    replace(made, is_held=(made.storage, backward_slots.get(call.call)) in ended)
                    for made in call.outputs
                ),
                left=tuple(LeftBehind(*item) for item in sorted(left.get(call.call, {}).items())),
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
