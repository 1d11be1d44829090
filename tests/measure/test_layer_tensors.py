"""What layers hold of what they are given and return, and when it is freed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actune.ac import Application
from actune.measure.marks import LayerMarks
from actune.plan import NO_AC, Plan, Treatment
from actune.step_profile import LayerCall, TensorFreed
from tests.measure.targets import Layer

FQNS = ("layers.0", "layers.1")
FULL, SAC = Treatment("full"), Treatment("selective")
PARTS = Treatment("full", wrap=("w1", "w2"))
KEEPS_ALL = Treatment("selective", save_every_nth_mm=1, save_ops=("default", "sin", "relu"))
ROWS, WIDTH = 3, 8
SIZE_BYTES = 4 * ROWS * WIDTH


class Calls(nn.Module):
    def __init__(self, layer: type[nn.Module], run: Callable[[nn.ModuleList, Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer() for _ in FQNS])
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.layers, x)


def step_of(model: Calls, treatment: Treatment) -> tuple[tuple[LayerCall, ...], list[TensorFreed], LayerMarks]:
    application = Application(model, Plan.from_treatments(dict.fromkeys(FQNS, treatment)), FQNS)
    application.attach()
    marks = LayerMarks(lambda: None)
    try:
        with marks.at_layers(model, FQNS):
            loss = model(torch.randn(ROWS, WIDTH)).square().sum()
            loss.backward()
    finally:
        application.detach()
    return marks.calls(), marks.tensors.freed, marks


def held(calls: tuple[LayerCall, ...]) -> list[tuple[bool, ...]]:
    return [tuple(tensor.is_held for tensor in call.inputs) for call in calls]


def ends(freed: list[TensorFreed], marks: LayerMarks) -> dict[int, tuple[str, str]]:
    """What begins with the slot in which each storage was freed."""
    return {free.storage: (marks.marks[free.slot].kind, marks.marks[free.slot].layer_fqn) for free in freed}


def embedded(x: Tensor) -> Tensor:
    """Not the batch itself, which others hold, and no leaf, which its gradient's accumulation holds."""
    return x + torch.ones((), requires_grad=True)


def in_turn(layers: nn.ModuleList, x: Tensor) -> Tensor:
    x = embedded(x)
    for layer in layers:
        x = layer(x)
    return x


@pytest.mark.parametrize("treatment", [NO_AC, FULL, SAC, PARTS, KEEPS_ALL], ids=Treatment.label)
def test_an_input_that_the_layer_reads_is_held(treatment: Treatment) -> None:
    calls, freed, marks = step_of(Calls(Layer, in_turn), treatment)
    assert held(calls) == [(True,), (True,)]
    assert [tensor.size_bytes for call in calls for tensor in call.inputs] == [SIZE_BYTES, SIZE_BYTES]
    between = calls[1].inputs[0]
    assert calls[0].outputs == (type(between)(between.storage, SIZE_BYTES, False),)
    found = ends(freed, marks)
    assert found[between.storage] == ("backward", "layers.1")
    assert found[calls[0].inputs[0].storage] == ("backward", "layers.0")


class Adds(Layer):
    """Reads a sum with its second input, which is then needed no more."""

    def forward(self, x: Tensor, other: Any, **more: Any) -> Tensor:
        other = other["other"] if isinstance(other, dict) else other
        return super().forward(x + (other[0] if isinstance(other, tuple) else other))


@pytest.mark.parametrize("pack", ["positional", "keyword", "tuple", "dict"])
@pytest.mark.parametrize(("treatment", "is_held"), [(NO_AC, False), (PARTS, False), (FULL, True), (SAC, True)])
def test_what_only_a_recomputation_needs_is_held_for_it(pack: str, treatment: Treatment, is_held: bool) -> None:
    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        x, other = embedded(x), x + 2
        for layer in layers:
            if pack == "positional":
                x = layer(x, other)
            elif pack == "keyword":
                x = layer(x, other=other)
            else:
                x = layer(x, other=(other,) if pack == "tuple" else {"other": other})
        return x

    calls, freed, marks = step_of(Calls(Adds, run), treatment)
    assert held(calls) == [(is_held, is_held)] * 2
    storage = calls[0].inputs[1].storage
    assert calls[1].inputs[1].storage == storage
    # Held by both, it is freed with the first one's backward; by none, as the model's forward returns.
    assert ends(freed, marks)[storage] == (("backward", "layers.0") if is_held else ("outer", ""))
    if not is_held:
        assert next(free.slot for free in freed if free.storage == storage) == 4


class PassesThrough(Layer):
    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x + other), other


@pytest.mark.parametrize(("treatment", "is_held"), [(NO_AC, False), (FULL, True)])
def test_what_is_passed_through_is_no_output_and_returning_it_is_not_holding_it(
    treatment: Treatment, is_held: bool
) -> None:
    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        x, other = embedded(x), x + 2
        for layer in layers:
            x, other = layer(x, other)
        return x

    calls, _, _ = step_of(Calls(PassesThrough, run), treatment)
    assert held(calls) == [(is_held, is_held)] * 2
    assert [len(call.outputs) for call in calls] == [1, 1]


class EndsWithRelu(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


@pytest.mark.parametrize(("treatment", "is_held"), [(NO_AC, True), (FULL, False), (KEEPS_ALL, True)])
def test_an_output_that_the_layer_s_own_backward_needs_is_held(treatment: Treatment, is_held: bool) -> None:
    calls, freed, marks = step_of(Calls(EndsWithRelu, in_turn), treatment)
    assert [output.is_held for call in calls for output in call.outputs] == [is_held, is_held]
    between = calls[1].inputs[0].storage
    assert ends(freed, marks)[between] == ("backward", "layers.0" if is_held else "layers.1")


def test_storages_are_counted_once_and_sparse_tensors_are_left_out() -> None:
    class Two(Layer):
        def forward(self, x: Tensor, part: Tensor, sparse: Tensor) -> Tensor:
            return super().forward(x + torch.sparse.mm(sparse, x)) + part.sum()

    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        x = embedded(x)
        for layer in layers:
            x = layer(x, x[0], torch.eye(ROWS).to_sparse())
        return x

    calls, freed, _ = step_of(Calls(Two, run), NO_AC)
    assert [len(call.inputs) for call in calls] == [2, 2]
    assert all(call.inputs[0].storage == call.inputs[1].storage for call in calls)
    storages = [free.storage for free in freed]
    assert len(set(storages)) == len(storages)
