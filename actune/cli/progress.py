"""Live progress of a search on stderr: a display in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actune.cli.console import TextConsole
from actune.records import Outcome
from actune.report import outcome_under
from actune.search import Progress as SearchProgress
from actune.search import Reporter
from actune.units import format_bytes, format_duration


@contextmanager
def show_progress(study: str) -> Iterator[Reporter]:
    """A reporter that shows what it hears until the block ends."""
    console = TextConsole(stderr=True, soft_wrap=True)
    if not console.is_terminal:
        yield _Lines(study, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Display(study, bar)


class _Lines:
    """One line for each stage and each trial."""

    def __init__(self, study: str, console: TextConsole) -> None:
        self._study = study
        self._console = console

    def stage(self, text: str) -> None:
        """A line."""
        self._console.print(f"{self._study}: {text}")

    def trial_finished(self, progress: SearchProgress) -> None:
        """The trial, the best so far, and the time left."""
        self._console.print(f"{self._study}: {trial_line(progress)}; {best_line(progress)}")


class _Display:
    """A bar that stays at the bottom, with the trials above it."""

    def __init__(self, study: str, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task(study, total=None, best="")

    def stage(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(text)

    def trial_finished(self, progress: SearchProgress) -> None:
        """A line above the bar, and the bar moved on."""
        self._bar.console.print(trial_line(progress))
        self._bar.update(self._task, total=progress.total, completed=len(progress.trials), best=best_line(progress))


def trial_line(progress: SearchProgress) -> str:
    """What the latest trial came to."""
    trial = progress.trials[-1]
    outcome = outcome_under(trial.measurement, progress.study.budget_bytes)
    parts = [f"trial {len(progress.trials)}/{progress.total}"]
    parts.append(trial.preset or f"plan {trial.plan_hash}")
    parts.append(f"peak {format_bytes(trial.measurement.peak_bytes)}")
    ratio = progress.relative_step_times.get(trial.number)
    if outcome is Outcome.OK and ratio is not None:
        parts.append(f"step time {ratio:.3f} × reference")
        if trial.measurement.lost_race:
            parts.append(f"slower, stopped after {len(trial.measurement.pairs)} pairs")
    else:
        parts.append(outcome.replace("_", " "))
        if outcome not in (Outcome.OK, Outcome.OVER_BUDGET) and trial.measurement.message:
            parts.append(trial.measurement.message)
    if trial.reused:
        parts.append("known from an earlier study")
    return ", ".join(parts)


def best_line(progress: SearchProgress) -> str:
    """The best so far, how many were pruned, and the time left."""
    outcomes = Counter(outcome_under(t.measurement, progress.study.budget_bytes) for t in progress.trials)
    pruned = outcomes[Outcome.OVER_BUDGET] + outcomes[Outcome.OOM]
    best = "no plan fits yet" if progress.best is None else f"best {progress.relative_step_times[progress.best]:.3f}"
    return f"{best}, {pruned} pruned, {_time_left(progress)}"


def _time_left(progress: SearchProgress) -> str:
    from datetime import datetime

    durations_s = [
        (datetime.fromisoformat(t.finished_at) - datetime.fromisoformat(t.started_at)).total_seconds()
        for t in progress.trials
        if not t.reused
    ]
    remaining_s = (progress.total - len(progress.trials)) * (mean(durations_s) if durations_s else 0.0)
    if progress.deadline_s is not None:
        remaining_s = min(remaining_s, progress.deadline_s)
    if remaining_s < 1:
        return "little left"
    remaining = f"{round(remaining_s)} s" if remaining_s < 60 else format_duration(remaining_s)
    return f"about {remaining} left at most"
