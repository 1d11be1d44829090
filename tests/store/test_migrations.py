"""The migrations lead to the tables that the code works with, and never touch a database that is newer."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from actune.errors import StorageError
from actune.records import CompiledCode
from actune.store import Store
from actune.store.migrate import MIGRATIONS
from actune.store.schema import HEAD_REVISION, VERSION_TABLE, metadata

from .examples import ENVIRONMENT, SETTINGS, TARGET, measurement, prediction, trial


def differences(path: Path, expected: sa.MetaData) -> list[object]:
    def is_ours(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or (name is not None and name.startswith("actune_") and name != VERSION_TABLE)

    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "include_name": is_ours}
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), expected)
    engine.dispose()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    Store.open(f"sqlite:///{path}", create=True).close()
    return path


def test_migrated_schema_is_the_one_in_the_code(path: Path) -> None:
    assert differences(path, metadata) == []


def test_comparison_sees_a_column_an_index_and_a_type_that_differ(path: Path) -> None:
    other = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(other)
    trials = other.tables["actune_trials"]
    trials.append_column(sa.Column("extra", sa.Integer))
    sa.Index("ix_extra", trials.c.preset)
    other.tables["actune_plans"].c.toml.type = sa.Integer()
    assert len(differences(path, other)) == 3


def described(path: Path) -> dict[str, object]:
    engine = sa.create_engine(f"sqlite:///{path}")
    inspector = sa.inspect(engine)
    found: dict[str, object] = {
        name: (
            [column | {"type": str(column["type"])} for column in inspector.get_columns(name)],
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


def test_keys_and_the_names_of_constraints_are_those_in_the_code(path: Path, tmp_path: Path) -> None:
    # Alembic's own comparison passes over primary keys, and over names.
    engine = sa.create_engine(f"sqlite:///{tmp_path}/direct.db")
    metadata.create_all(engine)
    engine.dispose()
    assert described(path) == described(tmp_path / "direct.db")
    assert all(name.startswith("actune_") for name in described(path))


def test_head_in_the_code_is_the_migrations_head() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD_REVISION


UNDO = {
    "0002": "DROP TABLE actune_predictions",
    "0003": "ALTER TABLE actune_measurements DROP COLUMN lost_race",
    "0004": "ALTER TABLE actune_studies DROP COLUMN budgets_bytes",
    "0005": "ALTER TABLE actune_measurements DROP COLUMN compiled_code",
}


def take_back(path: Path, revision: str) -> None:
    """Leaves the database as an actune of that schema would have."""
    with closing(sqlite3.connect(path)) as connection:
        for later in sorted(UNDO, reverse=True):
            if later > revision:
                connection.execute(UNDO[later])
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'")
        connection.commit()


def test_database_of_the_first_schema_is_upgraded_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    url = f"sqlite:///{path}"
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        store.record_trial("a", trial(0), reference_hash=None, budget_bytes=None)
    take_back(path, "0001")
    with Store.open(url, create=False) as store:
        assert store.trials("a") == [trial(0)]
        assert not store.trials("a")[0].measurement.lost_race
        assert store.predictions("a") == ()
        store.save_predictions("a", [prediction(0)])
        assert store.predictions("a") == (prediction(0),)
    assert differences(path, metadata) == []


def test_measurements_from_before_races_were_timed_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    url = f"sqlite:///{path}"
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        store.record_trial("a", trial(0), reference_hash=None, budget_bytes=None)
        store.save_predictions("a", [prediction(0)])
    take_back(path, "0002")
    lost = trial(1, measured=replace(measurement(1), lost_race=True))
    with Store.open(url, create=False) as store:
        assert store.trials("a") == [trial(0)]
        assert store.predictions("a") == (prediction(0),)
        store.record_trial("a", lost, reference_hash=None, budget_bytes=None)
        assert store.trials("a") == [trial(0), lost]
    assert differences(path, metadata) == []


def test_of_measurements_from_before_it_is_not_known_what_ran_compiled(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    url = f"sqlite:///{path}"
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        store.record_trial("a", trial(0), reference_hash=None, budget_bytes=None)
    take_back(path, "0004")
    code = CompiledCode(("moe.py:12: tolist",), ("layers.0.moe",), "compiled")
    with Store.open(url, create=False) as store:
        assert store.trials("a") == [trial(0)]
        compiled = trial(1, measured=replace(measurement(1), compiled_code=code))
        store.record_trial("a", compiled, reference_hash=None, budget_bytes=None)
        assert [each.measurement.compiled_code for each in store.trials("a")] == [None, code]


def test_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        connection.commit()
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(StorageError, match=r"newer actune: its schema is '9999'.*'\d+'\. Upgrade actune"):
            Store.open(f"sqlite:///{path}", create=create)
    assert path.read_bytes() == before


def test_failed_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE actune_verdicts (x)")  # in the way of the last table of the first migration
        connection.commit()
    with pytest.raises(StorageError, match="table actune_verdicts already exists"):
        Store.open(f"sqlite:///{path}", create=True)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("actune_verdicts",)]


def test_migrating_leaves_logging_as_it_is(tmp_path: Path) -> None:
    root, alembic = logging.getLogger(), logging.getLogger("alembic")
    before = (root.level, list(root.handlers), alembic.level, list(alembic.handlers), alembic.disabled)
    Store.open(f"sqlite:///{tmp_path}/a.db", create=True).close()
    assert (root.level, list(root.handlers), alembic.level, list(alembic.handlers), alembic.disabled) == before


def test_up_to_date_database_needs_no_alembic(path: Path) -> None:
    code = (
        "import sys; from actune.store import Store; Store.open(sys.argv[1], create=True).close();"
        "print(sorted({'alembic', 'optuna', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, f"sqlite:///{path}"], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
