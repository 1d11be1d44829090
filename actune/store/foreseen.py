"""What studies predicted of plans, as rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import sqlalchemy as sa

from actune.predictions import PredictedNumbers, PredictionRecord
from actune.store.plan_texts import keep_plans
from actune.store.rows import record_from
from actune.store.schema import plans, predictions

_PLAIN = ("plan_hash", "preset", "peak_bytes", "step_time_s", "on_frontier")


def write_predictions(connection: sa.Connection, study_id: int, records: Iterable[PredictionRecord]) -> None:
    """Stores predictions by plan; a later one of the same plan has the numbers, and loses neither name nor place."""
    merged: dict[str, PredictionRecord] = {}
    for record in records:
        merged[record.plan_hash] = _merged(merged.get(record.plan_hash), record)
    if not merged:
        return
    keep_plans(connection, {record.plan_hash: record.plan_toml for record in merged.values()})
    of_these = (predictions.c.study_id == study_id) & predictions.c.plan_hash.in_(merged)
    for known in _read(connection, of_these):
        merged[known.plan_hash] = _merged(known, merged[known.plan_hash])
    connection.execute(predictions.delete().where(of_these))
    rows = [{name: getattr(record, name) for name in _PLAIN} | {"study_id": study_id} for record in merged.values()]
    connection.execute(predictions.insert(), rows)


def read_predictions(connection: sa.Connection, study_id: int) -> tuple[PredictionRecord, ...]:
    """A study's predictions, from the smallest predicted peak up; what the device has no room for comes last."""
    found = _read(connection, predictions.c.study_id == study_id)
    return tuple(sorted(found, key=_by_peak))


def read_numbers(connection: sa.Connection, study_id: int) -> list[PredictedNumbers]:
    """As `read_predictions`, without the plans' texts, which are most of what there is to read."""
    columns = (predictions.c[name] for name in PredictedNumbers._fields)
    found = connection.execute(sa.select(*columns).where(predictions.c.study_id == study_id)).all()
    return sorted((record_from(PredictedNumbers, row) for row in found), key=_by_peak)


def _read(connection: sa.Connection, wanted: sa.ColumnElement[bool]) -> list[PredictionRecord]:
    query = (
        sa.select(predictions.c.plan_hash, plans.c.toml, *(predictions.c[name] for name in _PLAIN[1:]))
        .join(plans, plans.c.plan_hash == predictions.c.plan_hash)
        .where(wanted)
    )
    return [record_from(PredictionRecord, row) for row in connection.execute(query).all()]


def _merged(before: PredictionRecord | None, now: PredictionRecord) -> PredictionRecord:
    """A plan comes up as a preset, on the frontier and as a trial, in any order."""
    if before is None:
        return now
    is_known = now.peak_bytes is not None and now.step_time_s is not None
    return replace(
        now,
        preset=before.preset or now.preset,
        on_frontier=is_known and (now.on_frontier or before.on_frontier),
    )


def _by_peak(record: PredictionRecord | PredictedNumbers) -> tuple[bool, int, float, str]:
    return (record.peak_bytes is None, record.peak_bytes or 0, record.step_time_s or 0.0, record.plan_hash)
