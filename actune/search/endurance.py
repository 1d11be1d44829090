"""What the best plans' peaks come to over more steps, each on a batch of its own.

Where what a step holds depends on its data, a plan that is just within the budget in its trial may be over it on
another batch.
"""

from __future__ import annotations

from dataclasses import replace

from actune.engine import Engine
from actune.records import MeasurePlan, Outcome
from actune.study_records import TrialRecord
from actune.units import format_bytes

ENDURANCE_STEPS = 8


class Endurance:
    """Runs plans for more steps, each of them once."""

    def __init__(self, engine: Engine, cap_bytes: int) -> None:
        """Args: cap_bytes: the largest budget."""
        self._engine = engine
        self._cap_bytes = cap_bytes
        self._seen: dict[str, TrialRecord] = {}

    def seen(self, trial: TrialRecord) -> TrialRecord:
        """The trial as its longer run shows it: with the highest peak of both, and that run's outcome if it failed."""
        if trial.plan_hash not in self._seen:
            request = MeasurePlan(trial.plan_toml, None, self._cap_bytes, timed_pairs=0, peak_steps=ENDURANCE_STEPS)
            longer, short = self._engine.measure(request), trial.measurement
            highest = max((peak for peak in (short.peak_bytes, longer.peak_bytes) if peak is not None), default=None)
            outcome = short.outcome if longer.outcome is Outcome.OK else longer.outcome
            measurement = replace(short, outcome=outcome, peak_bytes=highest, message=longer.message or short.message)
            self._seen[trial.plan_hash] = replace(trial, measurement=measurement)
        return self._seen[trial.plan_hash]


def failure(seen: TrialRecord) -> str:
    """What is said of a plan that is over the budget in its longer run alone."""
    measurement = seen.measurement
    assert measurement.peak_bytes is not None, "it fits in its trial"
    return (
        f"{seen.preset or f'trial {seen.number}'} fits in its trial, not over {ENDURANCE_STEPS} steps on other batches "
        f"({measurement.message or 'peak ' + format_bytes(measurement.peak_bytes)})"
    )
