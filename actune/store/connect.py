"""Connections that are set up the way the store needs them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from actune.errors import StorageError
from actune.store.location import Location
from actune.store.server import WRITES, create_server_engine


def create_engine(location: Location, *, busy_timeout_s: float) -> sa.Engine:
    """An engine for the database. Opens nothing yet."""
    if location.path is None:
        return create_server_engine(location, lock_timeout_s=busy_timeout_s)
    engine = sa.create_engine(location.url, connect_args={"timeout": busy_timeout_s})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _SameFile(location.path, location.label).check)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


class _SameFile:
    """Notices that the file is another one than at first. SQLite would go on writing to one that has no name any more,
    and all of it would be gone with the process (https://www.sqlite.org/howtocorrupt.html, section 4.2).
    """

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label
        self._identity: tuple[int, int] | None = None

    def check(self, connection: sa.Connection) -> None:
        """Called before each transaction."""
        try:
            found = self._path.stat()
            identity = (found.st_dev, found.st_ino)
        except FileNotFoundError:
            identity = None
        if self._identity is not None and identity != self._identity:
            raise StorageError(
                f"{self._label} was moved, replaced or removed while it was in use. What was stored is in the file as "
                "it was, with its -wal beside it: bring both back, or name where they are with --storage, and run the "
                "command again."
            )
        self._identity = identity


class OptunaConnection(sqlite3.Connection):
    """A connection whose commits are not synced one by one.

    Optuna commits every attribute of a trial by itself. What it writes lies in the same log as the store's own records,
    before them, and so is synced with them: no record outlives the trial that it belongs to.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous=NORMAL")


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Python's driver would begin transactions late and leave DDL outside of them; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    # With a write-ahead log, synchronous=NORMAL syncs only at checkpoints: a power cut takes back commits of the last
    # minutes. A trial costs seconds to minutes of a device and one sync costs milliseconds, so every commit is synced.
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE: a transaction that read first and then wants to write fails at once, without waiting, if another
    # process wrote in between. One that says so from its start waits for its turn, and what it read stays true.
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def use_wal(engine: sa.Engine, location: Location) -> None:
    """Turns on SQLite's write-ahead log, so that readers and the writer don't wait for each other; it persists.

    Raises:
        StorageError: the file's filesystem can't do it.
    """
    if location.path is None:
        return
    connection = engine.raw_connection()  # outside of a transaction, where alone the mode can change
    try:
        cursor = connection.cursor()
        mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        cursor.close()
    finally:
        connection.close()
    if mode != "wal":
        raise StorageError(
            f"{location.label}: SQLite can't keep a write-ahead log there (journal mode '{mode}'), as on some network "
            f"filesystems. Put the database on a local disk and name it with --storage."
        )
