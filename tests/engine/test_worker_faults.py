"""What a plan may do to a worker, each fault a real one: its outcome, what it says, and that the next trial runs."""

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from actune.engine import LocalEngine
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import LoadTarget, MeasurePlan, Outcome
from tests.cli.conftest import wait_until
from tests.processes import left_behind, marked_processes

pytestmark = pytest.mark.faults

FAULTS = Path(__file__).parent / "targets" / "faults.py"
NONE = dump_plan(Plan())
FULL = dump_plan(Plan((Rule(("*",), Treatment("full")),)))
COMPILED = dump_plan(Plan((Rule(("*",), Treatment("full")),), "layer"))
HANG_S = 3.0


@pytest.fixture
def engine_for(tmp_path, mark):
    def make(name):
        target = LoadTarget(f"{FAULTS}:{name}", "cpu", 0)
        return LocalEngine(target, workers=1, timeout_s=120.0, log_folder=tmp_path / "logs")

    return make


def measure(engine, toml):
    return engine.measure(MeasurePlan(toml, None, None, timed_pairs=0))


def worker_pid(engine):
    (worker,) = engine._alive
    return worker.pid


@pytest.mark.parametrize(
    ("name", "outcome", "message"),
    [
        ("RaisesMemoryError", Outcome.OOM, "MemoryError"),
        ("RunsOutOfAddressSpace", Outcome.OOM, "can't allocate memory"),
        ("Segfaults", Outcome.CRASHED, "killed by SIGSEGV"),
        ("WritesGarbage", Outcome.CRASHED, "the worker wrote what is no reply: b'\\x00\\xff{]garbage"),
        ("WritesHalfAReply", Outcome.CRASHED, "the worker wrote what is no reply"),
        ("ClosesEverything", Outcome.CRASHED, "the worker"),
        ("RunsOutOfFiles", Outcome.ERROR, "Too many open files"),
        ("RecursesWithoutEnd", Outcome.ERROR, "RecursionError"),
        ("InterruptsItself", Outcome.ERROR, "KeyboardInterrupt"),
        ("SysExits", Outcome.ERROR, "SystemExit: 3"),
    ],
)
def test_a_fault_under_a_plan_is_its_outcome_and_the_next_trial_runs(engine_for, name, outcome, message):
    with engine_for(name) as engine:
        before = measure(engine, NONE)
        failed = measure(engine, FULL)
        after = measure(engine, NONE)
    assert failed.outcome is outcome
    assert message in failed.message
    assert before.outcome is after.outcome is Outcome.OK
    assert before.peak_bytes == after.peak_bytes


@pytest.mark.parametrize(
    ("name", "toml", "place"),
    [
        ("Stops", FULL, None),
        ("HangsInBackward", FULL, "wait_in_backward"),
        ("HangsInCompile", COMPILED, "wait_in_compile"),
    ],
)
def test_a_hang_is_ended_and_says_where(engine_for, monkeypatch, mark, name, toml, place):
    with engine_for(name) as engine:
        assert measure(engine, NONE).outcome is Outcome.OK
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_timeout_s", HANG_S)
            hung = measure(engine, toml)
        assert not left_behind(lambda: marked_processes(mark))
        assert measure(engine, NONE).outcome is Outcome.OK
    assert hung.outcome is Outcome.TIMEOUT
    assert "no reply to 'measure' within 3 s, the cap that --trial-timeout sets" in hung.message
    assert place is None or place in hung.detail


@contextmanager
def cgroup(limit_bytes):
    """A control group whose members together get no more memory; the caller puts processes into it."""
    root = Path("/sys/fs/cgroup")
    version_2 = (root / "cgroup.controllers").exists()
    folder = (root if version_2 else root / "memory") / f"actune-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield folder
    finally:
        for _ in range(100):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.05)  # its last process is not quite gone


def test_a_worker_that_the_system_kills_for_its_memory_is_out_of_memory(engine_for):
    with engine_for("FillsMemory") as engine, cgroup(2**28) as group:
        assert measure(engine, NONE).outcome is Outcome.OK
        (group / "cgroup.procs").write_text(str(worker_pid(engine)))
        killed = measure(engine, FULL)
        assert measure(engine, NONE).outcome is Outcome.OK
    assert (killed.outcome, killed.message) == (Outcome.OOM, "killed by the system, which ran out of memory")


@pytest.mark.parametrize("name", ["LeaksFiles", "LeaksAllFiles", "LeaksMemory"])
def test_a_worker_that_leaks_is_replaced(engine_for, name):
    with engine_for(name) as engine:
        assert measure(engine, NONE).outcome is Outcome.OK
        sound = worker_pid(engine)
        assert measure(engine, NONE).outcome is Outcome.OK
        assert worker_pid(engine) == sound
        assert measure(engine, FULL).outcome is Outcome.OK
        assert not engine._alive
        assert measure(engine, NONE).outcome is Outcome.OK


def test_a_forged_reply_does_not_become_the_next_trials(engine_for):
    with engine_for("ForgesAReply") as engine:
        peak_bytes = measure(engine, NONE).peak_bytes
        assert measure(engine, FULL).peak_bytes == 1
        assert measure(engine, NONE).peak_bytes == peak_bytes


def test_forged_replies_to_later_requests_end_the_worker(engine_for):
    with engine_for("ForgesLaterReplies") as engine:
        peak_bytes = measure(engine, NONE).peak_bytes
        forged = measure(engine, FULL)
        assert (forged.outcome, forged.peak_bytes) == (Outcome.CRASHED, None)
        assert "a reply to request 99" in forged.message
        assert measure(engine, NONE).peak_bytes == peak_bytes


def test_stdin_of_a_target_is_empty_and_its_own(engine_for):
    with engine_for("TakesStdin") as engine:
        assert measure(engine, FULL).outcome is Outcome.OK
        pid = worker_pid(engine)
        assert measure(engine, FULL).outcome is Outcome.OK
        assert worker_pid(engine) == pid


def test_logs_that_somebody_removed_are_no_part_of_a_worker_s_fate(engine_for, monkeypatch, tmp_path):
    monkeypatch.setenv("ACTUNE_TEST_LOGS", str(tmp_path / "logs"))
    with engine_for("LosesItsLogs") as engine:
        killed = measure(engine, FULL)
        assert (killed.outcome, killed.message) == (Outcome.CRASHED, "the worker was killed by SIGKILL")
        assert "can't be read" in killed.detail
        assert measure(engine, NONE).outcome is Outcome.OK


def test_a_daemon_that_a_target_starts_does_not_outlive_its_worker(engine_for, mark):
    with engine_for("LeavesDaemons") as engine:
        assert measure(engine, FULL).outcome is Outcome.OK
        assert len(marked_processes(mark)) == 2
    # It is nobody's child any more, so nobody has waited for its end, which the fixture does.


def test_the_coordinator_keeps_nothing_of_workers_that_died(engine_for):
    with engine_for("Segfaults") as engine:
        measure(engine, FULL)
        files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(3):
            assert measure(engine, FULL).outcome is Outcome.CRASHED
        wait_until(lambda: threading.active_count() <= threads, what="the end of the workers' threads")
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files, what="the end of the workers' pipes")
