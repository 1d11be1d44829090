"""Requests on a simulated device: the same each time, and the same bytes as a real CPU's."""

import pytest
import torch

from actune.boundary import to_json
from actune.measure.allocations import AllocationTrace
from actune.measure.device import CpuDevice
from actune.plan import Plan, Treatment, dump_plan
from actune.records import (
    CompareGradients,
    Failed,
    LoadTarget,
    MeasurePlan,
    MeasureRounds,
    Outcome,
)
from actune.step_profile import ProfilePlan
from actune.worker import Worker

DENSE = "dense-tiny?layers=3"
SMALL = "dense-tiny?batch=2&seq=64&layers=3"
MOE = "moe-tiny?batch=2&seq=64&layers=3"


def toml(policy, **knobs):
    return dump_plan(Plan.from_treatments({f"layers.{i}": Treatment(policy, **knobs) for i in range(3)}))


NONE, FULL = dump_plan(Plan()), toml("full")


def loaded(spec, device="sim:tiny"):
    worker = Worker(lambda: None)
    reply = worker.answer(LoadTarget(spec, device, seed=0))
    assert not isinstance(reply, Failed), reply
    return worker, reply


@pytest.fixture(scope="module")
def dense():
    return loaded(DENSE)[0]


REQUESTS = [
    ProfilePlan(FULL, with_optimizer=True, timed_steps=2),
    MeasurePlan(FULL, NONE, None, timed_pairs=3),
    MeasureRounds((NONE, FULL), rounds=4),
    CompareGradients(FULL, NONE),
]


def test_the_same_replies_twice_and_in_another_order(dense):
    first = [to_json(dense.answer(request)) for request in REQUESTS]
    other = loaded(DENSE)[0]
    again = [to_json(other.answer(request)) for request in reversed(REQUESTS)]
    assert not any('"kind":"failed"' in reply for reply in first)
    assert first == again[::-1]


def test_recomputation_takes_less_memory_and_more_time(dense):
    none, full = (dense.answer(MeasurePlan(plan, NONE, None, timed_pairs=2)).measurement for plan in (NONE, FULL))
    assert none.outcome is full.outcome is Outcome.OK
    assert full.peak_bytes < none.peak_bytes
    assert none.allocated_bytes <= none.reserved_bytes < none.peak_bytes
    assert {pair.plan == pair.reference for pair in none.pairs} == {True}
    assert full.pairs[0].plan.step_time_s > full.pairs[0].reference.step_time_s


def test_rounds_and_pairs_have_the_same_times(dense):
    pairs = dense.answer(MeasurePlan(FULL, NONE, None, timed_pairs=2)).measurement.pairs
    of_none, of_full = dense.answer(MeasureRounds((NONE, FULL), rounds=3)).samples
    assert of_none == (pairs[0].reference,) * 3
    assert of_full == (pairs[0].plan,) * 3


@pytest.mark.parametrize("policy", ["none", "full", "selective"])
def test_the_slots_of_a_profile_add_up_to_what_is_measured(dense, policy):
    plan = toml(policy)
    profiled = dense.answer(ProfilePlan(plan, with_optimizer=True, timed_steps=1))
    measurement = dense.answer(MeasurePlan(plan, plan, None, timed_pairs=1)).measurement
    assert max(profiled.first.peak_bytes, profiled.steady.peak_bytes) == measurement.allocated_bytes
    assert profiled.steady.step_time_s == pytest.approx(measurement.pairs[0].plan.step_time_s, rel=1e-9)


@pytest.mark.parametrize("spec", [SMALL, MOE])
@pytest.mark.parametrize("policy", ["none", "full"])
def test_slots_hold_what_they_hold_on_a_real_cpu(spec, policy, monkeypatch):
    """Unrounded, what layers leave behind is the same to the byte, and no op's own temporaries make a peak higher.

    The temporaries that only the real allocator sees are inside attention on a CPU and its backward. The state of
    the random number generator, which a region keeps otherwise, lies on the CPU whatever the device.
    """
    monkeypatch.setattr("actune.measure.simulated.tracker.rounded_bytes", lambda size_bytes: size_bytes)
    plan = toml(policy, preserve_rng_state=False) if policy == "full" else toml(policy)
    request = ProfilePlan(plan, with_optimizer=True, timed_steps=1)
    other_tests_bytes = CpuDevice().live_bytes()
    fake, real = (loaded(spec, device)[0].answer(request) for device in ("sim:tiny", "cpu"))
    for simulated, measured in ((fake.first, real.first), (fake.steady, real.steady)):
        assert simulated.live_bytes == measured.live_bytes - other_tests_bytes
        assert [slot.delta_bytes for slot in simulated.slots] == [slot.delta_bytes for slot in measured.slots]
        for ours, theirs in zip(simulated.slots, measured.slots, strict=True):
            assert ours.peak_bytes <= theirs.peak_bytes
        assert simulated.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)


