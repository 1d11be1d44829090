"""Which measurements of the past answer for a plan now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from actune.records import Measurement, Outcome
from actune.store.rows import MEASUREMENT_COLUMNS, measurement_from_values, read_pairs
from actune.store.schema import measurements

# A crash, a timeout or an error says something about that one attempt; these say something about the plan.
SETTLED = (Outcome.OK, Outcome.OVER_BUDGET, Outcome.OOM)


@dataclass(frozen=True, slots=True)
class MeasurementKey:
    """What was measured, on what, and against what."""

    target_fingerprint: str
    environment_fingerprint: str
    plan_hash: str
    reference_hash: str | None

    def values(self) -> dict[str, Any]:
        """For a row of `measurements`."""
        return {
            "target_fingerprint": self.target_fingerprint,
            "environment_fingerprint": self.environment_fingerprint,
            "plan_hash": self.plan_hash,
            "reference_hash": self.reference_hash,
        }

    def clause(self) -> sa.ColumnElement[bool]:
        """The rows that have this key."""
        # No reference is a value of its own here: SQLAlchemy writes `IS NULL` for None. (`IS NOT DISTINCT FROM` would
        # serve both, and on PostgreSQL no index would serve it.)
        return sa.and_(*(measurements.c[name] == value for name, value in self.values().items()))


def find_settled(connection: sa.Connection, key: MeasurementKey, *, budget_bytes: int | None) -> Measurement | None:
    """The newest measurement with that key whose outcome also holds under that cap.

    One that lost a race is none: it was not timed to its end, and another study has another best.
    """
    query = (
        sa.select(*MEASUREMENT_COLUMNS, measurements.c.budget_bytes)
        .where(
            key.clause(),
            measurements.c.outcome.in_([str(outcome) for outcome in SETTLED]),
            measurements.c.lost_race.is_(sa.false()),
        )
        .order_by(measurements.c.id.desc())
    )
    for row in connection.execute(query).all():
        if _holds(row, budget_bytes):
            return _load(connection, row)
    return None


def find_equal(connection: sa.Connection, key: MeasurementKey, measurement: Measurement) -> int | None:
    """The id of the newest measurement with that key that is equal to this one."""
    query = (
        sa.select(*MEASUREMENT_COLUMNS)
        .where(key.clause(), measurements.c.outcome == str(measurement.outcome))
        .order_by(measurements.c.id.desc())
    )
    for row in connection.execute(query).all():
        if _load(connection, row) == measurement:
            measurement_id: int = row.measurement_id
            return measurement_id
    return None


def _load(connection: sa.Connection, row: Any) -> Measurement:
    pairs = read_pairs(connection, sa.select(measurements.c.id).where(measurements.c.id == row.measurement_id))
    return measurement_from_values(row[: len(MEASUREMENT_COLUMNS)], pairs)


def _holds(row: Any, budget_bytes: int | None) -> bool:
    """Whether the plan would end the same way under this cap, given the cap that it ran under."""
    cap_is_as_tight = row.budget_bytes is None or (budget_bytes is not None and budget_bytes <= row.budget_bytes)
    if row.outcome == Outcome.OK:
        return True  # the peak is the plan's own, whatever the cap
    if row.outcome == Outcome.OVER_BUDGET and row.peak_bytes is not None:
        return budget_bytes is not None and row.peak_bytes > budget_bytes
    # Out of memory under a cap, which is also enforced on the allocator, says nothing of a higher cap.
    return cap_is_as_tight
