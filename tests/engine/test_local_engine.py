"""Whatever happens to a worker is a reply, an outcome, or a TargetError; nothing of it is left running."""

from pathlib import Path

import pytest

from actune.engine import LocalEngine
from actune.engine.process import WorkerProcess
from actune.errors import ActuneError, PlanError, StorageError, TargetError, UsageError
from actune.op_trace import TraceLayers
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import CompareGradients, LoadTarget, MeasurePlan, MeasureRounds, Outcome
from tests.processes import marked_processes

FAULTY = Path(__file__).parent.parent / "cli" / "targets" / "faulty.py"
NONE = dump_plan(Plan())
FULL = dump_plan(Plan((Rule(("*",), Treatment("full")),)))


@pytest.fixture
def engine_for(tmp_path, mark):
    def make(name, *, timeout_s=60.0):
        target = LoadTarget(f"{FAULTY}:{name}", "cpu", 0)
        return LocalEngine(target, workers=1, timeout_s=timeout_s, log_folder=tmp_path / "logs")

    return make


def measure(engine, toml):
    return engine.measure(MeasurePlan(toml, None, None, timed_pairs=0))


def test_one_worker_serves_all_requests(engine_for, mark):
    with engine_for("Sound") as engine:
        engine.load()
        before = marked_processes(mark)
        assert measure(engine, NONE).outcome is Outcome.OK
        with pytest.raises(PlanError, match=r"layers\.9"):
            measure(engine, FULL.replace('"*"', '"layers.9"'))
        assert len(engine.measure_rounds(MeasureRounds((NONE, FULL), 2)).samples) == 2
        assert engine.compare_gradients(CompareGradients(FULL, NONE)).equal
        assert [trace.layer_fqn for trace in engine.trace_layers(TraceLayers(NONE)).layers] == ["layers.1"]
        with pytest.raises(PlanError, match=r"'layers\.1' gets full"):
            engine.trace_layers(TraceLayers(FULL))
        assert marked_processes(mark) == before
        assert len(before) == 1


@pytest.mark.parametrize(
    ("name", "outcome", "message"),
    [
        ("KilledUnderAPlan", Outcome.CRASHED, "SIGKILL"),
        ("HangsUnderAPlan", Outcome.TIMEOUT, "--trial-timeout"),
        ("OutOfMemoryUnderAPlan", Outcome.OOM, "MemoryError"),
    ],
)
def test_what_a_plan_does_to_a_worker_is_its_outcome_and_the_next_trial_runs(
    engine_for, monkeypatch, name, outcome, message
):
    with engine_for(name) as engine:
        assert measure(engine, NONE).outcome is Outcome.OK
        with monkeypatch.context() as patch:
            if outcome is Outcome.TIMEOUT:
                patch.setattr(engine, "_timeout_s", 3.0)  # not from the start, when torch is being imported
            failed = measure(engine, FULL)
        assert failed.outcome is outcome
        assert message in failed.message
        assert measure(engine, NONE).outcome is Outcome.OK


def test_worker_that_hangs_says_where(engine_for, monkeypatch):
    with engine_for("ForwardHangs") as engine:
        engine.load()
        monkeypatch.setattr(engine, "_timeout_s", 2.0)
        assert "wait_for_nothing" in measure(engine, NONE).detail


def test_child_of_a_dead_worker_does_not_keep_it_alive(engine_for):
    with engine_for("ForksAndDies", timeout_s=100_000.0) as engine:
        measurement = measure(engine, NONE)
    assert measurement.outcome is Outcome.CRASHED
    assert "exit code 3" in measurement.message


def test_forked_child_does_not_answer_for_the_worker(engine_for):
    with engine_for("ForkedChildReturns") as engine:
        engine.load()
        assert measure(engine, NONE).outcome is Outcome.OK


def test_prints_do_not_reach_the_protocol(engine_for, tmp_path):
    with engine_for("Prints") as engine:
        assert measure(engine, NONE).outcome is Outcome.OK
        assert measure(engine, NONE).outcome is Outcome.OK
    assert "x" * 100_000 in (tmp_path / "logs" / "worker-1.log").read_text()


def test_message_that_is_no_utf8_arrives(engine_for):
    with engine_for("MessageIsNoUtf8") as engine:
        measurement = measure(engine, NONE)
    assert measurement.outcome is Outcome.ERROR
    assert "missing-?" in measurement.message


def test_target_that_cannot_be_loaded_keeps_its_traceback(engine_for):
    with engine_for("ModelRaises") as engine, pytest.raises(TargetError, match="the weights are missing") as caught:
        engine.load()
    assert "ValueError" in caught.value.traceback_path.read_text()
    assert str(caught.value.traceback_path) in str(caught.value)


def test_unknown_name_is_wrong_usage(engine_for):
    with engine_for("Sownd") as engine, pytest.raises(UsageError, match="Did you mean Sound"):
        engine.load()


def test_log_that_cannot_be_written_is_named(tmp_path, mark):
    (tmp_path / "file").touch()
    target = LoadTarget("dense-tiny", "cpu", 0)
    with (
        LocalEngine(target, workers=1, timeout_s=60.0, log_folder=tmp_path / "file" / "logs") as engine,
        pytest.raises(StorageError, match=r"worker-1\.log"),
    ):
        engine.load()


def test_close_ends_a_request_that_runs(engine_for, mark):
    engine = engine_for("ForwardHangs", timeout_s=100_000.0)
    engine.load()
    future = engine.submit(MeasurePlan(NONE, None, None, timed_pairs=0))
    engine.close()
    assert future.cancelled() or future.result().outcome is Outcome.CRASHED


def test_a_worker_that_starts_while_the_engine_closes_is_ended(engine_for, mark, monkeypatch):
    started = []

    def start(log, environment):
        worker = WorkerProcess(log, environment)
        started.append(worker)
        engine.close()  # as another thread may at this moment
        return worker

    engine = engine_for("Sound")
    monkeypatch.setattr("actune.engine.local.WorkerProcess", start)
    with pytest.raises(ActuneError, match="the engine is closed"):
        engine.load()
    assert not started[0].is_alive
