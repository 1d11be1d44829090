"""One coordinator per study: locks that the system or the database's server releases when their process dies."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from actune.boundary import from_json, to_json
from actune.errors import ActuneError, StorageError
from actune.store.advisory import POLL_S, StudyGuard, setup_lock_of_server, study_lock_of_server
from actune.store.failures import storage_errors
from actune.store.location import Location, parse_location
from actune.store.names import validate_study_name

SETUP_TIMEOUT_S = 60.0
MAX_HOLDER_BYTES = 2**14

WhileHeld = Callable[[str], None]
"""Called a few times a second with who holds a lock, such as `process 7 on host, since …`; may raise to give up."""


@dataclass(frozen=True, slots=True)
class _Holder:
    pid: int
    host: str
    started_at: str


@contextmanager
def study_lock(store_url: str, study_name: str, *, while_held: WhileHeld | None = None) -> Iterator[StudyGuard | None]:
    """Makes this process the study's only coordinator until the block ends, or the process does.

    In a database of a server, the lock is that server's, and the same for all machines. Beside a SQLite file it is this
    machine's, or that of all machines that share the file's folder if its filesystem shares locks. The folder of a
    SQLite file has to exist: open the store first.

    Args:
        store_url: of the database.
        study_name: the study's.
        while_held: with it, waits until no other process holds the lock.

    Yields:
        What the study's transactions check, since the lock of a server can be lost; None for a file, whose can't.

    Raises:
        ActuneError: another process holds the lock, and `while_held` is None; the message says which and since when.
        StorageError: the lock file can't be made, or the server can't be used.
        UsageError: the name is none that a study may have.
    """
    location = parse_location(store_url)
    validate_study_name(study_name)
    if while_held is None:

        def while_held(holder: str) -> None:
            raise ActuneError(
                f"study '{study_name}' at {location.label} is being searched by {holder}. Wait for its end with "
                f"--wait, stop it, or give this search another name with --study."
            )

    if location.path is None:
        with study_lock_of_server(location, study_name, while_held=while_held) as guard:
            yield guard
    else:
        with _study_file_lock(location, location.path, study_name, while_held):
            yield None


@contextmanager
def setup_lock(store_url: str) -> Iterator[None]:
    """Held while tables are created in the database, actune's or Optuna's: neither survives two processes doing it.

    Raises:
        StorageError: the lock can't be made, or another process held it for a minute.
    """
    location = parse_location(store_url)
    end_s = time.monotonic() + SETUP_TIMEOUT_S

    def while_held(holder: str) -> None:
        if time.monotonic() > end_s:
            raise StorageError(
                f"{location.label}: another process has been setting this database up for {SETUP_TIMEOUT_S:g} s: "
                f"{holder}. End it, and run the command again."
            )

    if location.path is None:
        with setup_lock_of_server(location, while_held=while_held):
            yield
        return
    path = _lock_path(location, location.path, ".lock")
    with _held(FileLock(path), location, lambda: while_held(f"what holds {path}")):
        yield


@contextmanager
def _study_file_lock(location: Location, database: Path, study_name: str, while_held: WhileHeld) -> Iterator[None]:
    path = _lock_path(location, database, f"-{study_name}.lock")
    holder_path = path.with_suffix(".holder")
    with _held(FileLock(path), location, lambda: while_held(_holder(holder_path))):
        with storage_errors(location):
            _write_holder(holder_path)
        try:
            yield
        finally:
            # Before the release: after it the file may be the next holder's. One left behind by a killed process does
            # no harm, since only the lock tells whether someone holds it.
            with suppress(OSError):
                holder_path.unlink(missing_ok=True)


@contextmanager
def _held(lock: FileLock, location: Location, while_held: Callable[[], None]) -> Iterator[None]:
    with storage_errors(location):
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                while_held()
                time.sleep(POLL_S)
    try:
        yield
    finally:
        lock.release()


def _lock_path(location: Location, database: Path, suffix: str) -> Path:
    """Of a study's lock, or of the database's own, which no study's name can collide with."""
    path = database.resolve()  # so that a symlink to the database leads to the same lock
    if not path.parent.is_dir():  # filelock would make it, and so hide a mistyped path
        raise StorageError(f"{location.label}: the folder {path.parent} does not exist. Create it, or name another.")
    return path.with_name(path.name + suffix)


def _write_holder(path: Path) -> None:
    holder = _Holder(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))
    unfinished = path.with_suffix(f".{holder.pid}.tmp")
    unfinished.write_text(to_json(holder), encoding="utf-8")
    unfinished.replace(path)  # in one step: who finds the lock held never reads half a file


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            holder: _Holder = from_json(_Holder, file.read(MAX_HOLDER_BYTES))
    except (OSError, ValueError):  # in the moment between taking the lock and writing this file
        return "another process, which has only just started"
    return f"process {holder.pid} on {holder.host}, since {holder.started_at}"
