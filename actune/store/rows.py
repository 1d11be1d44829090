"""Records as rows of the tables, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from math import inf, isfinite
from operator import itemgetter
from typing import Any, TypeVar

import sqlalchemy as sa

from actune.boundary import to_record
from actune.errors import shorten
from actune.records import Measurement, Outcome, SamplePair, StepSample
from actune.store.plan_texts import stored_plan
from actune.store.schema import measurements, plans, samples, studies, trials, unreadable, verdicts
from actune.store.verdicts import Comparison
from actune.study_records import StudyRecord, TrialRecord, Verdict

T = TypeVar("T")

STUDY_COLUMNS = tuple(studies.c[field.name] for field in fields(StudyRecord))

_PLAIN_OF_MEASUREMENT = tuple(field.name for field in fields(Measurement) if field.name not in ("outcome", "pairs"))
MEASUREMENT_COLUMNS = (
    measurements.c.id.label("measurement_id"),
    measurements.c.outcome,
    *(measurements.c[name] for name in _PLAIN_OF_MEASUREMENT),
)
_PAIRS_PLACE = [field.name for field in fields(Measurement)].index("pairs")
_PLAIN_OF_TRIAL = ("number", "preset", "attempt", "reused", "started_at", "finished_at")
_OF_COMPARISON = tuple(field.name for field in fields(Comparison))
_PLAIN_OF_VERDICT = tuple(field.name for field in fields(Verdict) if field.name not in _OF_COMPARISON)

_OUTCOMES = {str(outcome): outcome for outcome in Outcome}
_SOUND: dict[tuple[type, ...], list[int]] = {}
"""A record and the types of values that it was made of before, and which of them are floats."""

Pairs = Mapping[int, tuple[SamplePair, ...]]


def record_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """A record from a row's values: SQLite keeps in a column whatever another program writes into it.

    Raises:
        StorageError: a value is none that the record may have.
    """
    try:
        return to_record(kind, values)
    except ValueError as error:
        raise unreadable(kind.__name__, error) from None


def record_from(kind: type[T], values: Sequence[Any]) -> T:
    """The same from many rows: what each value may be is only checked where values of these types were not seen yet.

    Args:
        kind: the record.
        values: of its fields, in their order.

    Raises:
        StorageError: a value is none that the record may have.
    """
    signature = (kind, *map(type, values))
    floats = _SOUND.get(signature)
    if floats is None or (floats and not all(isfinite(values[place]) for place in floats)):
        names = getattr(kind, "_fields", None) or [field.name for field in fields(kind)]  # type: ignore[arg-type]
        record = record_of(kind, dict(zip(names, values, strict=True)))
        # Not where a value was converted, such as bytes to a text.
        if all(type(getattr(record, name)) is type(value) for name, value in zip(names, values, strict=True)):
            _SOUND[signature] = [place for place, value in enumerate(values) if type(value) is float]
        return record
    try:
        return kind(*values)
    except ValueError as error:
        raise unreadable(kind.__name__, error) from None


def study_from_row(row: Any) -> StudyRecord:
    """From a row that has STUDY_COLUMNS."""
    return record_of(StudyRecord, {column.name: getattr(row, column.name) for column in STUDY_COLUMNS})


def measurement_values(measurement: Measurement) -> dict[str, Any]:
    """For a row of `measurements`, without its key."""
    return {"outcome": str(measurement.outcome)} | {name: getattr(measurement, name) for name in _PLAIN_OF_MEASUREMENT}


def measurement_from_values(values: Sequence[Any], pairs: Pairs) -> Measurement:
    """From the values of MEASUREMENT_COLUMNS, and the pairs of all measurements by id."""
    measurement_id, outcome = values[:2]
    known = _OUTCOMES.get(outcome, outcome) if isinstance(outcome, str) else outcome
    before, after = values[2 : _PAIRS_PLACE + 1], values[_PAIRS_PLACE + 1 :]
    return record_from(Measurement, (known, *before, pairs.get(measurement_id, ()), *after))


def sample_values(measurement_id: int, pairs: tuple[SamplePair, ...]) -> list[dict[str, Any]]:
    """For the rows of `samples`."""
    return [
        {
            "measurement_id": measurement_id,
            "position": position,
            "step_time_s": pair.plan.step_time_s,
            "process_s": pair.plan.process_s,
            "reference_step_time_s": pair.reference.step_time_s,
            "reference_process_s": pair.reference.process_s,
        }
        for position, pair in enumerate(pairs)
    ]


def read_pairs(connection: sa.Connection, measurement_ids: sa.Select[tuple[int]]) -> Pairs:
    """The pairs of many measurements in one query, by the measurement's id."""
    return {
        measurement_id: tuple(
            SamplePair(StepSample(step_time_s, process_s), StepSample(reference_step_time_s, reference_process_s))
            for _, step_time_s, process_s, reference_step_time_s, reference_process_s in of_one
        )
        for measurement_id, of_one in groupby(read_samples(connection, measurement_ids), key=itemgetter(0))
    }


