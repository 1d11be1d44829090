"""One compiled graph cut into layers: by hand-made allocations, and addresses of gradients among them."""

from __future__ import annotations

import pytest
import torch

from actune.errors import PlanError
from actune.measure.recording import Allocation, stretch_of
from actune.measure.whole_model import gradient_addresses, split_by_gradients, with_shared_times
from actune.step_profile import LayerCall, Slot, SlotKind, StepProfile
from tests.measure.targets import Model

OUTER, OPTIMIZER = Allocation(8, 1), Allocation(16, 2)
FORWARD = [Allocation(100, 10), Allocation(50, 11), Allocation(-50, 11), Allocation(60, 12)]
BACKWARD = [
    Allocation(30, 20),  # a gradient of the last layer
    Allocation(-60, 12),
    Allocation(20, 21),  # the other one
    Allocation(70, 30),  # scratch of the first layer's, at an address that is its gradient's later
    Allocation(-70, 30),
    Allocation(40, 30),
    Allocation(-100, 10),
]
ADDRESSES = {"layers.0": {30}, "layers.1": {20, 21}}


def slot(kind: SlotKind, allocations: list[Allocation]) -> Slot:
    stretch = stretch_of([a.delta_bytes for a in allocations])
    return Slot(kind, "", 0 if kind in ("forward", "backward") else -1, stretch.delta_bytes, stretch.peak_bytes, 0.0)


STRETCHES: list[tuple[SlotKind, list[Allocation]]] = [
    ("outer", [OUTER]),
    ("forward", FORWARD),
    ("outer", []),
    ("backward", BACKWARD),
    ("optimizer", [OPTIMIZER]),
]
PROFILE = StepProfile(1000, tuple(slot(*stretch) for stretch in STRETCHES), (), ())


def split(addresses: dict[str, set[int]], backward: list[Allocation] = BACKWARD) -> StepProfile:
    allocations = [backward if kind == "backward" else between for kind, between in STRETCHES]
    return split_by_gradients(PROFILE, allocations, addresses)


def test_the_backward_ends_at_each_layer_s_last_gradient() -> None:
    found = split(ADDRESSES)
    slots = [(s.kind, s.layer_fqn, s.call, s.delta_bytes, s.peak_bytes) for s in found.slots]
    assert slots[4:7] == [
        ("backward", "layers.1", 1, -10, 30),
        ("backward", "layers.0", 0, 40, 70),
        ("outer", "", -1, -100, 0),
    ]
    assert found.calls == (LayerCall(0, ()), LayerCall(1, ()))


def test_the_forward_is_shared_out_and_its_peak_comes_last() -> None:
    slots = split(ADDRESSES).slots[1:3]
    assert [(s.layer_fqn, s.call, s.delta_bytes, s.peak_bytes) for s in slots] == [
        ("layers.0", 0, 80, 80),
        ("layers.1", 1, 80, 80),
    ]
    assert sum(s.delta_bytes for s in split({fqn: {30} for fqn in "abc"}).slots[1:4]) == 160


@pytest.mark.parametrize("addresses", [ADDRESSES, {"a": {30}, "b": {21}, "c": {20}}])
def test_a_cut_changes_neither_the_peak_nor_what_is_left(addresses: dict[str, set[int]]) -> None:
    found = split(addresses)
    assert found.peak_bytes == PROFILE.peak_bytes
    assert sum(s.delta_bytes for s in found.slots) == sum(s.delta_bytes for s in PROFILE.slots)


def test_a_layer_whose_gradients_come_earlier_than_the_next_one_s_is_empty() -> None:
    found = split({"layers.0": {20}, "layers.1": {30}})
    assert [(s.layer_fqn, s.delta_bytes, s.peak_bytes) for s in found.slots if s.kind == "backward"] == [
        ("layers.1", 30, 60),
        ("layers.0", 0, 0),
    ]


def test_a_layer_without_a_gradient_is_said() -> None:
    with pytest.raises(PlanError, match=r"makes no gradient of a weight matrix of layers\.0"):
        split({"layers.0": {99}, "layers.1": {20}})
    with pytest.raises(PlanError, match=r"of layers\.1"):
        split({"layers.0": {30}, "layers.1": set()})


def test_times_are_shared_out_by_kind() -> None:
    kinds: list[SlotKind] = ["outer", "forward", "outer", "backward", "optimizer"]
    found = with_shared_times(split(ADDRESSES), kinds, [1.0, 6.0, 2.0, 8.0, 0.5])
    assert [s.step_time_s for s in found.slots] == [1.0, 3.0, 3.0, 1.0, 4.0, 4.0, 1.0, 0.5]
    assert found.step_time_s == pytest.approx(17.5)


def test_addresses_are_of_the_gradients_of_matrices() -> None:
    model = Model()
    model(torch.randn(2, 8)).sum().backward()
    addresses = gradient_addresses(model, ["layers.0", "layers.1"])
    for fqn, of_layer in addresses.items():
        gradients = [parameter.grad for parameter in model.get_submodule(fqn).parameters()]
        assert of_layer == {gradient.data_ptr() for gradient in gradients if gradient is not None}
    model.layers[0].requires_grad_(False)
    model.zero_grad()
    assert gradient_addresses(model, ["layers.0"]) == {"layers.0": set()}
