"""Predicted peaks of compiled plans: what the layers' graphs hold is learned from a few that were compiled."""

from __future__ import annotations

from functools import partial

import pytest

from actune.cost.outlook import Outlook
from actune.measure import Workload, measure_plan, open_device, profile_plan
from actune.plan import NO_AC, CompileMode, Plan, Treatment, dump_plan
from actune.records import MeasurePlan
from actune.step_profile import ProfilePlan

# The profiler of torch is at work while code is compiled, which it warns of.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

MENU = (NO_AC, Treatment("full"))


@pytest.mark.parametrize("mode", ["layer", "inside", "model"])
def test_peaks_of_compiled_plans_are_predicted_to_the_byte(mode: CompileMode) -> None:
    workload = Workload("dense-tiny?layers=3&batch=2&seq=64", open_device("cpu"), seed=0)
    layer_fqns = workload.structure.layer_fqns
    outlook = Outlook(workload.structure, partial(profile_plan, workload), timed_steps=1)
    if mode != "model":  # there each plan is profiled itself
        outlook.learn(mode, dict.fromkeys(layer_fqns, MENU))
    for choice in [(0, 1, 0), (1, 0, 0)][: 1 if mode == "model" else 2]:
        treatments = {fqn: MENU[number] for fqn, number in zip(layer_fqns, choice, strict=True)}
        plan = Plan.from_treatments(treatments, compile=mode)
        toml = dump_plan(plan, with_provenance=False)
        measured_bytes = measure_plan(workload, MeasurePlan(toml, None, None, timed_pairs=0)).measurement.peak_bytes
        assert outlook.predict(plan).peak_bytes == measured_bytes


def test_the_layers_of_one_graph_are_told_apart_by_their_gradients() -> None:
    workload = Workload("dense-tiny?layers=2&batch=2&seq=64", open_device("cpu"), seed=0)
    layer_fqns = workload.structure.layer_fqns
    plan = Plan.from_treatments(dict.fromkeys(layer_fqns, Treatment("full")), compile="model")
    request = ProfilePlan(dump_plan(plan, with_provenance=False), with_optimizer=False, timed_steps=1)
    profile = profile_plan(workload, request).steady
    layers = [(slot.kind, slot.layer_fqn) for slot in profile.slots if slot.layer_fqn]
    assert layers == [
        ("forward", "layers.0"),
        ("forward", "layers.1"),
        ("backward", "layers.1"),
        ("backward", "layers.0"),
    ]
    measured = measure_plan(workload, MeasurePlan(request.plan_toml, None, None, timed_pairs=0)).measurement
    # But for the optimizer's state, which is there from the second step on.
    state_bytes = 2 * workload.parameter_bytes
    assert profile.peak_bytes + state_bytes == pytest.approx(measured.peak_bytes, rel=1e-4)
