"""Which of a study's trials its table shows: all of some, of many those that a person looks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

ALL_UP_TO = 50
"""Trials of which all are shown: more than a search has by default."""
FASTEST, LATEST = 15, 10


def shown_trials(trials: Sequence[dict[str, Any]], named: Collection[str]) -> list[dict[str, Any]]:
    """Of many trials the named plans, the fastest of those that fit, and the latest; by number.

    Args:
        trials: of a study's document.
        named: hashes of its presets and best plans.
    """
    if len(trials) <= ALL_UP_TO:
        return list(trials)
    fitting = [trial for trial in trials if trial["outcome"] == "ok" and trial["relative_step_time"] is not None]
    fastest = sorted(fitting, key=lambda trial: float(trial["relative_step_time"]))[:FASTEST]
    kept = {trial["number"] for trial in (*fastest, *trials[-LATEST:])}
    return [trial for trial in trials if trial["number"] in kept or trial["plan_hash"] in named]


def left_out_line(trials: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]], study: str) -> str | None:
    """What is said of the trials that are not shown; None where all are."""
    if len(shown) == len(trials):
        return None
    outcomes = Counter(str(trial["outcome"]).replace("_", " ") for trial in trials)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return (
        f"{len(shown)} of {len(trials)} trials ({counts}): the presets, the best plans, the {FASTEST} fastest that fit "
        f"and the last {LATEST}. `actune show {study} --all` shows every one."
    )
