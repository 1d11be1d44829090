"""One coordinator per study: locks that the operating system releases when their process dies."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from actune.boundary import from_json, to_json
from actune.errors import ActuneError, StorageError
from actune.store.failures import storage_errors
from actune.store.location import Location, parse_location
from actune.store.names import validate_study_name

SETUP_TIMEOUT_S = 60.0
MAX_HOLDER_BYTES = 2**14


@dataclass(frozen=True, slots=True)
class _Holder:
    pid: int
    host: str
    started_at: str


@contextmanager
def study_lock(store_url: str, study_name: str) -> Iterator[None]:
    """Makes this process the study's only coordinator until the block ends, or the process does.

    The lock is this machine's, or that of all machines that share the folder of a SQLite file if its filesystem shares
    locks. The folder of a SQLite file has to exist: open the store first.

    Raises:
        ActuneError: another process holds the lock; the message says which and since when.
        StorageError: the lock file can't be made.
        UsageError: the name is none that a study may have.
    """
    location = parse_location(store_url)
    path = _lock_path(location, validate_study_name(study_name))
    holder_path = path.with_suffix(".holder")
    lock = FileLock(path, timeout=0)
    with storage_errors(location):
        try:
            lock.acquire()
        except Timeout:
            raise ActuneError(_held_message(study_name, location, holder_path)) from None
    try:
        with storage_errors(location):
            _write_holder(holder_path)
        yield
    finally:
        # Before the release: after it the file may be the next holder's. One left behind by a killed process does no
        # harm, since only the lock tells whether someone holds it.
        with suppress(OSError):
            holder_path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def setup_lock(store_url: str) -> Iterator[None]:
    """Held while tables are created in the database, actune's or Optuna's: neither survives two processes doing it.

    Raises:
        StorageError: the lock file can't be made, or another process held it for a minute.
    """
    location = parse_location(store_url)
    path = _lock_path(location, None)
    lock = FileLock(path, timeout=SETUP_TIMEOUT_S)
    with storage_errors(location):
        try:
            lock.acquire()
        except Timeout:
            raise StorageError(
                f"{location.label}: another process has been setting this database up for {SETUP_TIMEOUT_S:g} s. "
                f"See what holds {path}, end it, and run the command again."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _lock_path(location: Location, study_name: str | None) -> Path:
    """Of a study's lock, or of the database's own, which no study's name can collide with."""
    suffix = ".lock" if study_name is None else f"-{study_name}.lock"
    if location.path is not None:
        path = location.path.resolve()  # so that a symlink to the database leads to the same lock
        if not path.parent.is_dir():  # filelock would make it, and so hide a mistyped path
            raise StorageError(
                f"{location.label}: the folder {path.parent} does not exist. Create it, or name another."
            )
        return path.with_name(path.name + suffix)
    identity = location.url.set(password=None).render_as_string()
    folder = _cache_folder() / "actune" / "locks"
    with storage_errors(location):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / (hashlib.sha256(identity.encode()).hexdigest()[:16] + suffix)


def _cache_folder() -> Path:
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    configured = os.environ.get(variable, "")
    return Path(configured) if configured else Path.home() / ".cache"


def _write_holder(path: Path) -> None:
    holder = _Holder(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))
    unfinished = path.with_suffix(f".{holder.pid}.tmp")
    unfinished.write_text(to_json(holder), encoding="utf-8")
    unfinished.replace(path)  # in one step: who finds the lock held never reads half a file


def _held_message(study_name: str, location: Location, holder_path: Path) -> str:
    try:
        with holder_path.open("rb") as file:
            holder: _Holder = from_json(_Holder, file.read(MAX_HOLDER_BYTES))
        who = f"process {holder.pid} on {holder.host}, since {holder.started_at}"
    except (OSError, ValueError):  # in the moment between taking the lock and writing this file
        who = "another process, which has only just started"
    return (
        f"study '{study_name}' at {location.label} is being searched by {who}. Wait until it ends, stop it, or give "
        f"this search another name with --study."
    )
