"""Several processes and sudden deaths, with real processes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from actune.store import Store, setup_lock

from .contract import record
from .examples import ENVIRONMENT, SETTINGS, TARGET, VERDICT, trial

TESTS = Path(__file__).parent.parent

WRITE_FOREVER = """
import sys
from itertools import count
sys.path.insert(0, sys.argv[2])
from store.contract import record
from actune.store import Store
store = Store.open(sys.argv[1], create=False)
for number in count():
    record(store, "a", number)
    print(number, flush=True)
"""

OPEN_AT_ONCE = """
import sys
sys.path.insert(0, sys.argv[2])
from store.contract import record
from store.examples import ENVIRONMENT, SETTINGS, TARGET
from actune.store import Store
import alembic.command
print("ready", flush=True)
sys.stdin.readline()
with Store.open(sys.argv[1], create=True) as store:
    store.create_study(sys.argv[3], SETTINGS, TARGET, ENVIRONMENT)
    for number in range(10):
        record(store, sys.argv[3], number)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize("after", [1, 40])
def test_killed_writer_loses_no_trial_that_it_had_stored(url: str, tmp_path: Path, after: int) -> None:
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
    with start(WRITE_FOREVER, url, str(TESTS)) as writer:
        assert writer.stdout is not None
        for number in range(after):
            assert writer.stdout.readline() == f"{number}\n"
        writer.kill()
        reported = after + len(writer.stdout.read().split())
    with Store.open(url, create=False) as store:
        kept = store.trials("a")
        assert reported <= len(kept) <= reported + 1
        assert kept == [trial(number) for number in range(len(kept))]
        record(store, "a", len(kept))
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_processes_that_open_a_new_file_at_once(url: str) -> None:
    names = ["a", "b", "c"]
    writers = [start(OPEN_AT_ONCE, url, str(TESTS), name) for name in names]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
    with Store.open(url, create=False) as store:
        assert sorted(summary.study.name for summary in store.studies()) == names
        for name in names:
            assert store.trials(name) == [trial(number) for number in range(10)]


def test_optuna_shares_the_file(url: str, tmp_path: Path) -> None:
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        with setup_lock(url):
            storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
        study = optuna.create_study(storage=storage, study_name="a")
        for number in range(5):
            drawn = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            record(store, "a", drawn.number)
            study.tell(drawn, number)
        storage.engine.dispose()
    with Store.open(url, create=True) as store:
        store.save_verdict("a", VERDICT)
        assert store.trials("a") == [trial(number) for number in range(5)]
        storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
        again = optuna.load_study(storage=storage, study_name="a")
        assert [item.value for item in again.trials] == [0, 1, 2, 3, 4]
        storage.engine.dispose()
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_store_can_be_added_to_optunas_file(url: str) -> None:
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=storage, study_name="theirs")
    storage.engine.dispose()
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        storage = optuna.storages.RDBStorage(url)
        assert [item.study_name for item in optuna.get_all_study_summaries(storage)] == ["theirs"]
        storage.engine.dispose()


def test_reads_beside_a_thread_that_writes(url: str) -> None:
    with Store.open(url, create=True) as writer, Store.open(url, create=False, busy_timeout_s=1) as reader:
        writer.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        thread = threading.Thread(target=lambda: [record(writer, "a", number) for number in range(50)])
        thread.start()
        seen = [0]
        while thread.is_alive():
            kept = reader.trials("a")
            assert kept == [trial(number) for number in range(len(kept))]
            seen.append(len(kept))
        thread.join()
        assert seen == sorted(seen)
        assert len(reader.trials("a")) == 50
