"""What a search tells while it runs. The command line shows it; tests listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from actune.study_records import StudyRecord, TrialRecord


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is.

    Attributes:
        study: its record.
        trials: finished so far, the latest last.
        relative_step_times: of each trial that was timed, by number.
        best: the number of the fastest trial that fits, None without one.
        total: how many trials there will be at most.
        deadline_s: seconds left of the timeout, None for none.
    """

    study: StudyRecord
    trials: tuple[TrialRecord, ...]
    relative_step_times: dict[int, float]
    best: int | None
    total: int
    deadline_s: float | None


class Reporter(Protocol):
    """Listens to a search."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        ...

    def trial_finished(self, progress: Progress) -> None:
        """A trial ended and is stored."""
        ...


class SilentReporter:
    """Shows nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def trial_finished(self, progress: Progress) -> None:
        """Nothing."""
