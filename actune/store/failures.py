"""What went wrong with the database, in words, and what to do about it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from actune.errors import StorageError, shorten
from actune.store.location import Location
from actune.store.server_failures import explain_server_error

_PRIMARY_CODE = 0xFF  # SQLite's extended result codes keep the primary one in their lowest byte

_SQLITE_FAILURES = {
    sqlite3.SQLITE_NOTADB: "is not a SQLite database. Name another file with --storage, or move this one away.",
    sqlite3.SQLITE_CORRUPT: "is damaged: it was cut short or overwritten. Restore it from a copy, or move it away and "
    "start anew; `sqlite3 FILE .recover` may save what is left.",
    sqlite3.SQLITE_READONLY: "is read-only. Give yourself write permission on the file and its folder, or copy it to "
    "where you have it and name the copy with --storage.",
    sqlite3.SQLITE_PERM: "can't be accessed. Check the permissions of the file and its folder.",
    sqlite3.SQLITE_FULL: "can't grow: the disk or your quota is full. Free some space and run the command again; "
    "what was stored before is intact.",
    sqlite3.SQLITE_IOERR: "can't be read or written: the disk reports an error. Check its free space and health.",
}
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def storage_errors(location: Location) -> Iterator[None]:
    """Within it, errors of SQLAlchemy, the driver and the operating system become StorageErrors.

    Raises:
        StorageError: names the database, says what is wrong with it and what to do.
    """
    try:
        yield
    except DBAPIError as error:
        raise StorageError(f"{location.label} {explain_driver_error(error.orig, location)}") from error
    except sqlite3.Error as error:  # from a listener, where SQLAlchemy has nothing to wrap
        raise StorageError(f"{location.label} {explain_driver_error(error, location)}") from error
    except ImportError as error:
        raise StorageError(
            f"{location.label}: the driver for PostgreSQL is missing, or does not load ({_one_line(error)}). "
            f"Install it by `pip install 'actune[postgresql]'`."
        ) from error
    except StatementError as error:
        if isinstance(error.orig, ValueError):  # a value that no record may hold: the caller's fault, not the storage's
            raise error.orig from None
        raise StorageError(f"{location.label}: {_one_line(error)}.") from error
    except SQLAlchemyError as error:
        raise StorageError(f"{location.label}: {_one_line(error)}.") from error
    except OSError as error:
        raise StorageError(explain_os_error(error, location.label)) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes what is damaged
        raise StorageError(f"{location.label} {_SQLITE_FAILURES[sqlite3.SQLITE_CORRUPT]}") from error
    except UnicodeEncodeError as error:  # half a surrogate pair, as in a file's name that is no UTF-8
        raise StorageError(
            f"{location.label} can't keep or find {shorten(error.object)}, which is no UTF-8 text. Name it otherwise."
        ) from error


def explain_driver_error(error: BaseException | None, location: Location) -> str:
    """The end of a sentence that begins with the database's name."""
    extended_code = getattr(error, "sqlite_errorcode", None)
    if extended_code is None:
        return explain_server_error(error, location.url)
    code = extended_code & _PRIMARY_CODE
    if code in _LOCKED:
        return (
            f"is locked by another program ({_one_line(error)}). Close what holds it open for writing, such as a "
            f"database browser or a backup, and run the command again."
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return _explain_cannot_open(location)
    return _SQLITE_FAILURES.get(code) or (
        f"reports: {_one_line(error)}. Its actune tables may have been changed by another program; restore it from a "
        f"copy, or name another file with --storage."
    )


def _explain_cannot_open(location: Location) -> str:
    path = location.path
    if path is not None and not path.parent.is_dir():
        return f"can't be opened: the folder {path.parent} does not exist. Create it, or name another with --storage."
    if path is not None and path.is_dir():
        return "is a folder, not a database file. Name a file with --storage."
    return (
        "can't be opened. You need read and write permission on the file and on its folder: SQLite keeps two files "
        "beside the database even while only reading. Copy it to where you have that, and name the copy with --storage."
    )


def explain_os_error(error: OSError, label: str) -> str:
    """One sentence for what the operating system refused, and one for what to do."""
    where = f"{label} ({error.filename})" if error.filename else label
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: the disk or your quota is full. Free some space and run the command again."
    reason = os.strerror(error.errno) if error.errno else _one_line(error)
    return f"{where} can't be used: {reason}. Check that the folder exists and that you may write to it."


def _one_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
