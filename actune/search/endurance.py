"""What the best plans' peaks come to over more steps, each on a batch of its own.

Where what a step holds depends on its data, a plan that is just within the budget in its trial may be over it on
another batch.
"""

from __future__ import annotations

from dataclasses import replace

from actune.engine import Engine
from actune.errors import PlanError
from actune.records import Measurement, MeasurePlan, Outcome
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
            longer, short = self._run(trial.plan_toml), trial.measurement
            peaks = [peak for peak in (short.peak_bytes, longer.peak_bytes) if peak is not None]
            outcome = short.outcome if longer.outcome is Outcome.OK else longer.outcome
            measurement = replace(short, outcome=outcome, peak_bytes=max(peaks, default=None))
            if measurement != short:
                shown = longer.message or f"peak {format_bytes(max(peaks))}"
                measurement = replace(measurement, message=f"otherwise over {ENDURANCE_STEPS} steps: {shown}")
            self._seen[trial.plan_hash] = replace(trial, measurement=measurement)
        return self._seen[trial.plan_hash]

    def _run(self, plan_toml: str) -> Measurement:
        request = MeasurePlan(plan_toml, None, self._cap_bytes, timed_pairs=0, peak_steps=ENDURANCE_STEPS)
        try:
            longer = self._engine.measure(request)
            if longer.outcome is not Outcome.OVER_BUDGET or longer.peak_bytes is not None:
                return longer
            # A card's cap refused it, which does not tell by how much it is over. Without the cap that shows.
            uncapped = self._engine.measure(replace(request, budget_bytes=None))
            return replace(longer, peak_bytes=max(self._cap_bytes + 1, uncapped.peak_bytes or 0))
        except PlanError as error:
            return Measurement(Outcome.ERROR, message=str(error))


def failure(seen: TrialRecord) -> str:
    """What is said of a plan that fits in its trial, and not in its longer run."""
    return f"{seen.preset or f'trial {seen.number}'} fits in its trial, but {seen.measurement.message}"
