"""What a list of studies shows of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from actune.store.rows import STUDY_COLUMNS, record_of, study_from_row
from actune.store.schema import measurements, studies, trials, verdicts
from actune.study_records import StudyRecord


@dataclass(frozen=True, slots=True)
class StudySummary:
    """A study and how far it got.

    Attributes:
        study: its record.
        finished_trials: how many trials it has, whatever their outcome.
        judged_trials: how many of them its verdict was taken over; None without a verdict.
        decided_at: when its verdict was taken, ISO 8601, UTC; None if it has none.
        best_hash: the verdict's best plan; None without a verdict, or if no plan was good enough.
        best_relative_step_time: of that plan against the reference, from the final comparison.
        best_peak_bytes: the highest that was measured of that plan.
    """

    study: StudyRecord
    finished_trials: int
    judged_trials: int | None
    decided_at: str | None
    best_hash: str | None
    best_relative_step_time: float | None
    best_peak_bytes: int | None


def read_summaries(connection: sa.Connection) -> list[StudySummary]:
    """Of all studies, the oldest first."""
    counts = sa.select(trials.c.study_id, sa.func.count().label("finished")).group_by(trials.c.study_id).subquery()
    query = (
        sa.select(
            studies.c.id.label("study_id"),
            *STUDY_COLUMNS,
            sa.func.coalesce(counts.c.finished, 0).label("finished"),
            verdicts.c.best_hash,
            verdicts.c.comparison,
            verdicts.c.trials.label("judged"),
            verdicts.c.decided_at,
        )
        .select_from(studies)
        .outerjoin(counts, counts.c.study_id == studies.c.id)
        .outerjoin(verdicts, verdicts.c.study_id == studies.c.id)
        .order_by(studies.c.id)
    )
    peaks = _peaks_of_best_plans(connection)
    summaries = []
    for row in connection.execute(query):
        entries = row.comparison.entries if row.comparison is not None and row.best_hash is not None else ()
        best = next((entry for entry in entries if entry.plan_hash == row.best_hash), None)
        summaries.append(
            record_of(
                StudySummary,
                {
                    "study": study_from_row(row),
                    "finished_trials": row.finished,
                    "judged_trials": row.judged,
                    "decided_at": row.decided_at,
                    "best_hash": row.best_hash,
                    "best_relative_step_time": None if best is None else best.relative_step_time,
                    "best_peak_bytes": (
                        None if best is None else _highest_peak(row, peaks.get((row.study_id, best.number)))
                    ),
                },
            )
        )
    return summaries


def _highest_peak(row: Any, in_trial_bytes: int | None) -> int | None:
    """Of a study's best plan: over the verdict's longer run, or in its trial where the verdict is from before those."""
    longer_bytes = row.comparison.budgets[0].peak_bytes if row.comparison.budgets else None
    return longer_bytes or in_trial_bytes


def _peaks_of_best_plans(connection: sa.Connection) -> dict[tuple[int, int], int | None]:
    """By study and trial. A plan may have several trials in a study; the verdict's entry tells which one counts."""
    query = (
        sa.select(trials.c.study_id, trials.c.number, measurements.c.peak_bytes)
        .join(measurements, measurements.c.id == trials.c.measurement_id)
        .join(verdicts, verdicts.c.study_id == trials.c.study_id)
        .where(measurements.c.plan_hash == verdicts.c.best_hash)
    )
    return {(row.study_id, row.number): row.peak_bytes for row in connection.execute(query)}
