"""Marks at layers: their names and numbers, in the forward and in the backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from actune.ac import Application
from actune.measure.marks import LayerMarks
from actune.plan import Plan, Treatment
from tests.measure.targets import Layer

FQNS = ("layers.0", "layers.1", "layers.2")
OUTER = ("outer", "", -1)


class Calls(nn.Module):
    """Three layers, called as a function says."""

    def __init__(self, run: Callable[[nn.ModuleList, Tensor], Tensor], layer: type[nn.Module] = Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer() for _ in FQNS])
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layers, x)


def marks_of(model: nn.Module, *, x: Tensor | None = None, plan: Plan | None = None) -> list[tuple[str, str, int]]:
    """The marks of a forward and backward."""
    application = Application(model, plan or Plan(), FQNS)
    application.attach()
    marks = LayerMarks(lambda: None)
    try:
        with marks.at_layers(model, FQNS):
            model(torch.randn(2, 8) if x is None else x).sum().backward()
    finally:
        application.detach()
    return [(mark.kind, mark.layer_fqn, mark.call) for mark in marks.marks]


def forwards(*layers: int) -> list[tuple[str, str, int]]:
    """Of these layers one after the other, with the model's own code around them."""
    return [OUTER, *(mark for call, n in enumerate(layers) for mark in (("forward", FQNS[n], call), OUTER))]


def backwards(calls: Sequence[tuple[int, int]]) -> list[tuple[str, str, int]]:
    return [("backward", FQNS[layer], call) for layer, call in calls]


def in_turn(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def full() -> Plan:
    return Plan.from_treatments(dict.fromkeys(FQNS, Treatment("full")))


@pytest.mark.parametrize("plan", [Plan(), full()], ids=["none", "full"])
def test_layers_in_turn(plan: Plan) -> None:
    assert marks_of(Calls(in_turn), plan=plan) == forwards(0, 1, 2) + backwards([(2, 2), (1, 1), (0, 0)])


def test_a_backward_ends_where_the_gradient_of_the_first_input_is_complete() -> None:
    found = marks_of(Calls(in_turn), x=torch.randn(2, 8, requires_grad=True))
    assert found == [*forwards(0, 1, 2), *backwards([(2, 2), (1, 1), (0, 0)]), OUTER]


def test_a_layer_that_is_called_twice_has_two_numbers() -> None:
    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        return layers[2](layers[0](layers[0](x)))

    assert marks_of(Calls(run)) == forwards(0, 0, 2) + backwards([(2, 2), (0, 1), (0, 0)])


def test_a_layer_that_is_not_called_has_no_mark() -> None:
    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        return layers[2](layers[0](x))

    assert marks_of(Calls(run)) == forwards(0, 2) + backwards([(2, 1), (0, 0)])


def test_a_layer_without_gradients_has_no_backward() -> None:
    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = layers[0](x)
        return layers[2](layers[1](x))

    assert marks_of(Calls(run)) == forwards(0, 1, 2) + backwards([(2, 2), (1, 1)])


class WithLoss(Layer):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = super().forward(x)
        return x, x.square().mean()


@pytest.mark.parametrize("plan", [Plan(), full()], ids=["none", "full"])
def test_a_backward_begins_with_whichever_output_comes_first(plan: Plan) -> None:
    """The loss was made last, so its gradient is the first that the layer is given."""

    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        losses = []
        for layer in layers:
            x, loss = layer(x)
            losses.append(loss)
        return x + torch.stack(losses).sum()

    assert marks_of(Calls(run, WithLoss), plan=plan) == forwards(0, 1, 2) + backwards([(2, 2), (1, 1), (0, 0)])


class WithInput(Layer):
    def forward(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        return first, super().forward(x) * first


def test_an_input_that_is_passed_through_is_not_the_layer_s_output() -> None:
    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        first = x
        for layer in layers:
            first, x = layer(x, first)
        return x

    x = torch.randn(2, 8, requires_grad=True)
    found = marks_of(Calls(run, WithInput), x=x)
    assert found == [*forwards(0, 1, 2), *backwards([(2, 2), (1, 1), (0, 0)]), OUTER]


def test_the_model_is_as_it_was_also_after_a_step_that_raises() -> None:
    def run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        raise ValueError("bad value")

    model = Calls(run)
    with pytest.raises(ValueError, match="bad value"):
        marks_of(model)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_each_mark_is_told_to_the_recorder() -> None:
    model, told = Calls(in_turn), []
    marks = LayerMarks(lambda: told.append(len(marks.marks)))
    with marks.at_layers(model, FQNS):
        model(torch.randn(2, 8)).sum().backward()
    assert told == list(range(1, len(marks.marks)))
