"""Brings a database to the schema that this code knows, or says why that can't be."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from actune.errors import StorageError, UsageError
from actune.store.connect import use_wal
from actune.store.location import Location
from actune.store.lock import setup_lock
from actune.store.schema import HEAD_REVISION, VERSION_TABLE
from actune.store.server import WRITES

MIGRATIONS = Path(__file__).parent / "migrations"

_versions = sa.table(VERSION_TABLE, sa.column("version_num", sa.String))


def no_studies_yet(location: Location) -> UsageError:
    """What to tell who asks for studies where none were ever stored."""
    return UsageError(
        f"no studies yet at {location.label}. Run `actune search` to start one, or name another database with "
        f"--storage or ACTUNE_STORAGE."
    )


def ensure_schema(engine: sa.Engine, location: Location, *, create: bool) -> None:
    """Creates or upgrades actune's tables; leaves a database that is up to date untouched.

    Args:
        engine: of the database.
        location: of the database.
        create: whether a database without actune's tables gets them.

    Raises:
        UsageError: the database has no tables of actune's, and `create` is false.
        StorageError: the schema is newer than this code, or another process is setting the database up and hangs.
    """
    revision = _stored_revision(engine)
    if revision == HEAD_REVISION:
        return
    if revision is None and not create:
        raise no_studies_yet(location)
    if revision is not None and revision not in _known_revisions():
        raise StorageError(
            f"{location.label} was written by a newer actune: its schema is '{revision}', and this version knows up to "
            f"'{HEAD_REVISION}'. Upgrade actune, or name another database with --storage."
        )
    with setup_lock(location.full_url):
        use_wal(engine, location)
        _upgrade(engine)


def _stored_revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        revision: str = connection.execute(sa.select(_versions.c.version_num)).scalar_one()
    return revision


def _known_revisions() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}


def _upgrade(engine: sa.Engine) -> None:
    # Here and not at the top: alembic costs as much time as all the rest, and hardly any command needs it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
