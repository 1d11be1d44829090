"""The CPU's peak against a closed form, and against an independent count of what ops allocate."""

import pytest
import torch
from torch import nn

from actune.ac import apply_plan
from actune.measure import Workload, measure_plan, open_device
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import MeasurePlan, Outcome
from tests.ac.measures import LiveBytes
from tests.ac.models import stack, uniform

FLOAT_BYTES = 4


@pytest.fixture
def device():
    return open_device("cpu")


def test_closed_form_of_two_linears(device):
    """x (n × d) → w1 (d → h) → w2 (h → d) → sum of squares.

    The peak is in the backward of w2, with float32: the hidden (n × h), kept for w2's gradient; the gradient of the
    output (n × d); w2's gradient (d × h), which stays; the gradient of the hidden (n × h); and two scalars, the loss
    and its gradient. w1's backward holds less: its gradient (d × h) is smaller than the hidden and the output.
    """
    n, d, h = 256, 64, 512
    w1, w2 = nn.Linear(d, h, bias=False), nn.Linear(h, d, bias=False)
    x = torch.randn(n, d)
    start = device.live_bytes()
    with device.peak_probe() as probe:
        (w2(w1(x)) * 1.0).square().sum().backward()
    assert probe.peak_bytes - start == FLOAT_BYTES * (n * h + n * d + d * h + n * h + 2)


class Highest(LiveBytes):
    """The most that was held at once."""

    highest_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.highest_bytes = max(self.highest_bytes, self.live_bytes)
        return out


@pytest.mark.parametrize("policy", ["none", "full", "selective"])
def test_the_peak_covers_what_ops_return(device, policy):
    """A mode sees only what ops return, so the allocator's peak is at least that, and little more at these sizes."""
    model, x = stack(), torch.randn(4, 64, 16)
    if policy != "none":
        apply_plan(model, uniform(Treatment(policy)))

    def run():
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()

    with Highest() as counted:
        run()
    counted_bytes = counted.highest_bytes
    model.zero_grad(set_to_none=True)
    start = device.live_bytes()
    with device.peak_probe() as probe:
        run()
    assert counted_bytes <= probe.peak_bytes - start <= 1.1 * counted_bytes


def test_live_bytes_counts_storages_once_and_leaves_bookkeeping_out(device):
    before = device.live_bytes()
    tensor = torch.zeros(1000)
    views = [tensor[1:], tensor.view(10, 100)]
    assert device.live_bytes() - before == tensor.nbytes
    assert device.live_bytes([tensor]) == device.live_bytes(views) == before
    meta = torch.zeros(1000, device="meta")
    assert device.live_bytes([tensor]) == before
    del meta


def trial(name, plan=None, budget_bytes=None, pairs=0):
    workload = Workload(f"tests.measure.targets:{name}", open_device("cpu"), seed=0)
    request = MeasurePlan(dump_plan(plan or Plan()), dump_plan(Plan()) if pairs else None, budget_bytes, pairs)
    return workload, measure_plan(workload, request)


def test_the_same_peak_on_each_trial_and_less_with_a_plan():
    workload = Workload("dense-tiny?batch=2&seq=128", open_device("cpu"), seed=0)

    def peak(plan):
        measured = measure_plan(workload, MeasurePlan(dump_plan(plan), None, None, 0))
        assert measured.measurement.outcome is Outcome.OK
        assert not measured.worker_spent
        return measured.measurement.peak_bytes

    none, full = Plan(), Plan((Rule(("layers.*",), Treatment("full")),))
    peaks = [peak(plan) for plan in (none, full, none, full)]
    assert peaks[:2] == peaks[2:]
    assert peaks[0] > peaks[1] > workload.parameter_bytes


def test_pairs_alternate_and_are_raw():
    _, measured = trial("Plain", uniform(Treatment("full")), pairs=3)
    assert len(measured.measurement.pairs) == 3
    assert all(sample.step_time_s > 0 for pair in measured.measurement.pairs for sample in (pair.plan, pair.reference))
    assert measured.measurement.compile_s is None


def test_over_the_budget_stops_after_the_first_step():
    workload, measured = trial("Plain", budget_bytes=1000, pairs=2)
    assert measured.measurement.outcome is Outcome.OVER_BUDGET
    assert measured.measurement.peak_bytes > 1000
    assert "is over the budget of 1000 B" in measured.measurement.message
    assert not measured.measurement.pairs
    assert workload.target._build.__self__.batches_asked_for == [0]


def test_within_the_budget_runs_all():
    workload, measured = trial("Plain", budget_bytes=10**9, pairs=2)
    assert measured.measurement.outcome is Outcome.OK
    assert sorted(set(workload.target._build.__self__.batches_asked_for)) == [0, 1, 2, 3, 4]


def test_the_model_is_as_before_after_a_trial():
    workload = Workload("tests.measure.targets:Plain", open_device("cpu"), seed=0)
    before = {name: tensor.clone() for name, tensor in workload.model.state_dict().items()}
    measure_plan(workload, MeasurePlan(dump_plan(uniform(Treatment("selective"))), None, None, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in workload.model.state_dict().items())
    assert all(parameter.grad is None for parameter in workload.model.parameters())
    assert "_actune_application" not in vars(workload.model)


def test_a_leak_asks_for_a_new_worker():
    _, measured = trial("Leaks")
    assert measured.measurement.outcome is Outcome.OK
    assert measured.worker_spent


@pytest.mark.parametrize(
    ("name", "outcome", "message", "spent"),
    [
        ("RunsOutOfMemory", Outcome.OOM, "MemoryError: no more", True),
        ("AsksForTooMuch", Outcome.OOM, "DefaultCPUAllocator: can't allocate memory", True),
        ("Raises", Outcome.ERROR, "ValueError: bad value", False),
    ],
)
def test_what_a_target_raises_is_an_outcome(name, outcome, message, spent):
    workload, measured = trial(name)
    assert measured.measurement.outcome is outcome
    assert message in measured.measurement.message
    assert measured.worker_spent is spent
    assert (measured.measurement.detail is not None) == (outcome is Outcome.ERROR)
    assert "_actune_application" not in vars(workload.model)
