"""A second coordinator that waits for the first one, with real processes on both kinds of database."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actune.store import Store
from tests.cli.conftest import actune_process, ended, wait_until
from tests.search.fakes import Machine, search
from tests.search.test_recovery import check_whole, dying

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parent.parent.parent

# A search on a fake engine, which says "trial" and waits for a line before each of its trials.
SEARCH = """
import sys
from dataclasses import replace
from pathlib import Path
from actune.search import run_search
from actune.store import Store
from tests.search.fakes import SETTINGS, Listener, Machine
machine = Machine()
def gate(_):
    print("trial", flush=True)
    sys.stdin.readline()
machine.before_trial = gate
said = []
def waiting(holder):
    if not said:
        print("waiting for", holder, flush=True)
    said.append(holder)
with Store.open(sys.argv[1], create=True) as store:
    run_search(
        store, "a", replace(SETTINGS, trials=int(sys.argv[2])), log_folder=Path("logs"), reporter=Listener(),
        engine_factory=machine.start, while_held=waiting,
    )
print(len(machine.measured), "measured", flush=True)
"""


@contextmanager
def searching(url: str, *, trials: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SEARCH, url, str(trials)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str], expected: str) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line.startswith(expected), process.stderr.read()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a.db"
    url: str = request.getfixturevalue("server_url")
    return url


def test_a_killed_coordinator_is_followed_at_once_by_the_one_that_waits(url: str) -> None:
    with searching(url, trials=6) as first:
        says(first, "trial")
        first.stdin.write("go\n")  # type: ignore[union-attr]
        first.stdin.flush()  # type: ignore[union-attr]
        says(first, "trial")
        with searching(url, trials=6) as second:
            says(second, f"waiting for process {first.pid} on ")
            first.send_signal(signal.SIGKILL)
            first.wait()
            says(second, "trial")
            out, errors = second.communicate("go\n" * 6)
        assert (second.returncode, errors) == (0, "")
        assert out.splitlines()[-1] == "5 measured"
    with Store.open(url, create=False) as store:
        trials = store.trials("a")
        assert len({trial.plan_hash for trial in trials}) == len(trials) == 6
        assert sorted(trial.attempt for trial in trials) == [1, 1, 1, 1, 1, 2]
        assert store.verdict("a") is not None


def test_who_waited_sees_what_the_other_one_did(url: str, tmp_path: Path) -> None:
    """It has changed the settings and finished the study, so that nothing is left to do, and no target is loaded."""
    with Store.open(url, create=True) as store, dying(Store, "record_trial", call=2, death=KeyboardInterrupt):
        search(store, Machine())
    with searching(url, trials=8) as first:
        says(first, "trial")
        second = actune_process("resume", "a", "--storage", url, "--wait", "--json", folder=tmp_path)
        assert second.stderr is not None
        waits = second.stderr.readline()
        assert f"waiting for process {first.pid} on " in waits
        assert first.communicate("go\n" * 8)[0].splitlines()[-1].endswith("measured")
        result = ended(second)
    assert (result.code, result.err) == (0, "")
    assert len(result.document["trials"]) == 8
    assert result.document["finished"]


def test_an_interrupted_wait_changes_nothing(url: str, tmp_path: Path) -> None:
    machine = Machine()
    with Store.open(url, create=True) as store:
        with dying(Store, "record_trial", call=2, death=KeyboardInterrupt):
            search(store, machine)
        with store.locked("a"):
            for number in (signal.SIGINT, signal.SIGTERM):
                second = actune_process("resume", "a", "--storage", url, "--wait", folder=tmp_path)
                assert second.stderr is not None
                assert "waiting for process" in second.stderr.readline()
                second.send_signal(number)
                result = ended(second)
                assert result.code == 130
                assert "Traceback" not in result.err
                assert "interrupted" in result.err
        search(store, machine)
        check_whole(store, machine, 6)


def test_what_is_wrong_is_said_before_a_wait(url: str, tmp_path: Path) -> None:
    with Store.open(url, create=True) as store:
        search(store, Machine())
        with store.locked("a"):
            command = ("search", "--study", "a", "--seed", 7, "--storage", url, "--wait")
            result = ended(actune_process(*command, folder=tmp_path))
            assert result.code == 2
            assert "was started with --seed 0, not 7" in result.err


def test_two_that_wait_go_one_after_the_other(server_url: str) -> None:
    url = server_url
    with searching(url, trials=4) as first:
        says(first, "trial")
        with searching(url, trials=5) as second, searching(url, trials=5) as third:
            says(second, "waiting for process")
            says(third, "waiting for process")
            first.communicate("go\n" * 4)
            for process in (second, third):
                process.stdin.write("go\n" * 5)  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            wait_until(lambda: second.poll() is not None and third.poll() is not None, what="both ends")
            measured = [int(p.stdout.read().splitlines()[-1].split()[0]) for p in (second, third)]  # type: ignore[union-attr]
    assert sum(measured) <= 1  # with a trial more than the first, of which one of them finds the other's
    with Store.open(url, create=False) as store:
        assert len(store.trials("a")) == 5
