"""Profiled steps: their slots add up to what is measured without marks, and nothing stays on the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from actune.errors import PlanError
from actune.measure import Workload, measure_plan, open_device, profile_plan
from actune.plan import CompileMode, Plan, Treatment, dump_plan
from actune.records import MeasurePlan
from actune.step_profile import ProfilePlan, StepProfile
from tests.measure.targets import Layer, Model, Plain, Raises

HERE = "tests.measure.test_profiling"
TREATMENTS = {
    "none": Treatment("none"),
    "full": Treatment("full"),
    "selective": Treatment("selective"),
    "parts": Treatment("full", wrap=("w1", "w2")),
}


class WithBuffer(Model):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", self.layers[0].w1.weight.detach().clone())


class Adam(Plain):
    def model(self):
        return WithBuffer()

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters())


class RaisesInLayer(Plain):
    class Faulty(Layer):
        def forward(self, x):
            raise ValueError("bad value")

    layer = Faulty


def workload_of(name: str, module: str = HERE) -> Workload:
    return Workload(f"{module}:{name}", open_device("cpu"), seed=0)


def toml_of(workload: Workload, treatment: Treatment, compile: CompileMode = "off") -> str:
    plan = Plan.from_treatments(dict.fromkeys(workload.structure.layer_fqns, treatment), compile=compile)
    return dump_plan(plan, with_provenance=False)


def kinds_of(step: StepProfile) -> list[tuple[str, str, int]]:
    return [(slot.kind, slot.layer_fqn, slot.call) for slot in step.slots]


@pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)
def test_slots_add_up_to_the_peak_that_is_measured(treatment: Treatment) -> None:
    workload = workload_of("Adam")
    toml = toml_of(workload, treatment)
    profiled = profile_plan(workload, ProfilePlan(toml, with_optimizer=True, timed_steps=0))
    assert profiled.first is not None
    measured = measure_plan(workload, MeasurePlan(toml, None, None, timed_pairs=0)).measurement
    assert max(profiled.first.peak_bytes, profiled.steady.peak_bytes) == measured.peak_bytes
    # With a budget that the first step is over, the trial ends there and says that step's peak.
    first = measure_plan(workload, MeasurePlan(toml, None, 1, timed_pairs=0)).measurement
    assert profiled.first.peak_bytes == first.peak_bytes


def test_live_bytes_are_what_is_there_between_steps() -> None:
    workload = workload_of("Adam")
    request = ProfilePlan(toml_of(workload, TREATMENTS["full"]), with_optimizer=True, timed_steps=0)
    profiled = profile_plan(workload, request)
    assert profiled.first is not None
    batch_bytes = 4 * 4 * 8
    static_bytes = workload.parameter_bytes + workload.model.table.nbytes
    assert profiled.first.live_bytes == static_bytes + batch_bytes
    # AdamW's two moments of each parameter, and a number of the step for each.
    parameters = list(workload.model.parameters())
    assert profiled.steady.live_bytes - profiled.first.live_bytes == 2 * workload.parameter_bytes + 4 * len(parameters)
    # All that a step leaves behind: gradients, and in the first one the optimizer's state.
    left_bytes = [sum(slot.delta_bytes for slot in step.slots) for step in (profiled.first, profiled.steady)]
    assert left_bytes[1] == workload.parameter_bytes
    assert left_bytes[0] == 3 * workload.parameter_bytes + 4 * len(parameters)


def test_slots_come_in_the_order_of_the_step() -> None:
    workload = workload_of("Plain", "tests.measure.targets")
    request = ProfilePlan(toml_of(workload, TREATMENTS["full"]), with_optimizer=True, timed_steps=1)
    profiled = profile_plan(workload, request)
    expected = [
        ("outer", "", -1),
        ("forward", "layers.0", 0),
        ("outer", "", -1),
        ("forward", "layers.1", 1),
        ("outer", "", -1),
        ("backward", "layers.1", 1),
        ("backward", "layers.0", 0),
        ("optimizer", "", -1),
    ]
    assert kinds_of(profiled.steady) == expected
    assert profiled.first is not None
    assert kinds_of(profiled.first) == expected
    assert all(slot.step_time_s == 0 for slot in profiled.first.slots)
    assert all(slot.step_time_s > 0 for slot in profiled.steady.slots if slot.layer_fqn)


def test_without_the_optimizer_there_is_one_step() -> None:
    workload = workload_of("Adam")
    request = ProfilePlan(toml_of(workload, TREATMENTS["none"]), with_optimizer=False, timed_steps=0)
    profiled = profile_plan(workload, request)
    with_optimizer = profile_plan(workload, replace(request, with_optimizer=True))
    assert profiled.first is None
    assert with_optimizer.first is not None
    assert profiled.steady.slots == with_optimizer.first.slots[:-1]


# The profiler of torch is at work while code is compiled, which it warns of.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_layers_have_the_same_marks() -> None:
    workload = workload_of("Plain", "tests.measure.targets")
    request = ProfilePlan(toml_of(workload, TREATMENTS["full"]), with_optimizer=False, timed_steps=0)
    eager = profile_plan(workload, request)
    compiled = profile_plan(workload, replace(request, plan_toml=toml_of(workload, TREATMENTS["full"], "layer")))
    assert kinds_of(compiled.steady) == kinds_of(eager.steady)
    assert_as_it_was(workload.model)


def assert_as_it_was(model: nn.Module) -> None:
    assert {type(module) for module in model.modules()} <= {Model, WithBuffer, Layer, RaisesInLayer.Faulty} | {
        nn.ModuleList,
        nn.Linear,
    }
    for module in model.modules():
        assert module._compiled_call_impl is None
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(parameter.grad is None and not parameter._backward_hooks for parameter in model.parameters())


@pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)
def test_nothing_is_left_behind(treatment: Treatment) -> None:
    workload = workload_of("Adam")
    profile_plan(workload, ProfilePlan(toml_of(workload, treatment), with_optimizer=True, timed_steps=1))
    assert_as_it_was(workload.model)


@pytest.mark.parametrize(
    ("module", "name"), [(HERE, "RaisesInLayer"), ("tests.measure.targets", Raises.__name__)], ids=["layer", "loss"]
)
def test_nothing_is_left_behind_by_a_step_that_raises(module: str, name: str) -> None:
    workload = workload_of(name, module)
    request = ProfilePlan(toml_of(workload, TREATMENTS["full"]), with_optimizer=True, timed_steps=1)
    with pytest.raises(ValueError, match="bad value"):
        profile_plan(workload, request)
    assert_as_it_was(workload.model)
    with pytest.raises(ValueError, match="bad value"):
        profile_plan(workload, request)  # and it can be tried again


def test_a_plan_that_does_not_fit_leaves_nothing_behind() -> None:
    workload = workload_of("Adam")
    plan = Plan.from_treatments({"layers.7": Treatment("full")})
    with pytest.raises(PlanError, match=r"layers\.7"):
        profile_plan(workload, ProfilePlan(dump_plan(plan, with_provenance=False), True, 0))
    assert_as_it_was(workload.model)
