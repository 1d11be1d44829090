"""Several workers on one processor: peaks side by side, times one at a time, and all of them measure the same."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from actune.engine import LocalEngine
from actune.engine.process import WorkerProcess
from actune.engine.sameness import check_same
from actune.errors import TargetError, UsageError
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import Environment, Loaded, LoadTarget, MeasurePlan, ModelStructure, Outcome, TakeTurn, TargetInfo

LOGGING = Path(__file__).parent / "targets" / "logging_steps.py"
NONE = dump_plan(Plan())
FULL = dump_plan(Plan((Rule(("*",), Treatment("full")),)))
PAIRS = 3
LOADED = Loaded(
    TargetInfo("dense-tiny", "0123", ModelStructure((), ()), 1, 1),
    Environment("cuda", "A card", 1, 1, "2.11", "3.11", "Linux"),
)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.faults)])
def test_nothing_runs_while_a_trial_is_timed(tmp_path, monkeypatch, mark, workers):
    log = tmp_path / "steps"
    log.mkdir()
    monkeypatch.setenv("ACTUNE_TEST_STEPS", str(log))
    monkeypatch.setenv("ACTUNE_TEST_WORKERS", str(workers))
    target = LoadTarget(f"{LOGGING}:LoggingSteps", "cpu", 0)
    request = MeasurePlan(FULL, NONE, None, PAIRS)
    with LocalEngine(target, workers=workers, timeout_s=120.0, log_folder=tmp_path / "logs") as engine:
        engine.load()
        found = [future.result() for future in [engine.submit(request) for _ in range(workers)]]
    assert [(one.outcome, len(one.pairs)) for one in found] == [(Outcome.OK, PAIRS)] * workers
    steps = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in log.iterdir()}
    assert len(steps) == workers
    timed = 2 * (PAIRS + 1)  # with a step of each plan to warm up
    for worker, of_worker in steps.items():
        begin, end = of_worker[-timed][0], of_worker[-1][1]
        others = [step for other, of_other in steps.items() if other != worker for step in of_other]
        assert not [step for step in others if step[0] < end and step[1] > begin]
    # Before that all were within their first step at once: it waits for the others'.
    assert max(of_worker[0][0] for of_worker in steps.values()) < min(of_worker[0][1] for of_worker in steps.values())


def test_a_worker_that_is_told_something_else_than_its_turn_ends(tmp_path, mark):
    worker = WorkerProcess(tmp_path / "log", {})
    target = LoadTarget("dense-tiny", "cpu", 0)
    assert isinstance(worker.ask(target, timeout_s=120.0, take_turn=lambda: None), Loaded)

    def say_something_else():
        worker._send(target)

    request = replace(MeasurePlan(NONE, NONE, None, 1), waits_for_turn=True)
    with pytest.raises(Exception, match="exit code 1") as caught:
        worker.ask(request, timeout_s=120.0, take_turn=say_something_else)
    assert "a turn was waited for, not" in caught.value.log_tail


def test_a_turn_that_nobody_waits_for_is_no_request(tmp_path, mark):
    worker = WorkerProcess(tmp_path / "log", {})
    with pytest.raises(Exception, match="not a request"):
        worker.ask(TakeTurn(), timeout_s=120.0, take_turn=lambda: None)
    assert not worker.is_alive


def test_a_worker_that_died_between_two_trials_costs_neither_of_them(tmp_path, mark):
    target = LoadTarget(f"{LOGGING}:LoggingSteps", "cpu", 0)
    with LocalEngine(target, workers=1, timeout_s=120.0, log_folder=tmp_path / "logs") as engine:
        engine.load()
        (worker,) = engine._alive
        os.kill(worker.pid, signal.SIGKILL)
        worker._process.wait()
        assert engine.measure(MeasurePlan(NONE, None, None, timed_pairs=0)).outcome is Outcome.OK


def test_workers_on_unlike_devices_do_not_measure_one_study():
    check_same(LOADED, LOADED, where="worker 2")
    other = replace(LOADED, environment=replace(LOADED.environment, device_name="Another card"))
    with pytest.raises(UsageError, match="worker 2: device_name is 'Another card', and 'A card' where the first"):
        check_same(LOADED, other, where="worker 2")


def test_a_target_that_is_edited_during_a_search_ends_it(tmp_path, mark):
    path = tmp_path / "mine.py"
    path.write_text(f"{LOGGING.read_text()}\n\nclass Mine(LoggingSteps):\n    pass\n")
    target = LoadTarget(f"{path}:Mine", "cpu", 0)
    with LocalEngine(target, workers=1, timeout_s=120.0, log_folder=tmp_path / "logs") as engine:
        engine.load()
        path.write_text(path.read_text() + "\nEDITED = True\n")
        (worker,) = engine._alive
        os.kill(worker.pid, signal.SIGKILL)
        worker._process.wait()
        with pytest.raises(TargetError, match=r"worker 2: target '.*' is no longer what the search began with"):
            engine.measure(MeasurePlan(NONE, None, None, timed_pairs=0))
