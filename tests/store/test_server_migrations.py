"""The migrations on a PostgreSQL server: the same tables as in a file, from every revision, whole or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from actune.errors import StorageError
from actune.store import Store
from actune.store.schema import HEAD_REVISION, VERSION_TABLE, metadata
from tests.postgresql import PostgresServer

from .examples import ENVIRONMENT, SETTINGS, TARGET, trial
from .test_migrations import UNDO


def differences(url: str, expected: sa.MetaData) -> list[object]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_server_default": True}
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), expected)
    engine.dispose()
    return found


def named(url: str) -> dict[str, object]:
    """Keys and the names of constraints, which alembic's own comparison passes over."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found: dict[str, object] = {
        name: (
            inspector.get_pk_constraint(name),
            sorted(map(str, inspector.get_foreign_keys(name))),
            sorted(map(str, inspector.get_unique_constraints(name))),
            sorted(map(str, inspector.get_indexes(name))),
        )
        for name in inspector.get_table_names()
        if name != VERSION_TABLE
    }
    engine.dispose()
    return found


def test_migrated_schema_is_the_one_in_the_code(server: PostgresServer, server_url: str) -> None:
    Store.open(server_url, create=True).close()
    assert differences(server_url, metadata) == []
    direct = server.new_database()
    engine = sa.create_engine(server.url(direct))
    metadata.create_all(engine)
    engine.dispose()
    assert named(server_url) == named(server.url(direct))
    server.drop(direct)


@pytest.mark.parametrize("revision", ["0001", *sorted(UNDO)[:-1]])
def test_older_schema_is_upgraded_in_place(server: PostgresServer, database: str, revision: str) -> None:
    url = server.url(database)
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        store.set_budgets("a", (2**40,))
        study = store.study("a")
        store.record_trial("a", trial(0), reference_hash=None, budget_bytes=None)
    for later in sorted(UNDO, reverse=True):
        if later > revision:
            server.execute(UNDO[later], database=database)
    server.execute(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'", database=database)
    with Store.open(url, create=False) as store:
        assert store.study("a") == study
        assert store.trials("a") == [trial(0)]
        lost = trial(1, measured=replace(trial(1).measurement, lost_race=True))
        store.record_trial("a", lost, reference_hash=None, budget_bytes=None)
        assert store.trials("a") == [trial(0), lost]
    assert differences(url, metadata) == []


def test_newer_schema_is_refused(server: PostgresServer, database: str) -> None:
    Store.open(server.url(database), create=True).close()
    server.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'", database=database)
    with pytest.raises(StorageError, match=rf"newer actune: its schema is '9999'.*'{HEAD_REVISION}'\. Upgrade actune"):
        Store.open(server.url(database), create=True)


def test_failed_migration_leaves_nothing_behind(server: PostgresServer, database: str) -> None:
    server.execute("CREATE TABLE actune_verdicts (x int)", database=database)
    with pytest.raises(StorageError, match='relation "actune_verdicts" already exists'):
        Store.open(server.url(database), create=True)
    tables = server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=database)
    assert tables == [("actune_verdicts",)]
