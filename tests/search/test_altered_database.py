"""A search that goes on from a database which another program has altered: it ends well, or in an error of actune's."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from actune.errors import ActuneError, StorageError
from actune.report import study_frontier_document
from actune.store import Store

from .fakes import Machine, search

ODD = (None, 0, -1, 2**62, 1.5, float("inf"), "", "abc", "12", "{}", "[1]", b"\xff", "schema = 1", "1e999", "\x1b[2J")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that stopped after a few trials."""
    path = tmp_path_factory.mktemp("ended") / "actune.db"
    with Store.open(f"sqlite:///{path}", create=True) as store:
        search(store, Machine(), trials=4)
    return path


def columns(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(t, row[1]) for t in sorted(tables) for row in connection.execute(f"PRAGMA table_info({t})")]


def altered(ended: Path, path: Path, rng: random.Random) -> str:
    """A copy with one other value, or without one of its rows."""
    shutil.copy(ended, path)
    table, column = rng.choice(columns(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        rowids = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]
        if not rowids:
            return f"{table} is empty"
        if rng.random() < 0.1:
            connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rng.choice(rowids),))
            return f"{table}: row deleted"
        value = rng.choice(ODD)
        with suppress(sqlite3.IntegrityError):  # it is none that SQLite takes there
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rng.choice(rowids)))
        return f"{table}.{column} = {value!r}"


@pytest.mark.filterwarnings("ignore:The constraint value")  # Optuna's, of a constraint that stands there already
@pytest.mark.parametrize("seed", range(20))
def test_search_on_an_altered_database(ended: Path, tmp_path: Path, seed: int) -> None:
    path = tmp_path / "altered.db"
    what = altered(ended, path, random.Random(seed))
    error: BaseException | None = None
    try:
        with Store.open(f"sqlite:///{path}", create=True) as store:
            search(store, Machine(), trials=5)
    except Exception as raised:
        error = raised
    assert error is None or isinstance(error, ActuneError), what


def test_a_plan_that_is_none_is_the_databases_fault(ended: Path, tmp_path: Path) -> None:
    path = tmp_path / "altered.db"
    shutil.copy(ended, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE actune_plans SET toml = 'no plan'")
    with (
        Store.open(f"sqlite:///{path}", create=False) as store,
        pytest.raises(StorageError, match="holds a plan that this actune can't read"),
    ):
        study_frontier_document(store, "a")
