"""Where a database is: from the URL that the user gave to what the rest of the store needs to know of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from actune.boundary import shorten
from actune.errors import StorageError

_EXPECTED = "Expected a database URL, such as sqlite:///studies/actune.db."


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
        StorageError: the text is no database URL, or names a SQLite database that is not a file.
    """
    shown = shorten(re.sub(r"://.*@", "://***@", url, flags=re.DOTALL))
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        as_file = f" For a file write sqlite:///{url}." if url and "://" not in url else ""
        raise StorageError(f"storage {shown} is no database URL. {_EXPECTED}{as_file}") from None
    if "@" in (parsed.host or ""):
        raise StorageError(f"storage {shown} has several @. Write the one in a password as %40.")
    if parsed.get_backend_name() != "sqlite":
        # Drivers take one as an option, too.
        shown_query = {key: "***" if "pass" in key.lower() else value for key, value in parsed.query.items()}
        return Location(parsed, None, parsed.set(query=shown_query).render_as_string(hide_password=True))
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StorageError(f"storage {shown}: actune reads SQLite files with Python's own driver. {_EXPECTED}")
    name = parsed.database
    if not name or name == ":memory:" or name.startswith("file:"):
        # Optuna opens the same database over connections of its own, so it has to be a file that both can name.
        raise StorageError(f"storage {shown} is not a SQLite file that outlives this process. {_EXPECTED}")
    path = Path(name)
    return Location(parsed.set(database=str(path.absolute())), path.absolute(), str(path))
