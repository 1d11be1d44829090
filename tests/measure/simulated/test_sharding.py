"""One rank of several: the same step as that of one device, but for what FSDP2 adds and takes away, in closed form."""

import pytest

from actune.boundary import to_json
from actune.device_spec import load_device_spec
from actune.measure.simulated.caching_allocator import rounded_bytes
from actune.plan import Plan, Treatment, dump_plan
from actune.records import Failed, LoadTarget, MeasurePlan, Outcome
from actune.step_profile import ProfilePlan
from actune.worker import Worker

RANKS = 4
LAYERS = 3
SPEC = f"dense-tiny?layers={LAYERS}"
TINY = load_device_spec("tiny")
NONE = Treatment("none")


def loaded(world_size, spec=SPEC):
    worker = Worker(lambda: None)
    reply = worker.answer(LoadTarget(spec, "sim:tiny", seed=0, world_size=world_size))
    assert not isinstance(reply, Failed), reply
    return worker


@pytest.fixture(scope="module")
def workers():
    return loaded(1), loaded(RANKS)


def profiles(workers, treatment):
    plan = dump_plan(Plan.from_treatments({f"layers.{i}": treatment for i in range(LAYERS)}))
    replies = [worker.answer(ProfilePlan(plan, with_optimizer=True, timed_steps=1)) for worker in workers]
    assert not any(isinstance(reply, Failed) for reply in replies), replies
    return replies


