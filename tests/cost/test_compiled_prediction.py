"""Predicted peaks of compiled plans: what the layers' graphs hold is learned from a few that were compiled."""

from __future__ import annotations

from functools import partial

import pytest

from actune.cost.outlook import Outlook
from actune.measure import Workload, measure_plan, open_device, profile_plan
from actune.plan import NO_AC, CompileMode, Plan, Treatment, dump_plan
from actune.records import MeasurePlan

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
