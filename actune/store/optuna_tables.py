"""Optuna's own tables of a study, as rows that can be written into another database.

`optuna.copy_study` commits trial by trial, so a copy that is cut short leaves half a study, and what Optuna wrote in
between belongs to no moment. Here all rows are read in one transaction and written in one, beside actune's own. Which
tables there are is asked of the database: all that refer to a study or to a trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from actune.errors import StorageError, UsageError

_STUDIES, _TRIALS, _VERSION = "studies", "trials", "alembic_version"
_STUDY_COLUMNS = {"study_id", "study_name"}

_Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class OptunaRows:
    """A study of Optuna's.

    Attributes:
        version: of the schema.
        study: its row.
        trials: their rows, by id.
        of_study: the rows of each other table that refer to the study.
        of_trials: the rows of each table that refer to a trial.
    """

    version: str
    study: dict[str, Any]
    trials: _Rows
    of_study: dict[str, _Rows]
    of_trials: dict[str, _Rows]


def has_optuna_tables(connection: sa.Connection) -> bool:
    """Whether Optuna has ever stored something there."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(_STUDIES) or not inspector.has_table(_VERSION):
        return False
    return {column["name"] for column in inspector.get_columns(_STUDIES)} >= _STUDY_COLUMNS


def read_optuna_study(connection: sa.Connection, name: str) -> OptunaRows | None:
    """All that Optuna has of a study; None if it has no study of that name, as before a search's first trial."""
    if not has_optuna_tables(connection):
        return None
    tables = _Tables(connection)
    studies, trials = tables[_STUDIES], tables[_TRIALS]
    found = _select(connection, studies, studies.c.study_name == name)
    if not found:
        return None
    (study,) = found
    of_this = trials.c.study_id == study["study_id"]
    numbers = sa.select(trials.c.trial_id).where(of_this)
    return OptunaRows(
        version=tables.version,
        study=study,
        trials=_select(connection, trials, of_this),
        of_study={
            other: _select(connection, tables[other], tables[other].c.study_id == study["study_id"])
            for other in tables.that_refer_to(_STUDIES)
            if other != _TRIALS
        },
        of_trials={
            other: _select(connection, tables[other], tables[other].c.trial_id.in_(numbers))
            for other in tables.that_refer_to(_TRIALS)
        },
    )


def write_optuna_study(connection: sa.Connection, rows: OptunaRows, name: str, *, label: str) -> None:
    """Writes a study under another id and name; Optuna's tables have to be there.

    Raises:
        UsageError: Optuna has a study of that name.
        StorageError: its tables there are of another version.
    """
    tables = _Tables(connection)
    if tables.version != rows.version:
        raise StorageError(
            f"{label}: Optuna's tables are of version '{tables.version}' there, and '{rows.version}' where the study "
            f"is. Bring the older ones up to date by `optuna storage upgrade --storage URL`."
        )
    studies, trials = tables[_STUDIES], tables[_TRIALS]
    if _select(connection, studies, studies.c.study_name == name):
        raise UsageError(f"Optuna has a study '{name}' at {label} that is none of actune's. Choose another with --as.")
    study_id = _insert(connection, studies, rows.study | {"study_name": name})
    for other, found in rows.of_study.items():
        _insert_all(connection, tables[other], [row | {"study_id": study_id} for row in found])
    # One by one and in their order: Optuna numbers them by it.
    ids = {row["trial_id"]: _insert(connection, trials, row | {"study_id": study_id}) for row in rows.trials}
    for other, found in rows.of_trials.items():
        _insert_all(connection, tables[other], [row | {"trial_id": ids[row["trial_id"]]} for row in found])


class _Tables:
    """Optuna's tables as the database describes them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._inspector = sa.inspect(connection)
        self._metadata = sa.MetaData()
        version = sa.table(_VERSION, sa.column("version_num", sa.String))
        self.version: str = connection.execute(sa.select(version.c.version_num)).scalar_one()

    def __getitem__(self, name: str) -> sa.Table:
        return sa.Table(name, self._metadata, autoload_with=self._connection)

    def that_refer_to(self, name: str) -> list[str]:
        """The names of tables with a foreign key to that one."""
        return [
            other
            for other in sorted(self._inspector.get_table_names())
            if any(key["referred_table"] == name for key in self._inspector.get_foreign_keys(other))
        ]


def _select(connection: sa.Connection, table: sa.Table, wanted: sa.ColumnElement[bool]) -> _Rows:
    query = sa.select(table).where(wanted).order_by(*table.primary_key.columns)
    return [dict(row) for row in connection.execute(query).mappings()]


def _insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    key = connection.execute(table.insert().values(**_without_key(table, row))).inserted_primary_key
    assert key is not None
    number: int = key[0]
    return number


def _insert_all(connection: sa.Connection, table: sa.Table, found: _Rows) -> None:
    if found:
        connection.execute(table.insert(), [_without_key(table, row) for row in found])


def _without_key(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    """The row without the number that the database gives it."""
    given = {column.name for column in table.primary_key.columns if not column.foreign_keys}
    return {name: value for name, value in row.items() if name not in given}
