"""What any engine has to do. A new kind passes EngineTestCase, given fixtures `engine_for` and `workers`.

`engine_for(name, workers=1)` makes an engine for a target of `faulty.py`, whose logs go to `tmp_path / "logs"`;
`workers()` returns the process ids of its workers and of what these have started.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actune.errors import ActuneError, PlanError, TargetError, UsageError
from actune.op_trace import TraceLayers
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import CompareGradients, MeasurePlan, MeasureRounds, Outcome
from actune.step_profile import ProfilePlan
from tests.processes import left_behind

FAULTY = Path(__file__).parent.parent / "cli" / "targets" / "faulty.py"
NONE = dump_plan(Plan())
FULL = dump_plan(Plan((Rule(("*",), Treatment("full")),)))


def request_of(toml):
    return MeasurePlan(toml, None, None, timed_pairs=0)


def measure(engine, toml):
    return engine.measure(request_of(toml))


def wait_until(condition, *, what, limit_s=60.0):
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"{what} has not come about"
        time.sleep(0.05)


def is_given_up(future):
    """A request that was still waiting, one whose worker was loading the target, and one that was being carried out."""
    if future.cancelled() or isinstance(future.exception(), ActuneError):
        return True
    return future.result().outcome is Outcome.CRASHED


class EngineTestCase:
    cap_s = 3.0
    """For a request that hangs; longer where loading falls under it too."""

    def make_ready(self, engine):
        """Has a worker load the target before a test, where an engine keeps its workers."""
        engine.load()

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, workers):
        """Whatever a test does, its workers are gone once the engine is closed."""
        yield
        assert not left_behind(workers)

    def test_all_requests_are_answered(self, engine_for):
        with engine_for("Sound", workers=2) as engine, ThreadPoolExecutor(max_workers=2) as threads:
            loaded = threads.submit(engine.load)
            timed = threads.submit(engine.measure_rounds, MeasureRounds((NONE, FULL), 2))
            compared = threads.submit(engine.compare_gradients, CompareGradients(FULL, NONE))
            traced = threads.submit(engine.trace_layers, TraceLayers(NONE))
            profiled = threads.submit(engine.profile, ProfilePlan(NONE, with_optimizer=False, timed_steps=1))
            untraced = threads.submit(engine.trace_layers, TraceLayers(FULL))
            misfit = engine.submit(request_of(FULL.replace('"*"', '"layers.9"')))
            assert loaded.result().target.structure.layer_fqns == ("layers.0", "layers.1", "layers.2")
            assert len(timed.result().samples) == 2
            assert compared.result().equal
            assert [trace.layer_fqn for trace in traced.result().layers] == ["layers.1"]
            assert profiled.result().steady.slots
            with pytest.raises(PlanError, match=r"'layers\.1' gets full"):
                untraced.result()
            with pytest.raises(PlanError, match=r"layers\.9"):
                misfit.result()

    def test_requests_run_beside_each_other(self, engine_for, workers):
        with engine_for("ForwardHangs", workers=2, timeout_s=100_000.0) as engine:
            asked = [engine.submit(request_of(NONE)) for _ in range(3)]
            wait_until(lambda: len(workers()) == 2, what="two workers")
            assert not any(future.done() for future in asked)
        assert all(is_given_up(future) for future in asked)

    @pytest.mark.parametrize(
        ("name", "outcome", "message"),
        [
            ("KilledUnderAPlan", Outcome.CRASHED, "SIGKILL"),
            pytest.param("HangsUnderAPlan", Outcome.TIMEOUT, "--trial-timeout", marks=pytest.mark.faults),
            ("OutOfMemoryUnderAPlan", Outcome.OOM, "MemoryError"),
        ],
    )
    def test_what_a_plan_does_to_a_worker_is_its_outcome_and_the_next_trial_runs(
        self, engine_for, monkeypatch, name, outcome, message
    ):
        with engine_for(name) as engine:
            self.make_ready(engine)
            with monkeypatch.context() as patch:
                if outcome is Outcome.TIMEOUT:
                    patch.setattr(engine, "_timeout_s", self.cap_s)  # not from the start, when torch is being imported
                failed = measure(engine, FULL)
            assert failed.outcome is outcome
            assert message in failed.message
            if outcome is Outcome.TIMEOUT:
                assert "in misbehave" in failed.detail
            assert measure(engine, NONE).outcome is Outcome.OK

    def test_child_of_a_dead_worker_does_not_keep_it_alive(self, engine_for):
        with engine_for("ForksAndDies", timeout_s=100_000.0) as engine:
            measurement = measure(engine, NONE)
        assert measurement.outcome is Outcome.CRASHED
        assert "exit code 3" in measurement.message

    def test_prints_do_not_reach_the_protocol(self, engine_for, tmp_path):
        with engine_for("Prints") as engine:
            assert measure(engine, NONE).outcome is Outcome.OK
            assert measure(engine, NONE).outcome is Outcome.OK
        assert "x" * 100_000 in (tmp_path / "logs" / "worker-1.log").read_text()

    def test_message_that_is_no_utf8_arrives(self, engine_for):
        with engine_for("MessageIsNoUtf8") as engine:
            measurement = measure(engine, NONE)
        assert measurement.outcome is Outcome.ERROR
        assert "missing-?" in measurement.message
        assert "FileNotFoundError" in measurement.detail

    def test_target_that_cannot_be_loaded_keeps_its_traceback(self, engine_for):
        with engine_for("ModelRaises") as engine, pytest.raises(TargetError, match="the weights are missing") as caught:
            engine.load()
        assert "ValueError" in caught.value.traceback_path.read_text()
        assert str(caught.value).endswith(f"The traceback or last output is in {caught.value.traceback_path}")
        assert str(caught.value).count("traceback") == 1

    def test_unknown_name_is_wrong_usage(self, engine_for):
        with engine_for("Sownd") as engine, pytest.raises(UsageError, match="Did you mean Sound"):
            engine.load()

    def test_close_ends_a_request_that_runs(self, engine_for, workers):
        engine = engine_for("ForwardHangs", timeout_s=100_000.0)
        future = engine.submit(request_of(NONE))
        wait_until(workers, what="a worker")
        engine.close()
        assert not left_behind(workers)
        assert is_given_up(future)
        with pytest.raises(ActuneError, match="the engine is closed"):
            measure(engine, NONE)
