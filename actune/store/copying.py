"""Copies of studies: into another database, or under another name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from actune.errors import StorageError, UsageError
from actune.plan import dump_plan, parse_plan
from actune.store.optuna_tables import OptunaRows, has_optuna_tables, read_optuna_study, write_optuna_study
from actune.store.plan_texts import keep_plans
from actune.store.schema import measurements, plans, predictions, samples, studies, trials, verdicts
from actune.store.store import Store
from actune.store.verdicts import Comparison

_BATCH = 500  # of values in one statement, well below what drivers take

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CopiedStudy:
    """What a copy has.

    Attributes:
        study: its name.
        trials: finished ones.
        measurements: how many were written; those that the database had already are shared.
        predictions: of how many plans.
        has_verdict: whether the study has ended.
        optuna_trials: Optuna's, whatever their state.
    """

    study: str
    trials: int
    measurements: int
    predictions: int
    has_verdict: bool
    optuna_trials: int


@dataclass(frozen=True, slots=True)
class _Study:
    """All rows of a study; those of measurements and samples by the measurement's id."""

    study: _Row
    trials: list[_Row]
    measurements: dict[int, _Row]
    samples: dict[int, list[_Row]]
    tomls: dict[str, str]
    predictions: list[_Row]
    verdict: _Row | None
    optuna: OptunaRows | None


def is_known_to_optuna(store: Store) -> bool:
    """Whether Optuna has tables in the database."""
    with store._reading() as connection:
        return has_optuna_tables(connection)


def copy_study(source: Store, name: str, destination: Store, new_name: str) -> CopiedStudy:
    """Copies a study with all that actune and Optuna have of it, as it is at one moment.

    That moment may be in the middle of a search: the copy is then like what a coordinator leaves that dies, from which
    a search goes on. It is written in one transaction, so it is there as a whole or not at all.

    Args:
        source: where it is.
        name: the study's.
        destination: where it goes to, which may be the same database. If Optuna has the study, its tables have to be
            there.
        new_name: the copy's.

    Raises:
        UsageError: there is no such study, or one of the new name.
        StorageError: one of the databases can't be used, or holds another plan under the same hash.
    """
    with source._reading() as connection:
        study = _read(connection, source._study_row(connection, name).id, name)
    with destination._writing() as connection:
        return _write(connection, study, new_name, label=destination.label)


def _read(connection: sa.Connection, study_id: int, name: str) -> _Study:
    def select(table: sa.Table, wanted: sa.ColumnElement[bool]) -> list[_Row]:
        query = sa.select(table).where(wanted).order_by(*table.primary_key.columns)
        return [dict(row) for row in connection.execute(query).mappings()]

    used = sa.select(trials.c.measurement_id).where(trials.c.study_id == study_id)
    hashes = sa.union(
        sa.select(measurements.c.plan_hash).where(measurements.c.id.in_(used)),
        sa.select(predictions.c.plan_hash).where(predictions.c.study_id == study_id),
    )
    by_measurement: dict[int, list[_Row]] = {}
    for sample in select(samples, samples.c.measurement_id.in_(used)):
        by_measurement.setdefault(sample.pop("measurement_id"), []).append(sample)
    verdict = select(verdicts, verdicts.c.study_id == study_id)
    return _Study(
        study=select(studies, studies.c.id == study_id)[0],
        trials=select(trials, trials.c.study_id == study_id),
        measurements={row.pop("id"): row for row in select(measurements, measurements.c.id.in_(used))},
        samples=by_measurement,
        tomls={row["plan_hash"]: row["toml"] for row in select(plans, plans.c.plan_hash.in_(hashes))},
        predictions=select(predictions, predictions.c.study_id == study_id),
        verdict=verdict[0] if verdict else None,
        optuna=read_optuna_study(connection, name),
    )


