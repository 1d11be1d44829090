"""The finished trials of a study, and what they come to together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from actune.plan import Plan
from actune.racing import PooledLogNoise, Race
from actune.search.advice import Advice, MeasuredRatio
from actune.search.foresight import Foresight
from actune.search.race import Timing, race_among
from actune.statistics import Clock, pair_ratios, relative_step_time
from actune.store import stored_plan
from actune.study_records import TrialRecord

MEDIAN_ERROR = 1.2533
"""The standard error of a median over that of a mean, √(π/2), for normal noise."""

UNKNOWN_LOG_NOISE = 0.02
"""Of one pair, as long as there are too few trials to tell."""


class Ledger:
    """A study's trials, in the order in which they ended.

    Attributes:
        trials: all of them, as far as a longer run did not show more, as that run shows them.
        lessons: how many there were: trials, and longer runs that showed more.
        relative_step_times: of those that were timed, by number.
        reference: the plan that they are timed against; None until one fits.
    """

    def __init__(self, foresight: Foresight, clock: Clock) -> None:
        self.trials: list[TrialRecord] = []
        self.lessons = 0
        self.relative_step_times: dict[int, float] = {}
        self._foresight = foresight
        self._clock = clock
        self._of_plan: dict[str, TrialRecord] = {}
        self._plans: dict[str, Plan] = {}
        self.reference: Plan | None = None
        self._noise = PooledLogNoise()
        self._timings: dict[int, Timing] = {}
        self._ratios: list[MeasuredRatio] = []
        self._is_believed = False
        self._fitting: dict[int, list[TrialRecord]] = {}

    def add(self, trial: TrialRecord) -> None:
        """Takes a trial in."""
        self.trials.append(trial)
        self._plans[trial.plan_hash] = stored_plan(trial.plan_toml)
        self._learn_peak(trial)
        relative = relative_step_time(trial.measurement, self._clock)
        if relative is not None:
            self.relative_step_times[trial.number] = relative
            self._noise.add(pair_ratios(trial.measurement, self._clock))
            self._timings[trial.number] = Timing.of(trial, relative, self._clock)
            if self.reference is not None:
                self._ratios.append(self._ratio(trial, self.reference))
            self._is_believed = False

    def amend(self, trial: TrialRecord) -> None:
        """Takes in what a longer run showed of a trial that is known already: another peak or outcome."""
        self.trials = [trial if known.number == trial.number else known for known in self.trials]
        if trial.number in self._timings:
            self._timings[trial.number] = replace(self._timings[trial.number], trial=trial)
        self._learn_peak(trial)

    def set_reference(self, plan: Plan) -> None:
        """What trials are timed against: known from the first trial that fits, which is the reference itself."""
        self.reference = plan
        self._ratios = [self._ratio(trial, plan) for trial in self.trials if trial.number in self.relative_step_times]
        self._is_believed = False
        self._fitting.clear()

    @property
    def advice(self) -> Advice | None:
        """What to measure next, as all trials so far have it; None if the target or the reference is not profiled."""
        advice = self._foresight.advice
        if advice is None or self.reference is None:
            return advice
        if not advice.knows(self.reference):
            return None
        if not self._is_believed:
            advice.believe(self._ratios, log_noise=self._log_noise)
            self._is_believed = True
        return advice

    def of_plan(self, plan_hash: str) -> TrialRecord | None:
        """The trial of a plan."""
        return self._of_plan.get(plan_hash)

    def fitting(self, budget_bytes: int) -> list[TrialRecord]:
        """The timed trials whose plans fit, the fastest first by all that was measured together."""
        if budget_bytes not in self._fitting:
            timed = [t for t in self.trials if t.number in self.relative_step_times and t.fits(budget_bytes)]
            estimates = dict(zip((trial.number for trial in timed), self._estimates(timed), strict=True))
            self._fitting[budget_bytes] = sorted(timed, key=lambda trial: (estimates[trial.number], trial.number))
        return self._fitting[budget_bytes]

    def best(self, budget_bytes: int) -> MeasuredRatio | None:
        """The best plan so far, None as long as none fits."""
        fitting = self.fitting(budget_bytes)
        if not fitting or self.reference is None:
            return None
        ratio = self._ratio(fitting[0], self.reference)
        return replace(ratio, log_error=ratio.log_error * self._log_noise)

    def estimate(self, trial: TrialRecord) -> float:
        """A timed trial's relative step time: measured, and drawn to what the other trials say of its parts."""
        return self._estimates([trial])[0]

    def race(self, budget_bytes: int, *, timed_pairs: int) -> Race | None:
        """What the next trial is timed against."""
        return race_among(self._timings.values(), self._noise.value, budget_bytes, timed_pairs=timed_pairs)

    def _estimates(self, trials: Sequence[TrialRecord]) -> list[float]:
        measured = [self.relative_step_times[trial.number] for trial in trials]
        advice = self.advice
        if advice is None or self.reference is None:
            return measured
        believed = advice.estimates([self._plans[trial.plan_hash] for trial in trials], self.reference)
        return [own if of_all is None else of_all for own, of_all in zip(measured, believed, strict=True)]

    def _learn_peak(self, trial: TrialRecord) -> None:
        self._of_plan[trial.plan_hash] = trial
        self._foresight.learn_peak(self._plans[trial.plan_hash], trial.measurement)
        self._fitting.clear()
        self.lessons += 1

    def _ratio(self, trial: TrialRecord, reference: Plan) -> MeasuredRatio:
        """With its error in units of the noise of one pair, which is another one after each trial."""
        error = MEDIAN_ERROR / sqrt(len(trial.measurement.pairs))
        return MeasuredRatio(self._plans[trial.plan_hash], reference, self.relative_step_times[trial.number], error)

    @property
    def _log_noise(self) -> float:
        """Standard deviation of the logarithm of one pair's ratio."""
        return self._noise.value or UNKNOWN_LOG_NOISE
