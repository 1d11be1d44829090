"""The CUDA path on a real card, against the card's own counters and torch's own results."""

from __future__ import annotations

import pytest
import torch

from actune.cost.outlook import Outlook
from actune.engine import LocalEngine
from actune.measure import Workload, compare_gradients, measure_plan, measure_rounds, open_device
from actune.measure.tracing import trace_layers
from actune.op_trace import TraceLayers
from actune.plan import Plan, Treatment, dump_plan, parse_plan
from actune.records import CompareGradients, LoadTarget, MeasurePlan, MeasureRounds, Outcome
from tests.ac.models import uniform

SMALL, FLEX = "tests.gpu.targets:Small", "tests.gpu.targets:Flex"
NONE = dump_plan(Plan())
FULL = dump_plan(uniform(Treatment("full")))
SAC = dump_plan(uniform(Treatment("selective", save_every_nth_mm=2)))
PARTS = dump_plan(uniform(Treatment("full", wrap=("attention", "feed_forward"))))


@pytest.fixture
def workload():
    return Workload(SMALL, open_device("cuda"), seed=0)


def measured(workload, toml, **request):
    return measure_plan(workload, MeasurePlan(toml, None, **({"budget_bytes": None, "timed_pairs": 0} | request)))


def test_expandable_segments_are_on(workload):
    assert "expandable_segments:True" in workload.device.environment().allocator
    assert any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())


def test_a_peak_is_at_least_what_pytorch_counts_and_has_the_context_on_top(workload):
    measurement = measured(workload, NONE).measurement
    assert measurement.outcome is Outcome.OK
    assert workload.parameter_bytes < measurement.allocated_bytes <= measurement.reserved_bytes < measurement.peak_bytes


def test_allocated_peaks_are_predicted_to_the_byte(tmp_path):
    with LocalEngine(LoadTarget(SMALL, "cuda", 0), workers=1, timeout_s=300, log_folder=tmp_path) as engine:
        structure = engine.load().target.structure
        plans = {toml: parse_plan(toml) for toml in (NONE, FULL, SAC)}
        outlook = Outlook(structure, engine.profile)
        outlook.learn_plans(plans.values())
        for toml, plan in plans.items():
            measurement = engine.measure(MeasurePlan(toml, None, None, timed_pairs=0))
            assert outlook.predict(plan).allocated_bytes == measurement.allocated_bytes


def test_over_the_cap_a_plan_is_refused_cleanly_and_the_worker_goes_on(workload):
    full, none = (measured(workload, toml).measurement for toml in (FULL, NONE))
    outside_bytes = none.peak_bytes - none.reserved_bytes
    budget_bytes = outside_bytes + (full.allocated_bytes + none.allocated_bytes) // 2
    refused = measured(workload, NONE, budget_bytes=budget_bytes)
    assert refused.measurement.outcome is Outcome.OVER_BUDGET
    assert not refused.worker_spent
    again = measured(workload, NONE)
    assert (again.measurement.outcome, again.measurement.allocated_bytes) == (Outcome.OK, none.allocated_bytes)


def test_a_trial_leaves_nothing_behind(workload):
    workload.restart()
    start_bytes = torch.cuda.memory_allocated()
    for toml in (NONE, SAC, FULL):
        assert measured(workload, toml).measurement.outcome is Outcome.OK
        assert torch.cuda.memory_allocated() == start_bytes


def test_steps_take_time_by_the_cards_events(workload):
    samples = measure_rounds(workload, MeasureRounds((FULL, NONE), 3)).samples
    assert all(sample.step_time_s > 0 for of_plan in samples for sample in of_plan)


@pytest.mark.parametrize("toml", [FULL, SAC, PARTS])
def test_gradients_are_those_without_ac(workload, toml):
    report = compare_gradients(workload, CompareGradients(toml, NONE))
    assert report.equal
    assert report.compared


def test_the_default_save_list_keeps_the_cards_attention(workload):
    (layer,) = trace_layers(workload, TraceLayers(NONE)).layers
    kept = {op.op_name for op in layer.ops if op.kept_by_sac and "attention" in op.op_name}
    assert kept & {
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    }


def test_flex_attention_stays_compiled_inside_a_checkpoint():
    """Eager FlexAttention makes the matrix of scores; compiled it does not, and the peak shows which one ran."""
    workload = Workload(FLEX, open_device("cuda"), seed=0)
    eager_scores_bytes = 4 * 512 * 512 * 4 * 4  # batch × heads × T × T in float32
    for toml in (FULL, PARTS):
        measurement = measured(workload, toml).measurement
        assert measurement.outcome is Outcome.OK, measurement.message
        no_flex = measured(Workload(SMALL, workload.device, seed=0), toml).measurement
        assert measurement.allocated_bytes < no_flex.allocated_bytes + eager_scores_bytes


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA cards: run `pytest tests/gpu` where they are")
def test_two_workers_have_a_card_each(tmp_path):
    with LocalEngine(LoadTarget(SMALL, "cuda", 0), workers=2, timeout_s=300, log_folder=tmp_path) as engine:
        request = MeasurePlan(FULL, None, None, timed_pairs=0)
        both = [engine.submit(request) for _ in range(2)]
        assert [future.result().outcome for future in both] == [Outcome.OK] * 2
        visible = set()
        for worker in engine._alive:
            with open(f"/proc/{worker.pid}/environ", "rb") as variables:
                visible |= {v for v in variables.read().split(b"\0") if v.startswith(b"CUDA_VISIBLE_DEVICES")}
        assert len(visible) == 2
