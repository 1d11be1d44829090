"""The part of a verdict that is only ever read as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from actune.records import GradientReport
from actune.study_records import BudgetVerdict, StopReason, VerdictEntry


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared at the end of a study, as in `actune.records.Verdict`."""

    entries: tuple[VerdictEntry, ...]
    gradients: tuple[tuple[str, GradientReport], ...]
    budgets: tuple[BudgetVerdict, ...] = ()
    stopped: StopReason | None = None
