"""Whatever happens to a worker is a reply, an outcome, or a TargetError; nothing of it is left running."""

import pytest

from actune.engine import LocalEngine
from actune.engine.process import WorkerProcess
from actune.errors import ActuneError, PlanError, StorageError
from actune.op_trace import TraceLayers
from actune.records import CompareGradients, LoadTarget, MeasureRounds, Outcome
from tests.engine.contract import FAULTY, FULL, NONE, EngineTestCase, measure
from tests.processes import marked_processes


@pytest.fixture
def engine_for(tmp_path, mark):
    def make(name, *, timeout_s=60.0, workers=1):
        target = LoadTarget(f"{FAULTY}:{name}", "cpu", 0)
        return LocalEngine(target, workers=workers, timeout_s=timeout_s, log_folder=tmp_path / "logs")

    return make


@pytest.fixture
def workers(mark):
    return lambda: marked_processes(mark)


class TestLocalEngine(EngineTestCase):
    pass


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


def test_worker_that_hangs_says_where(engine_for, monkeypatch):
    with engine_for("ForwardHangs") as engine:
        engine.load()
        monkeypatch.setattr(engine, "_timeout_s", 2.0)
        assert "wait_for_nothing" in measure(engine, NONE).detail


def test_forked_child_does_not_answer_for_the_worker(engine_for):
    with engine_for("ForkedChildReturns") as engine:
        engine.load()
        assert measure(engine, NONE).outcome is Outcome.OK


def test_log_that_cannot_be_written_is_named(tmp_path, mark):
    (tmp_path / "file").touch()
    target = LoadTarget("dense-tiny", "cpu", 0)
    with (
        LocalEngine(target, workers=1, timeout_s=60.0, log_folder=tmp_path / "file" / "logs") as engine,
        pytest.raises(StorageError, match=r"worker-1\.log"),
    ):
        engine.load()


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
