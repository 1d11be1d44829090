"""Marks at the boundaries of a model's layers, forward and backward, without a change to the model.

A layer's forward is the call of what stands in its place under a plan: the layer itself, its region, or what is
compiled of them. Its backward begins when the gradient of an output is complete, the first of them if it has several,
and ends where that of the layer before begins, or when the gradient of its input is complete.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from actune.measure.layer_tensors import GivenTensors, TensorWatch
from actune.step_profile import LayerCall, SlotKind


@dataclass(frozen=True, slots=True)
class Mark:
    """What begins at a mark: see `actune.step_profile.Slot`."""

    kind: SlotKind
    layer_fqn: str = ""
    call: int = -1


OUTER = Mark("outer")
OPTIMIZER = Mark("optimizer")


class LayerMarks:
    """The marks of one step.

    Attributes:
        marks: what has begun so far, in order; the first stretch, before any mark, is outer.
        tensors: what the layers are given and return.
    """

    def __init__(self, on_mark: Callable[[], None], *, watch_modules: bool = False) -> None:
        """Args:
        on_mark: called at each mark, right as the stretch ends.
        watch_modules: also watch what modules inside of layers return, which takes time, and breaks compiled code.
        """
        self.marks: list[Mark] = [OUTER]
        self.tensors = TensorWatch(lambda: len(self.marks) - 1)
        self._on_mark = on_mark
        self._watch_modules = watch_modules
        self._calls = 0
        self._outputs: dict[int, weakref.ref[Tensor]] = {}

    def begin(self, mark: Mark) -> None:
        """Ends a stretch and begins the next one."""
        self._on_mark()
        self.marks.append(mark)

    @contextmanager
    def at_layers(self, model: nn.Module, layer_fqns: Sequence[str]) -> Iterator[None]:
        """Marks calls of the layers, as the plan that is attached has them, within the block."""
        # Regions don't show in `named_modules`: by its FQN from the root, a layer is what is called in its place.
        places = {fqn: _module_in_place(model, fqn) for fqn in layer_fqns}
        before = {fqn: module._compiled_call_impl for fqn, module in places.items()}
        for fqn, module in places.items():
            call = before[fqn] or module._call_impl
            module._compiled_call_impl = partial(self._call, fqn, call)
        try:
            yield
        finally:
            for fqn, module in places.items():
                module._compiled_call_impl = before[fqn]

    def _call(self, fqn: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number = self._calls
        self._calls += 1
        self._hook_input(args, kwargs)
        given = GivenTensors(args, kwargs)
        references = given.references()
        self.begin(Mark("forward", fqn, number))
        with self.tensors.inside(number) if self._watch_modules else nullcontext():
            output = call(*args, **kwargs)
        self.begin(OUTER)
        self.tensors.after(number, given, references, output)
        for tensor in _differentiable(output):
            if any(tensor is one for one in given.tensors):
                continue  # passed through: its gradient is the layer's before
            self._outputs[id(tensor)] = weakref.ref(tensor)
            tensor.register_hook(self._on_gradient(Mark("backward", fqn, number)))
        return output

    def calls(self) -> tuple[LayerCall, ...]:
        """What the layers were given and returned, once the step has ended."""
        kinds = [mark.kind for mark in self.marks]
        return self.tensors.calls(
            {mark.call: position for position, mark in enumerate(self.marks) if mark.kind == "backward"},
            {
                position
                for position, kind in enumerate(kinds)
                if kind in ("outer", "optimizer") and "forward" not in kinds[position:]
            },
        )

    def _hook_input(self, args: Any, kwargs: Any) -> None:
        """What comes from the layer before has its mark already: there, that one's backward begins."""
        inputs = list(_differentiable((args, kwargs)))
        if inputs and not any(self._is_output(tensor) for tensor in inputs):
            inputs[0].register_hook(self._on_gradient(OUTER))

    def _is_output(self, tensor: Tensor) -> bool:
        known = self._outputs.get(id(tensor))
        return known is not None and known() is tensor

    def _on_gradient(self, mark: Mark) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            # Gradients of a call's outputs may be complete one after the other.
            if self.marks[-1] != mark:
                self.begin(mark)

        return hook


def _module_in_place(model: nn.Module, fqn: str) -> nn.Module:
    parent, _, name = fqn.rpartition(".")
    module = model.get_submodule(parent)._modules[name]
    assert module is not None
    return module


def _differentiable(values: Any) -> Iterator[Tensor]:
    for value in tree_iter(values):
        if isinstance(value, Tensor) and value.requires_grad and torch.is_floating_point(value):
            yield value
