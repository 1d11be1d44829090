"""Where a database is: from the URL that the user gave to what the rest of the store needs to know of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from actune.boundary import shorten
from actune.errors import StorageError

_EXPECTED = "Expected a database URL, such as sqlite:///studies/actune.db or postgresql://user@host/database."
POSTGRESQL = "postgresql+psycopg"
# What libpq and providers of databases write. They can mean one driver alone, as actune is tested with no other.
_POSTGRESQL_ALIASES = ("postgres", "postgresql")


@dataclass(frozen=True, slots=True)
class Location:
    """A database.

    Attributes:
        url: with an absolute path if it is a file, so that a change of the working folder doesn't move it.
        path: the SQLite file, None for a database server.
        label: what messages call it; never holds a password.
    """

    url: sa.URL
    path: Path | None
    label: str

    @property
    def full_url(self) -> str:
        """The URL as a string, password included."""
        return self.url.render_as_string(hide_password=False)


def parse_location(url: str) -> Location:
    """The database that a URL names. Opens nothing.

    Raises:
        StorageError: the text is no database URL, names a SQLite database that is not a file, or a kind of database
            that actune is not tested with.
    """
    # Wherever an @ is, what stands before it may be a password: URLs that are mistyped are shown too.
    without_user = re.sub(r"^(\w*:?/*).*@", r"\1***@", url, flags=re.DOTALL)
    shown = shorten(re.sub(r"(pass\w*=)[^&]*", r"\1***", without_user, flags=re.IGNORECASE))
    try:
        parsed = sa.make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
    except (ArgumentError, ValueError):
        as_file = f" For a file write sqlite:///{url}." if url and not re.search("://|@|pass", url) else ""
        raise StorageError(f"storage {shown} is no database URL. {_EXPECTED}{as_file}") from None
    if "@" in (parsed.host or ""):
        raise StorageError(f"storage {shown} has several @. Write the one in a password as %40.")
    if not is_sqlite and "@" in (parsed.database or ""):
        raise StorageError(f"storage {shown} has an @ in the name of its database. {_EXPECTED}")
    if not is_sqlite:
        return _server_location(parsed)
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StorageError(f"storage {shown}: actune reads SQLite files with Python's own driver. {_EXPECTED}")
    name = parsed.database
    if not name or name == ":memory:" or name.startswith("file:"):
        # Optuna opens the same database over connections of its own, so it has to be a file that both can name.
        raise StorageError(f"storage {shown} is not a SQLite file that outlives this process. {_EXPECTED}")
    path = Path(name)
    return Location(parsed.set(database=str(path.absolute())), path.absolute(), str(path))


def _server_location(parsed: sa.URL) -> Location:
    if parsed.drivername in _POSTGRESQL_ALIASES:
        parsed = parsed.set(drivername=POSTGRESQL)
    secrets = [key for key in parsed.query if "pass" in key.lower()]  # libpq takes it there too
    label = parsed.difference_update_query(secrets).render_as_string(hide_password=True)
    if parsed.drivername != POSTGRESQL:
        raise StorageError(
            f"storage {shorten(label)}: actune keeps studies in SQLite files (sqlite:///studies/actune.db) and in "
            f"PostgreSQL by its driver psycopg 3 (postgresql://user@host/database), not by '{parsed.drivername}'. Name "
            f"one of these with --storage."
        )
    if not parsed.database:
        raise StorageError(f"storage {shorten(label)} names no database. {_EXPECTED}")
    return Location(parsed, None, label)
