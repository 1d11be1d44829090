"""One rank of many that are faked: sizes are those of the shards, and what is gathered is compared with nothing."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from actune.engine.process import WorkerProcess
from actune.errors import UsageError
from actune.measure import Workload, compare_gradients, measure_plan, open_device
from actune.measure.materialize import state_of
from actune.measure.ranks import Ranks, local_of
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import CompareGradients, Measurement, MeasurePlan, Outcome, SamplePair, StepSample

TARGETS = Path(__file__).parent.parent / "sharded_targets.py"
NONE, FULL = dump_plan(Plan()), dump_plan(Plan((Rule(("*",), Treatment("full")),)))
pytestmark = pytest.mark.filterwarnings("ignore:DTensor random operators may not have complete support on cpu")
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.fixture
def workload(monkeypatch):
    """Makes a workload; the process group that it joins ends with the test."""
    for name in RANK_VARIABLES:
        monkeypatch.setenv(name, "")  # restored at the end, whatever the workload sets

    def make(name, *, world_size=1):
        spec = f"{TARGETS}:{name}?layers=2&seq=32&batch=2"
        return Workload(spec, open_device("cpu", world_size=world_size), seed=0, world_size=world_size)

    yield make
    if dist.is_initialized():
        dist.destroy_process_group()


def measured(workload, toml):
    return measure_plan(workload, MeasurePlan(toml, None, None, timed_pairs=0)).measurement


def whole_bytes():
    module = torch.nn.Module()
    width, vocabulary = 32, 64
    module.weights = torch.nn.Parameter(torch.empty(2 * 10 * width * width + 2 * vocabulary * width))
    return module.weights.nbytes + 4 * 5 * width


@pytest.mark.parametrize("name", ["Sharded", "OnMeta"])
def test_one_of_four_holds_a_quarter(workload, name):
    one = workload(name, world_size=4)
    assert one.parameter_bytes == whole_bytes() / 4
    assert one.environment.device_name.endswith("(one of 4, the others faked)")
    none, full = measured(one, NONE), measured(one, FULL)
    assert none.outcome is full.outcome is Outcome.OK
    assert full.peak_bytes < none.peak_bytes
    assert not compare_gradients(one, CompareGradients(FULL, NONE)).compared


@pytest.mark.parametrize("name", ["Sharded", "OnMeta", "TensorParallel"])
def test_one_process_is_a_job_of_one_rank_and_starts_each_trial_alike(workload, name):
    alone = workload(name)
    assert alone.parameter_bytes == whole_bytes()
    assert "processes" not in alone.environment.device_name
    start = {fqn: local_of(tensor).clone() for fqn, tensor in state_of(alone.model)}
    assert all(bool(tensor.isfinite().all()) for tensor in start.values())
    assert measured(alone, FULL).outcome is Outcome.OK  # with an optimizer's steps on DTensors
    assert all(torch.equal(local_of(tensor), start[fqn]) for fqn, tensor in state_of(alone.model))
    report = compare_gradients(alone, CompareGradients(FULL, NONE))
    assert report.equal
    assert report.bitwise


def test_a_step_that_fails_in_its_middle_is_the_last(workload):
    alone = workload("LastRankRaises")
    failed = measure_plan(alone, MeasurePlan(FULL, None, None, timed_pairs=0))
    assert failed.measurement.outcome is Outcome.ERROR
    assert failed.worker_spent


def test_target_that_is_not_distributed_is_no_rank(workload):
    with pytest.raises(UsageError, match=r"has no parallelize\(\)"):
        workload("Unsharded", world_size=64)
    assert workload("Unsharded").ranks.world_size == 1
    assert not dist.is_initialized()


def test_ranks_exchange_values_and_no_code(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    measurement = Measurement(Outcome.OK, 2**30, pairs=(SamplePair(StepSample(1.0, 2.0), StepSample(3.0, 4.0)),))
    for value in (None, 1.5, "text", (0.25, "loss"), measurement):
        assert Ranks(0, 1, store=store).gather(value) == [value]

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(pickle.UnpicklingError, match="is no value that ranks exchange"):
        Ranks(0, 1, store=store).gather(Evil())
    with pytest.raises(pickle.UnpicklingError, match=r"actune\.engine.* is no value"):
        Ranks(0, 1, store=store).gather(WorkerProcess)
    assert not (tmp_path / "ran").exists()