def share(size_bytes):
    return rounded_bytes(-(-size_bytes // RANKS))


@pytest.fixture(scope="module")
def model(workers):
    return workers[1]._workload.model


def whole(module):
    return rounded_bytes(sum(parameter.nbytes for parameter in module.parameters()))


def saved(parameters):
    """What a rank does not have of them."""
    return sum(rounded_bytes(p.nbytes) - share(p.nbytes) for p in parameters)


@pytest.mark.parametrize("treatment", [NONE, Treatment("full"), Treatment("selective")], ids=lambda t: t.policy)
def test_each_slot_has_what_is_gathered_and_sharded_in_it(workers, model, treatment):
    one, many = (profiled.steady for profiled in profiles(workers, treatment))
    layer = whole(model.layers["0"])
    in_layers = set(model.layers.parameters())
    of_root = [parameter for parameter in model.parameters() if parameter not in in_layers]
    root = rounded_bytes(sum(parameter.nbytes for parameter in of_root))
    layer_gradients = saved(model.layers["0"].parameters())

    # Parameters, and both averages of the optimizer: all but the step counts, which are the smallest block anyway.
    assert one.live_bytes - many.live_bytes == 3 * saved(model.parameters())

    assert [(slot.kind, slot.call) for slot in one.slots] == [(slot.kind, slot.call) for slot in many.slots]
    differences = [
        (slot.kind, of_many.delta_bytes - slot.delta_bytes) for slot, of_many in zip(one.slots, many.slots, strict=True)
    ]
    forward = [difference for kind, difference in differences if kind == "forward"]
    backward = [difference for kind, difference in differences if kind == "backward"]
    # The first one gathers itself and the next, and frees itself; the last one only frees itself.
    assert forward == [layer, 0, -layer]
    # The last layer gathers itself and the one before. The first one's end shows when its input's gradient is there.
    assert backward == [layer - layer_gradients, -layer_gradients, 0]
    outer = [difference for kind, difference in differences if kind == "outer"]
    assert outer[0] == root
    assert outer[-1] == -layer - layer_gradients - root - saved(of_root)
    assert set(outer[1:-1]) == {0}
    assert differences[-1] == ("optimizer", 0)


def test_two_layers_are_whole_at_a_time(workers, model):
    one, many = (profiled.steady for profiled in profiles(workers, NONE))
    layer = whole(model.layers["0"])
    for slot, of_many in zip(one.slots, many.slots, strict=True):
        if slot.kind == "forward":
            gathered = {0: 2, 1: 1, 2: 0}[slot.call]
            assert of_many.peak_bytes - slot.peak_bytes == gathered * layer


def test_the_optimizers_state_and_transients_are_shared(workers):
    one, many = profiles(workers, NONE)
    first, of_many = (profiled.first.slots[-1] for profiled in (one, many))
    model = workers[1]._workload.model
    assert first.kind == "optimizer"
    assert first.delta_bytes - of_many.delta_bytes == 2 * saved(model.parameters())
    assert of_many.step_time_s < first.step_time_s / 2


def test_a_slot_takes_the_longer_of_work_and_communication(workers, model):
    one, many = (profiled.steady for profiled in profiles(workers, NONE))
    gather_s = sum(p.nbytes for p in model.layers["0"].parameters()) * (1 - 1 / RANKS) / TINY.interconnect_bytes_per_s
    forward = [
        (a.step_time_s, b.step_time_s) for a, b in zip(one.slots, many.slots, strict=True) if a.kind == "forward"
    ]
    assert forward[0][1] == pytest.approx(gather_s + max(gather_s, forward[0][0]), rel=1e-6)
    assert forward[1][1] == pytest.approx(max(gather_s, forward[1][0]), rel=1e-6)
    assert forward[2][1] == pytest.approx(forward[2][0], rel=1e-6)
    backward = [
        (a.step_time_s, b.step_time_s) for a, b in zip(one.slots, many.slots, strict=True) if a.kind == "backward"
    ]
    assert backward[1][1] == pytest.approx(max(2 * gather_s, backward[1][0]), rel=1e-6)


def test_communication_that_work_does_not_hide():
    """One token in a batch: layers wait for their parameters."""
    worker = loaded(RANKS, f"{SPEC}&batch=1&seq=1")
    model = worker._workload.model
    gather_s = sum(p.nbytes for p in model.layers["0"].parameters()) * (1 - 1 / RANKS) / TINY.interconnect_bytes_per_s
    steady = worker.answer(ProfilePlan(dump_plan(Plan()), with_optimizer=True, timed_steps=1)).steady
    times_s = {(slot.kind, slot.call): slot.step_time_s for slot in steady.slots}
    assert times_s["forward", 1] == pytest.approx(gather_s, rel=1e-6)
    assert times_s["backward", 1] == pytest.approx(2 * gather_s, rel=1e-6)


def test_more_ranks_than_a_node_has_go_over_the_network():
    near, far = (
        loaded(ranks, f"{SPEC}&batch=1&seq=1").answer(ProfilePlan(dump_plan(Plan()), False, 0)).steady.step_time_s
        for ranks in (TINY.devices_per_node, TINY.devices_per_node + 1)
    )
    assert far > 3 * near


def test_the_same_twice_and_a_measurement_agrees(workers):
    plan = dump_plan(Plan())
    request = ProfilePlan(plan, with_optimizer=True, timed_steps=1)
    many = workers[1].answer(request)
    assert to_json(many) == to_json(workers[1].answer(request)) == to_json(loaded(RANKS).answer(request))
    measurement = workers[1].answer(MeasurePlan(plan, plan, None, timed_pairs=2)).measurement
    assert measurement.outcome is Outcome.OK
    assert measurement.allocated_bytes == max(many.first.peak_bytes, many.steady.peak_bytes)
    assert measurement.pairs[0].plan.step_time_s == pytest.approx(many.steady.step_time_s, rel=1e-9)


def test_out_of_memory_leaves_nothing_gathered():
    spec = "dense-tiny?batch=40&layers=3"
    worker = loaded(RANKS, spec)
    before = worker._workload.device.live_bytes()
    assert worker.answer(MeasurePlan(dump_plan(Plan()), None, None, 0)).measurement.outcome is Outcome.OOM
    assert worker._workload.device.live_bytes() == before


def test_what_loading_says(workers):
    reply = Worker(lambda: None).answer(LoadTarget(SPEC, "sim:tiny", seed=0, world_size=RANKS))
    assert reply.environment.device_name == "a tiny device for tests (simulated, one of 4)"
    assert reply.target.fingerprint == workers[0]._workload.fingerprint


@pytest.mark.parametrize(
    ("device", "world_size", "message"),
    [("cpu", 2, "has no parallelize(), so each of 2 processes"), ("sim:tiny", 0, "0 is no number of devices")],
)
def test_wrong_world_sizes(device, world_size, message):
    reply = Worker(lambda: None).answer(LoadTarget(SPEC, device, seed=0, world_size=world_size))
    assert (reply.blame, message in reply.message) == ("usage", True)