def read_samples(connection: sa.Connection, measurement_ids: sa.Select[tuple[int]]) -> Sequence[Sequence[Any]]:
    """Of each pair the measurement's id, the plan's wall and process time, and the reference's; in their order."""
    query = (
        sa.select(
            samples.c.measurement_id,
            samples.c.step_time_s,
            samples.c.process_s,
            samples.c.reference_step_time_s,
            samples.c.reference_process_s,
        )
        .where(samples.c.measurement_id.in_(measurement_ids))
        .order_by(samples.c.measurement_id, samples.c.position)
    )
    found = connection.execute(query).all()  # at once: row by row takes twice as long
    for _, *times_s in found:
        for time_s in times_s:
            if type(time_s) is not float or not 0 < time_s < inf:
                raise unreadable("SamplePair", ValueError(f"{shorten(time_s)} is no time of a step"))
    return found


def trial_values(trial: TrialRecord) -> dict[str, Any]:
    """For a row of `trials`, without its study and measurement."""
    return {name: getattr(trial, name) for name in _PLAIN_OF_TRIAL}


def read_trials(
    connection: sa.Connection, study_id: int, *, number: int | None = None, with_pairs: bool = True
) -> list[TrialRecord]:
    """A study's trials by number, or only the one of that number: two queries, however many they are.

    Without their pairs, which take most of the time, it is one.
    """
    wanted = trials.c.study_id == study_id
    if number is not None:
        wanted &= trials.c.number == number
    query = (
        sa.select(
            trials.c.number,
            measurements.c.plan_hash,
            plans.c.toml,
            trials.c.preset,
            trials.c.attempt,
            trials.c.reused,
            trials.c.started_at,
            trials.c.finished_at,
            *MEASUREMENT_COLUMNS,
        )
        .join(measurements, measurements.c.id == trials.c.measurement_id)
        .join(plans, plans.c.plan_hash == measurements.c.plan_hash)
        .where(wanted)
        .order_by(trials.c.number)
    )
    pairs = read_pairs(connection, sa.select(trials.c.measurement_id).where(wanted)) if with_pairs else {}
    # By place and not by name, and without parsing the plans: of ten thousand trials that would be most of the time.
    # Who needs a plan takes it by `stored_plan`.
    return [
        record_from(TrialRecord, (*row[:6], measurement_from_values(row[8:], pairs), *row[6:8]))
        for row in connection.execute(query).all()
    ]


def verdict_values(verdict: Verdict) -> dict[str, Any]:
    """For a row of `verdicts`, without its study and date."""
    plain = {name: getattr(verdict, name) for name in _PLAIN_OF_VERDICT}
    return plain | {"comparison": Comparison(**{name: getattr(verdict, name) for name in _OF_COMPARISON})}


def read_verdict(connection: sa.Connection, study_id: int) -> Verdict | None:
    """A study's verdict, None if it has none."""
    query = sa.select(verdicts).where(verdicts.c.study_id == study_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    comparison: Comparison = row.comparison
    plain = {name: getattr(row, name) for name in _PLAIN_OF_VERDICT}
    for toml in (row.best_toml, *(decided.best_toml for decided in comparison.budgets)):
        if toml is not None:
            stored_plan(toml)
    return record_of(Verdict, {name: getattr(comparison, name) for name in _OF_COMPARISON} | plain)
