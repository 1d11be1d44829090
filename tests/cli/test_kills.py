"""A coordinator that is killed at each point of a trial's life, by real signals in a real process with real workers.

Each search is started with a line that patches it to kill itself at the point; whoever goes on is not patched.
"""

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing

import optuna
import pytest

from actune.store import Store
from tests.cli.conftest import Ended, actune_process, ended, is_whole, wait_until
from tests.processes import MARK, marked_processes

pytestmark = pytest.mark.faults

TRIALS = 5
SEARCH = ("search", "--target", "dense-tiny?layers=2", "--device", "sim:tiny", "--budget", "70%", "--study", "s")
SEARCH = (*SEARCH, "--trials", TRIALS, "--tolerance", 0, "--sampler", "random")

PATCHED = """
import os, signal, sys
from importlib import import_module
module, owner, method, call, after, number = sys.argv[1:7]
owner = getattr(import_module(module), owner)
original = getattr(owner, method)
calls = 0

def strike():
    os.kill(os.getpid(), int(number))

def wrapped(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(call) and after == "before":
        strike()
    result = original(*args, **kwargs)
    if calls == int(call) and after == "after":
        strike()
    return result

setattr(owner, method, wrapped)
from actune.cli import main
main(sys.argv[7:])
"""

POINTS = {
    "before a trial is asked for": ("optuna", "Study", "ask", 3, "before"),
    "after it is asked for": ("optuna", "Study", "ask", 3, "after"),
    "while it is measured": ("actune.engine", "LocalEngine", "submit", 3, "after"),
    "measured, not yet stored": ("actune.store", "Store", "record_trial", 3, "before"),
    "stored, not yet told": ("actune.store", "Store", "record_trial", 3, "after"),
    "while it is told": ("optuna", "Trial", "set_constraint", 3, "after"),
    "while the study is made": ("actune.store", "Store", "create_study", 1, "after"),
    "while the presets are enqueued": ("optuna", "Study", "enqueue_trial", 2, "after"),
    "during the verdict": ("actune.engine", "LocalEngine", "measure_rounds", 1, "after"),
    "verdict taken, not yet stored": ("actune.store", "Store", "save_verdict", 1, "before"),
}


def start(point, number, folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PATCHED, *map(str, (*point, int(number))), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, MARK: str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(folder):
    """Trials by number, and the states of Optuna's."""
    url = f"sqlite:///{folder}/studies/actune.db"
    with Store.open(url, create=False) as store:
        trials = {trial.number: trial for trial in store.trials("s")} if store.has_study("s") else {}
    with closing(sqlite3.connect(folder / "studies" / "actune.db")) as connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'trials'").fetchall():
            return trials, Counter()
    storage = optuna.storages.RDBStorage(url)
    states = Counter(
        trial.state.name for summary in storage.get_all_studies() for trial in storage.get_all_trials(summary._study_id)
    )
    storage.remove_session()
    storage.engine.dispose()
    return trials, states


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_loses_nothing_that_was_stored_and_leaves_nothing_running(tmp_path, point):
    process = start(POINTS[point], signal.SIGKILL, tmp_path, *SEARCH)
    killed = ended(process)
    assert killed.code == -signal.SIGKILL, killed.err
    wait_until(lambda: not marked_processes(tmp_path), what="the end of the workers")
    assert is_whole(tmp_path / "studies" / "actune.db")
    before, _ = stored(tmp_path)
    result = ended(actune_process(*SEARCH, folder=tmp_path, mark=tmp_path))
    assert result.code == 0, result.err
    after, states = stored(tmp_path)
    assert {number: after[number] for number in before} == before
    assert len(after) == TRIALS == len({trial.plan_hash for trial in after.values()})
    assert not states["RUNNING"]
    wait_until(lambda: not marked_processes(tmp_path), what="the end of every process")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once_with_everything_stored(tmp_path, number):
    # The first one is sent during a trial, the second while the engine closes on its account.
    point = ("actune.engine", "LocalEngine", "close", 1, "before")
    process = start(point, number, tmp_path, *SEARCH, "--trials", 10_000)
    for line in process.stderr:
        if "loading" not in line and "peak" not in line:
            break
    process.send_signal(number)
    result = Ended(*(lambda out, err: (process.returncode, out, err))(*process.communicate(timeout=120)))
    assert result.code == 130
    assert "actune: interrupted. What a search has measured is stored" in result.err
    assert "Traceback" not in result.err
    wait_until(lambda: not marked_processes(tmp_path), what="the end of every process")
    before, _ = stored(tmp_path)
    assert ended(actune_process(*SEARCH, folder=tmp_path)).code == 0
    after, _ = stored(tmp_path)
    assert {trial: after[trial] for trial in before} == before