def _write(connection: sa.Connection, study: _Study, name: str, *, label: str) -> CopiedStudy:
    if connection.execute(sa.select(studies.c.id).where(studies.c.name == name)).scalar() is not None:
        raise name_is_taken(name, label)
    try:
        hashes = list(study.tomls)
        for first in range(0, len(hashes), _BATCH):
            keep_plans(connection, {one: study.tomls[one] for one in hashes[first : first + _BATCH]})
    except ValueError as error:
        raise StorageError(
            f"{label}: {error}. It was written by another version of actune; copy to another database with --to."
        ) from None
    of_study = {column: value for column, value in study.study.items() if column != "id"}
    study_id = _inserted(connection, studies, of_study | {"name": name})
    ids, new = {}, 0
    for number, measured in study.measurements.items():
        timed = study.samples.get(number, [])
        known = _find(connection, measured, timed)
        if known is None:
            known, new = _inserted(connection, measurements, measured), new + 1
            _insert_all(connection, samples, [sample | {"measurement_id": known} for sample in timed])
        ids[number] = known
    of_copy = {"study_id": study_id}
    renumbered = [trial | of_copy | {"measurement_id": ids[trial["measurement_id"]]} for trial in study.trials]
    _insert_all(connection, trials, renumbered)
    _insert_all(connection, predictions, [row | of_copy for row in study.predictions])
    if study.verdict is not None:
        verdict = study.verdict if study.study["name"] == name else _renamed(study.verdict, name)
        _insert_all(connection, verdicts, [verdict | of_copy])
    if study.optuna is not None:
        write_optuna_study(connection, study.optuna, name, label=label)
    return CopiedStudy(
        study=name,
        trials=len(study.trials),
        measurements=new,
        predictions=len(study.predictions),
        has_verdict=study.verdict is not None,
        optuna_trials=0 if study.optuna is None else len(study.optuna.trials),
    )


def name_is_taken(name: str, label: str) -> UsageError:
    """What to tell who wants a copy to have a name that is there."""
    return UsageError(f"study '{name}' exists already at {label}. Choose another name for the copy with --as.")


def _find(connection: sa.Connection, measured: _Row, timed: list[_Row]) -> int | None:
    """The same measurement, if the database has it: of an earlier copy, or since it is the same database."""
    same = sa.and_(
        *(
            measurements.c[name].is_not_distinct_from(measured[name])
            for name in ("target_fingerprint", "environment_fingerprint", "plan_hash", "reference_hash", "measured_at")
        )
    )
    for row in connection.execute(sa.select(measurements).where(same).order_by(measurements.c.id)).mappings().all():
        if measured | {"id": row["id"]} == dict(row):
            query = sa.select(samples).where(samples.c.measurement_id == row["id"]).order_by(samples.c.position)
            found = [dict(sample) for sample in connection.execute(query).mappings()]
            if found == [sample | {"measurement_id": row["id"]} for sample in timed]:
                number: int = row["id"]
                return number
    return None


def _renamed(verdict: _Row, name: str) -> _Row:
    """The verdict, whose plans say which study they are from."""
    comparison: Comparison = verdict["comparison"]
    budgets = tuple(replace(decided, best_toml=_of_study(decided.best_toml, name)) for decided in comparison.budgets)
    return verdict | {
        "best_toml": _of_study(verdict["best_toml"], name),
        "comparison": replace(comparison, budgets=budgets),
    }


def _of_study(toml: str | None, name: str) -> str | None:
    if toml is None:
        return None
    plan = parse_plan(toml, source="the best plan")
    return dump_plan(replace(plan, provenance=dict(plan.provenance) | {"study": name}))


def _inserted(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> int:
    key = connection.execute(table.insert().values(**row)).inserted_primary_key
    assert key is not None
    number: int = key[0]
    return number


def _insert_all(connection: sa.Connection, table: sa.Table, rows: list[_Row]) -> None:
    if rows:
        connection.execute(table.insert(), rows)