def test_a_plan_over_the_budget(dense):
    peak_bytes = dense.answer(MeasurePlan(FULL, None, None, timed_pairs=0)).measurement.peak_bytes
    reply = dense.answer(MeasurePlan(FULL, None, peak_bytes - 2**22, timed_pairs=0))
    assert reply.measurement.outcome is Outcome.OVER_BUDGET
    assert dense.answer(MeasurePlan(FULL, None, peak_bytes, timed_pairs=0)).measurement.outcome is Outcome.OK


def test_a_plan_that_the_device_has_no_room_for():
    worker, _ = loaded("dense-tiny?batch=32&layers=3")
    reply = worker.answer(MeasurePlan(NONE, None, None, timed_pairs=0))
    assert reply.measurement.outcome is Outcome.OOM
    assert "simulated device" in reply.measurement.message
    assert worker.answer(MeasurePlan(FULL, None, None, timed_pairs=0)).measurement.outcome is Outcome.OK
    fresh, _ = loaded("dense-tiny?batch=32&layers=3")
    again = ProfilePlan(FULL, with_optimizer=True, timed_steps=1)
    assert to_json(worker.answer(again)) == to_json(fresh.answer(again))


def test_gradients_are_not_compared(dense):
    report = dense.answer(CompareGradients(FULL, NONE))
    assert not report.compared
    assert not report.equal


def test_what_loading_says():
    _, reply = loaded(DENSE)
    _, real = loaded(DENSE, "cpu")
    assert reply.environment.device == "sim:tiny"
    assert reply.environment.device_name == "a tiny device for tests (simulated)"
    assert reply.environment.device_total_bytes == 2**28
    assert (reply.target.fingerprint, reply.target.structure) == (real.target.fingerprint, real.target.structure)
    assert reply.target.parameter_bytes == real.target.parameter_bytes


def test_compiled_plans_are_refused(dense):
    reply = dense.answer(MeasurePlan(dump_plan(Plan(compile="layer")), None, None, timed_pairs=0))
    assert (reply.blame, "only eager ops" in reply.message) == ("plan", True)


def test_an_unknown_device_is_told_which_there_are():
    reply = Worker(lambda: None).answer(LoadTarget(DENSE, "sim:tinny", seed=0))
    assert (reply.blame, "Did you mean 'sim:tiny'?" in reply.message) == ("usage", True)
    assert "sim:h100" in Worker(lambda: None).answer(LoadTarget(DENSE, "sims", seed=0)).message


TARGETS = "tests.measure.simulated.targets"


@pytest.mark.parametrize(
    ("name", "message"),
    [("ReadsAValue", r"can't be simulated.*_local_scalar_dense"), ("DependsOnData", r"can't be simulated.*nonzero")],
)
def test_ops_that_need_values(name, message):
    worker, _ = loaded(f"{TARGETS}:{name}")
    reply = worker.answer(ProfilePlan(NONE, with_optimizer=False, timed_steps=0))
    assert reply.blame == "target"
    assert __import__("re").search(message, reply.message), reply.message


def test_a_model_that_can_not_be_built_without_values():
    reply = Worker(lambda: None).answer(LoadTarget(f"{TARGETS}:ReadsValuesWhileBuilt", "sim:tiny", seed=0))
    assert reply.blame == "target"
    assert "on the meta device" in reply.message


def test_shared_tensors_stay_shared():
    worker, _ = loaded(f"{TARGETS}:Shares")
    model = worker._workload.model
    assert model.tied.weight is model.head.weight
    assert model.table_again is model.table
    assert model.head.weight.note == "kept"
    assert not model.frozen.requires_grad


def test_nothing_is_left_behind(dense):
    """Modes are off, the collector is on, real tensors are real again."""
    import gc

    dense.answer(MeasurePlan(FULL, NONE, None, timed_pairs=1))
    assert gc.isenabled()
    with AllocationTrace() as trace:
        assert torch.ones(3).sum().item() == 3
    assert trace.highest_running_sum_bytes() > 0
