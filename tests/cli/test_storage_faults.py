"""A database that fails in the middle of a search: exit code 5, what to do, and the study goes on once that is done."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager

import pytest

from actune.store import Store
from tests.cli.conftest import actune_process, ended, is_whole, wait_until
from tests.processes import MARK, marked_processes

pytestmark = pytest.mark.faults

SEARCH = ("search", "--target", "dense-tiny?layers=2", "--device", "sim:tiny", "--budget", "100%", "--study", "s")
SEARCH = (*SEARCH, "--tolerance", 0, "--sampler", "random")
IMPATIENT = """
from actune.store.store import Store
Store.open.__func__.__kwdefaults__["busy_timeout_s"] = 0.5
from actune.cli import main
main()
"""


@contextmanager
def searching(folder, *, code="from actune.cli import main; main()"):
    """A search that comes to no end by itself; ended when the block does."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, SEARCH), "--trials", "10000"],
        cwd=folder,
        env={**os.environ, MARK: str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fill(path):
    """Takes what is left of the disk."""
    with path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(2**12))


def trials_of(folder):
    with Store.open(f"sqlite:///{folder}/studies/actune.db", create=False) as store:
        return {trial.number: trial for trial in store.trials("s")}


def wait_for_trial(process):
    """Until the search says that a trial has ended."""
    for line in process.stderr:
        if "trial 2/" in line:
            return
    pytest.fail("the search ended before its second trial")


def goes_on(folder, before):
    """The study ends well, with what was stored before unchanged in it."""
    wait_until(lambda: not marked_processes(folder), what="the end of every process")
    assert is_whole(folder / "studies" / "actune.db")
    kept = trials_of(folder)
    assert {number: kept[number] for number in before} == before
    result = ended(actune_process(*SEARCH, "--trials", len(kept) + 1, folder=folder))
    assert result.code == 0, result.err
    after = trials_of(folder)
    assert {number: after[number] for number in kept} == kept
    assert len(after) == len(kept) + 1 == len({trial.plan_hash for trial in after.values()})


@contextmanager
def disk(path, size):
    """A disk of its own, in memory."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk(tmp_path):
    with disk(tmp_path / "disk", "16m") as folder:
        with searching(folder) as process:
            wait_for_trial(process)
            before = trials_of(folder)
            with pytest.raises(OSError, match="No space left"):
                fill(folder / "filler")
            result = ended(process)
        assert result.code == 5, result.err
        assert "actune.db can't grow: the disk or your quota is full. Free some space" in result.err
        (folder / "filler").unlink()
        goes_on(folder, before)


def test_a_disk_that_is_read_only(tmp_path):
    with disk(tmp_path / "disk", "64m") as folder:
        assert ended(actune_process(*SEARCH, "--trials", 2, folder=folder)).code == 0
        before = trials_of(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        result = ended(actune_process(*SEARCH, "--trials", 4, folder=folder))
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        assert result.code == 5, result.err
        assert "actune.db can't be opened. You need read and write permission" in result.err
        goes_on(folder, before)


def test_a_database_that_another_program_keeps_locked(tmp_path):
    with searching(tmp_path, code=IMPATIENT) as process:
        wait_for_trial(process)
        before = trials_of(tmp_path)
        with closing(sqlite3.connect(tmp_path / "studies" / "actune.db", timeout=60)) as other:
            other.execute("BEGIN IMMEDIATE")
            result = ended(process)
            other.rollback()
    assert result.code == 5, result.err
    assert "is locked by another program" in result.err
    goes_on(tmp_path, before)


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "replaced"])
def test_a_database_that_is_taken_away(tmp_path, removed):
    path, away = tmp_path / "studies" / "actune.db", tmp_path / "away"
    with searching(tmp_path) as process:
        wait_for_trial(process)
        before = trials_of(tmp_path)
        away.mkdir()
        for name in ("actune.db", "actune.db-wal", "actune.db-shm"):
            (path.parent / name).rename(away / name)
        if not removed:
            path.write_bytes(b"")
        result = ended(process)
    assert result.code == 5, result.err
    assert "actune.db was moved, replaced or removed while it was in use" in result.err
    for file in away.iterdir():
        file.replace(path.parent / file.name)
    goes_on(tmp_path, before)


def test_a_database_of_a_newer_actune(tmp_path):
    assert ended(actune_process(*SEARCH, "--trials", 1, folder=tmp_path)).code == 0
    with closing(sqlite3.connect(tmp_path / "studies" / "actune.db")) as connection:
        connection.execute("UPDATE actune_alembic_version SET version_num = '9999'")
        connection.commit()
    for command in (("show", "s"), ("resume", "s"), SEARCH, ("studies",), ("export", "s")):
        result = ended(actune_process(*command, folder=tmp_path))
        assert result.code == 5
        assert "was written by a newer actune: its schema is '9999'" in result.err


def test_a_process_that_is_killed_in_the_middle_of_a_write(tmp_path):
    """By the system, between two pages of a transaction: a file has reached its limit, and the signal is deadly."""
    killed = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); "
    killed += "resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19)); from actune.cli import main; main()"
    with searching(tmp_path, code=killed) as process:
        result = ended(process)
    assert result.code == -signal.SIGXFSZ, result.err
    goes_on(tmp_path, {})
