"""Measurements as they are put into the tables."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from actune.store import rows
from actune.store.reuse import MeasurementKey
from actune.store.schema import measurements, samples
from actune.study_records import TrialRecord


def storable(trial: TrialRecord) -> TrialRecord:
    """The trial, its texts without the character NUL: what a worker printed may hold it, and PostgreSQL takes none."""
    measured = trial.measurement
    message, detail = (
        None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        for text in (measured.message, measured.detail)
    )
    if (message, detail) == (measured.message, measured.detail):
        return trial
    return replace(trial, measurement=replace(measured, message=message, detail=detail))


def insert_measurement(
    connection: sa.Connection, key: MeasurementKey, trial: TrialRecord, budget_bytes: int | None
) -> int:
    """Stores a trial's measurement and its samples: the measurement's id."""
    result = connection.execute(
        measurements.insert().values(
            **key.values(),
            budget_bytes=budget_bytes,
            measured_at=trial.finished_at,
            **rows.measurement_values(trial.measurement),
        )
    )
    assert result.inserted_primary_key is not None
    measurement_id: int = result.inserted_primary_key[0]
    if trial.measurement.pairs:
        connection.execute(samples.insert(), rows.sample_values(measurement_id, trial.measurement.pairs))
    return measurement_id
