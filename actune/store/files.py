"""SQLite files, as they are before SQLite sees them."""

from __future__ import annotations

from actune.errors import StorageError
from actune.store.location import Location
from actune.store.migrate import no_studies_yet

_SQLITE_MAGIC = b"SQLite format 3\x00"


def check_file(location: Location, *, create: bool) -> None:
    """Before SQLite sees the file, so that one which is no database is never written to. Of a server it checks nothing.

    Args:
        location: of the database.
        create: whether a file that is not there is to be made, and its folder now.

    Raises:
        UsageError: there is no file, or an empty one, and `create` is false.
        StorageError: it is no SQLite database.
        OSError: it can't be read, or its folder can't be made.
    """
    path = location.path
    if path is None:
        return
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_SQLITE_MAGIC))
    except FileNotFoundError:
        magic = b""
    except IsADirectoryError:
        raise StorageError(f"{location.label} is a folder. Name a file with --storage.") from None
    if not magic and not create:
        raise no_studies_yet(location)
    if magic and magic != _SQLITE_MAGIC:
        raise StorageError(
            f"{location.label} is not a SQLite database. Name another file with --storage, or move this one away."
        )
