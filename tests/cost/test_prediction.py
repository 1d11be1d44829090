"""Predicted peaks against what the allocator says: equal to the byte in eager mode."""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path

import pytest

from actune.cost.model import CostModel
from actune.cost.stack import stack_of
from actune.cost.survey import begin_survey, extend_survey
from actune.measure import Workload, measure_plan, open_device, profile_plan
from actune.plan import NO_AC, Plan, Treatment, dump_plan
from actune.records import MeasurePlan

ROOT = Path(__file__).parents[2]
MENU = (
    NO_AC,
    Treatment("full"),
    Treatment("selective"),
    Treatment("selective", save_every_nth_mm=1, save_ops=("default", "grouped_mm", "cpu_attention")),
)
TARGETS = [
    "dense-tiny?batch=2&seq=64",
    "moe-tiny?batch=2&seq=64",
    f"hf:{ROOT}/examples/hf/llama-tiny.json?batch=2&seq=64",
    f"hf:{ROOT}/examples/hf/qwen3-moe-tiny.json?batch=2&seq=64",
    f"{ROOT}/benchmarks/prediction_targets.py:Biased",
    f"{ROOT}/benchmarks/prediction_targets.py:EncoderDecoder",
    f"{ROOT}/benchmarks/prediction_targets.py:LoopOverExperts",
]


def measured_peak_bytes(workload: Workload, plan: Plan) -> int:
    toml = dump_plan(plan, with_provenance=False)
    measurement = measure_plan(workload, MeasurePlan(toml, None, None, timed_pairs=0)).measurement
    assert measurement.peak_bytes is not None, measurement.message
    return measurement.peak_bytes


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.rpartition("/")[2])
def test_the_peak_of_mixed_plans_is_predicted_to_the_byte(target: str) -> None:
    workload = Workload(target, open_device("cpu"), seed=0)
    layer_fqns = workload.structure.layer_fqns
    run = partial(profile_plan, workload)
    profile = begin_survey(workload.structure, run, timed_steps=1)
    profile = extend_survey(profile, dict.fromkeys(layer_fqns, MENU), run, timed_steps=1)
    model = CostModel(profile)
    rng = random.Random(3)
    plans = [Plan.from_treatments({fqn: rng.choice(MENU) for fqn in layer_fqns}) for _ in range(3)]
    predicted = [model.predict(plan, layer_fqns).peak_bytes for plan in (Plan(), *plans)]
    assert predicted == [measured_peak_bytes(workload, plan) for plan in (Plan(), *plans)]

    # What the solver is asked has the same peaks, so its optimum is the model's.
    stack = stack_of(model, dict.fromkeys(layer_fqns, MENU))
    for _ in range(100):
        choice = [rng.randrange(len(MENU)) for _ in layer_fqns]
        peak_bytes = stack.predict(choice).peak_bytes
        assert peak_bytes is not None
        assert peak_bytes <= stack.problem.peak_bytes(choice) <= 1.005 * peak_bytes
        if target.startswith(("dense", "moe")):  # the layers of the others share tensors
            assert stack.problem.peak_bytes(choice) == peak_bytes
        assert stack.problem.time_ps(choice) == pytest.approx(1e12 * (stack.predict(choice).step_time_s or 0))


def test_where_a_treatment_sits_matters() -> None:
    """The design's example: the same counts in another order have another peak."""
    workload = Workload("dense-tiny?batch=2&seq=64", open_device("cpu"), seed=0)
    layer_fqns = workload.structure.layer_fqns
    run = partial(profile_plan, workload)
    profile = begin_survey(workload.structure, run, timed_steps=1)
    model = CostModel(extend_survey(profile, dict.fromkeys(layer_fqns, (NO_AC,)), run, timed_steps=1))
    peaks = {}
    for order in set(itertools.permutations([NO_AC, NO_AC, Treatment("full"), Treatment("full")])):
        plan = Plan.from_treatments(dict(zip(layer_fqns, order, strict=True)))
        peaks[order] = model.predict(plan, layer_fqns).peak_bytes
    assert len(set(peaks.values())) > 1
    order = min(peaks, key=lambda o: peaks[o] or 0)
    plan = Plan.from_treatments(dict(zip(layer_fqns, order, strict=True)))
    assert measured_peak_bytes(workload, plan) == peaks[order]
