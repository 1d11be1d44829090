"""What the engine makes of tasks that came to no end. A bridge of canned ends stands in for Ray."""

import os
from concurrent.futures import Future

import pytest

from actune import __version__
from actune.boundary import from_json, to_json
from actune.engine.on_ray import RayEngine, ray_engine, task
from actune.engine.on_ray.messages import Ended, Job, Lost, Problem, Started
from actune.errors import ActuneError, DeviceMemoryError, PlanError, TargetError, UsageError
from actune.records import LoadTarget, Measured, Measurement, MeasureRounds, Outcome, RoundsMeasured
from tests.engine.contract import NONE, request_of
from tests.store.examples import ENVIRONMENT, TARGET

ROUNDS = MeasureRounds((NONE,), 1)
LOADED = ray_engine.Loaded(TARGET, ENVIRONMENT)
CRASHED = Lost("crashed", "node a (0123) died or was taken away")


@pytest.fixture
def engine_with(monkeypatch, tmp_path):
    def make(*ends):
        left = list(ends)

        class Bridge:
            def __init__(self, connect, log_path):
                pass

            def submit(self, job):
                ended = Future()
                ended.set_result(left.pop(0))
                return len(ends) - len(left), ended

            def close(self):
                assert not left, "asked less often than expected"

        monkeypatch.setattr(ray_engine, "Bridge", Bridge)
        return RayEngine(LoadTarget("dense-tiny", "cpu", 0), workers=1, timeout_s=1.0, log_folder=tmp_path)

    return make


def ended(answer=None, problem=None, loaded=LOADED):
    return Ended("a (0123)", loaded, answer, problem, {"worker-1.log": "printed"})


@pytest.mark.parametrize(
    ("cause", "outcome"),
    [
        ("crashed", Outcome.CRASHED),
        ("oom", Outcome.OOM),
        ("timeout", Outcome.TIMEOUT),
        ("closed", Outcome.CRASHED),
    ],
)
def test_a_trial_that_is_lost_is_an_outcome_and_not_run_again(engine_with, cause, outcome):
    with engine_with(Lost(cause, "why")) as engine:
        assert engine.measure(request_of(NONE)) == Measurement(outcome, message="why")


@pytest.mark.parametrize("cause", ["broken", "unplaceable"])
def test_a_node_that_is_unfit_is_no_outcome(engine_with, cause):
    found = pytest.raises(ActuneError, match=r"no actune there\. .*actune resume")
    with engine_with(Lost(cause, "no actune there")) as engine, found:
        engine.measure(request_of(NONE))


def test_other_requests_run_again_once_if_their_node_dies(engine_with):
    with engine_with(CRASHED, ended(RoundsMeasured(()))) as engine:
        assert engine.measure_rounds(ROUNDS) == RoundsMeasured(())
    with (
        engine_with(CRASHED, CRASHED) as engine,
        pytest.raises(TargetError, match=r"side by side: node a \(0123\) died"),
    ):
        engine.measure_rounds(ROUNDS)


@pytest.mark.parametrize(("cause", "error"), [("oom", DeviceMemoryError), ("timeout", TargetError)])
def test_other_requests_that_would_fail_again_do_not_run_again(engine_with, cause, error):
    with engine_with(Lost(cause, "why")) as engine, pytest.raises(error, match="timing the plans side by side: why"):
        engine.measure_rounds(ROUNDS)


@pytest.mark.parametrize(
    ("blame", "error", "message"),
    [
        ("plan", PlanError, "^why$"),
        ("usage", UsageError, r"^node a \(0123\): why"),
        ("memory", DeviceMemoryError, r"^node a \(0123\): why"),
        ("target", TargetError, r"^node a \(0123\): why\. The traceback or last output is in "),
        ("other", ActuneError, r"^node a \(0123\): why$"),
    ],
)
def test_problems_of_a_node_are_the_errors_that_they_were_there(engine_with, tmp_path, blame, error, message):
    failed = ended(problem=Problem(blame, "why", "Traceback …"), loaded=None)
    with engine_with(failed) as engine, pytest.raises(error, match=message) as caught:
        engine.measure(request_of(NONE))
    assert type(caught.value) is error
    assert (tmp_path / "worker-1.log").read_text() == "node a (0123)\nprinted\n"


def test_logs_of_an_earlier_start_stay(engine_with, tmp_path):
    for _ in range(2):
        with engine_with(ended(Measured(Measurement(Outcome.OK)))) as engine:
            engine.measure(request_of(NONE))
    assert (tmp_path / "worker-1.log").read_text() == "node a (0123)\nprinted\n" * 2


class EngineWithoutTarget:
    """A node's own engine, where there is no such file."""

    def __init__(self, target, *, workers, timeout_s, log_folder):
        (log_folder / "worker-1.log").write_text("printed")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def load(self):
        raise UsageError("there is no file mine.py.")


@pytest.mark.parametrize(("folder", "hint"), [("/nowhere", True), (None, False)])
def test_a_node_without_the_folder_says_so(monkeypatch, tmp_path, folder, hint):
    monkeypatch.setattr(task, "LocalEngine", EngineWithoutTarget)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")  # as Ray sets it
    monkeypatch.setenv("MKL_NUM_THREADS", "64")
    job = Job(LoadTarget("mine.py:A", "cpu", 0), None, 1.0, folder, {"OMP_NUM_THREADS": "2"}, __version__)
    started, last = task.run_job(to_json(job), __version__, "a (0123)")
    assert from_json(Started, started) == Started("a (0123)")
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("MKL_NUM_THREADS")) == ("2", None)
    found = from_json(Ended, last)
    assert (found.loaded, found.answer, found.logs) == (None, None, {"worker-1.log": "printed"})
    assert found.problem.message.startswith("there is no file mine.py.")
    assert ("has no folder /nowhere" in found.problem.message) is hint
