"""Backups of SQLite files that are in use."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from actune.errors import StorageError, UsageError
from actune.store.failures import storage_errors
from actune.store.files import check_file
from actune.store.location import Location, parse_location
from actune.store.migrate import no_studies_yet
from actune.store.schema import VERSION_TABLE

_BUSY_TIMEOUT_S = 60.0
_OF_THE_SOURCE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def back_up(url: str, path: Path, *, force: bool) -> int:
    """Copies a SQLite database to a file, as it is at one moment, while others read and write it: the file's bytes.

    By SQLite's backup API (https://www.sqlite.org/backup.html), all pages in one step, so that a writer neither waits
    nor makes it start again. The copy is made beside the file, checked, synced, and only then gets its name: it is
    there as a whole or not at all. It is one file without a log.

    Args:
        url: of the database.
        path: of the new file; its folder has to exist.
        force: whether a file that is there is replaced.

    Raises:
        UsageError: the database is a server's, there are no studies, or the file exists and `force` is false.
        StorageError: the database can't be read or is damaged, or the file can't be written.
    """
    location = parse_location(url)
    if location.path is None:
        raise UsageError(
            f"{location.label} is a database of a server, whose own program makes backups: "
            f"`pg_dump --format=custom --file=FILE {location.url.database}`. A single study is copied to a file by "
            f"`actune copy-study NAME --to sqlite:///FILE`."
        )
    with storage_errors(location):
        check_file(location, create=False)
    target = Location(location.url.set(database=str(path)), path.absolute(), str(path))
    with storage_errors(target):
        _check_target(location.path, path, force=force)
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    unfinished = Path(name)
    try:
        os.close(number)
        _copy(location, target, unfinished)
        with storage_errors(target):
            size_bytes = unfinished.stat().st_size
            _publish(unfinished, path, force=force)
    finally:
        for left in ("", "-journal", "-wal", "-shm"):
            with suppress(OSError):
                unfinished.with_name(f"{unfinished.name}{left}").unlink(missing_ok=True)
    return size_bytes


def _check_target(database: Path, path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise StorageError(f"{path} is a folder. Name a file in it.")
    if path.exists() and path.samefile(database):
        raise UsageError(f"{path} is the database itself. Name another file for the backup.")
    if path.exists() and not force:
        raise _exists(path)
    for log in (path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-journal")):
        if log.exists():
            raise StorageError(
                f"{log} is there: {path} is, or was, a database in use, and SQLite would add what that log holds "
                f"to the backup. Name another file, or see what uses {path} and end it."
            )


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists already. Name another file, or have it replaced by --force.")


def _copy(location: Location, target: Location, unfinished: Path) -> None:
    assert location.path is not None
    with storage_errors(target):
        shutil.copymode(location.path, unfinished)
        connection = sqlite3.connect(unfinished, isolation_level=None)
    with closing(connection) as copy:
        copy.execute("PRAGMA synchronous=OFF")  # it is synced as a whole
        with storage_errors(location), closing(sqlite3.connect(location.path, timeout=_BUSY_TIMEOUT_S)) as source:
            found = source.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (VERSION_TABLE,)).fetchone()
            if found is None:
                raise no_studies_yet(location)
            try:
                source.backup(copy, pages=-1)
            except sqlite3.Error as error:
                if error.sqlite_errorcode & 0xFF in _OF_THE_SOURCE:
                    raise
                with storage_errors(target):  # what is left goes wrong while pages are written
                    raise
        with storage_errors(target):
            copy.execute("PRAGMA journal_mode=DELETE")  # else it could not be read where nothing can be written
            problem = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != "ok":
        raise StorageError(
            f"{location.label} is damaged, and so would be a backup: {problem.partition(chr(10))[0]}. Restore it from "
            f"an earlier one; `sqlite3 FILE .recover` may save what is left."
        )


def _publish(unfinished: Path, path: Path, *, force: bool) -> None:
    _sync(unfinished)
    if not force:
        try:
            os.link(unfinished, path)  # which fails where a file has come up in the meantime, unlike a renaming
        except FileExistsError:
            raise _exists(path) from None
        except OSError:  # a filesystem without hard links
            if path.exists():
                raise _exists(path) from None
            unfinished.replace(path)
    else:
        unfinished.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
