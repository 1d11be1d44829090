"""Locks that a PostgreSQL server keeps, and releases when the process or the machine that holds them dies.

They are advisory locks of a session (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS) on a
connection that is used for nothing else. Who holds one is asked of the server too, so the answer is never out of date.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from actune.errors import StorageError
from actune.store.failures import storage_errors
from actune.store.location import Location
from actune.store.server import connection_arguments

POLL_S = 0.2
_SETTLING_TIMEOUT_S = 60.0
_MAX_NAME_LENGTH = 63  # of an application: the server cuts longer ones
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_NAME = re.compile(r"actune (?P<pid>\d+) (?P<since>\S+) (?P<host>.*)")

_SESSION_SETTINGS = {
    "idle_session_timeout": "0",
    "lock_timeout": f"{_SETTLING_TIMEOUT_S:g}s",
}

_HELD = """
    FROM pg_locks AS held JOIN pg_stat_activity AS session ON session.pid = held.pid
    WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND CAST(held.classid AS bigint) = :high AND CAST(held.objid AS bigint) = :low
"""
_HOLDER = sa.text(f"SELECT session.application_name {_HELD}")
_IS_HELD_BY = sa.text(f"SELECT count(*) {_HELD} AND session.pid = :pid AND session.application_name = :name")
# The process id alone is not enough: after a restart the server gives the same ones again. The name is what every user
# may see of a session.
_SESSION = sa.text("SELECT pid, application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")


@dataclass(frozen=True, slots=True)
class _Key:
    """What PostgreSQL knows a lock by: 64 bits."""

    number: int

    @classmethod
    def of(cls, *parts: str) -> _Key:
        digest = hashlib.sha256("\0".join(("actune", *parts)).encode()).digest()
        return cls(int.from_bytes(digest[:8], signed=True))

    def halves(self) -> dict[str, int]:
        """As `pg_locks` shows it."""
        return {"high": (self.number >> 32) & 0xFFFFFFFF, "low": self.number & 0xFFFFFFFF}


class StudyGuard:
    """What the transactions of a study's coordinator check: that the lock is still its own.

    A connection can break while its process lives: the server is restarted, or a network goes away. Then another
    coordinator may take the lock. Each transaction of the first one takes a second lock, shared, and then asks whether
    the first lock is still held by the connection that took it. Who takes the study's lock waits for all holders of the
    second one once. So a transaction has either ended before the next coordinator reads anything, or it fails.
    """

    def __init__(self, location: Location, study: str, key: _Key, transactions: _Key, session: sa.Row[Any]) -> None:
        self._location = location
        self._study = study
        self._key = key
        self._transactions = transactions
        self._session = {"pid": session.pid, "name": session.application_name}

    def check(self, connection: sa.Connection) -> None:
        """To be called at the beginning of a transaction.

        Raises:
            StorageError: the lock was lost.
        """
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({self._transactions.number})")
        if not connection.execute(_IS_HELD_BY, self._key.halves() | self._session).scalar():
            raise StorageError(
                f"{self._location.label}: this search no longer holds the lock on study '{self._study}': the server "
                f"was restarted, or the connection to it broke. Another process may search the study now, so "
                f"nothing more is written. What was measured before is stored; go on by `actune resume {self._study}`."
            )


@contextmanager
def study_lock_of_server(location: Location, study: str, *, while_held: Callable[[str], None]) -> Iterator[StudyGuard]:
    """Holds the study's lock until the block ends.

    Args:
        location: of the database.
        study: its name.
        while_held: called with who holds the lock as long as another process does, a few times a second; raises to give
            up.

    Raises:
        StorageError: the server can't be used.
    """
    with _session(location) as connection:
        with storage_errors(location):
            schema = connection.execute(sa.text("SELECT current_schema()")).scalar() or ""
        key, transactions = _Key.of(schema, "study", study), _Key.of(schema, "transactions", study)
        with _held(connection, key, location, while_held=while_held):
            with storage_errors(location):
                connection.exec_driver_sql(f"SELECT pg_advisory_lock({transactions.number})")
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({transactions.number})")
                session = connection.execute(_SESSION).one()
            yield StudyGuard(location, study, key, transactions, session)


@contextmanager
def setup_lock_of_server(location: Location, *, while_held: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock under which tables are made until the block ends; `while_held` as above.

    Raises:
        StorageError: the server can't be used.
    """
    with _session(location) as connection, _held(connection, _Key.of("setup"), location, while_held=while_held):
        yield


@contextmanager
def _session(location: Location) -> Iterator[sa.Connection]:
    """A connection without transactions, which the server can tell from others and keeps however long it is idle."""
    name = f"actune {os.getpid()} {datetime.now(UTC).strftime(_TIME_FORMAT)} {socket.gethostname()}"
    arguments = connection_arguments(location.url) | {"application_name": name[:_MAX_NAME_LENGTH]}
    with storage_errors(location):
        engine = sa.create_engine(
            location.url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
        )
        connection = engine.connect()
    try:
        with storage_errors(location):
            for setting, value in _SESSION_SETTINGS.items():
                # By way of the server's own list, since older ones don't have all of them.
                connection.execute(
                    sa.text("SELECT set_config(name, :value, false) FROM pg_settings WHERE name = :setting"),
                    {"setting": setting, "value": value},
                )
        yield connection
    finally:
        with suppress(SQLAlchemyError):  # a connection that broke can't be closed in good order
            connection.close()


@contextmanager
def _held(
    connection: sa.Connection, key: _Key, location: Location, *, while_held: Callable[[str], None]
) -> Iterator[None]:
    with storage_errors(location):
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({key.number})").scalar():
            holder = connection.execute(_HOLDER, key.halves()).scalar()
            if holder is not None:  # else it has just let go
                while_held(_described(holder))
                time.sleep(POLL_S)
    try:
        yield
    finally:
        # The server ends a closed session in its own time; the next one need not wait for that.
        with suppress(SQLAlchemyError):
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({key.number})")


def _described(application_name: str) -> str:
    found = _NAME.fullmatch(application_name)
    if found is None:
        return f"a session that calls itself '{application_name}'"
    return f"process {found['pid']} on {found['host']}, since {found['since']}"
