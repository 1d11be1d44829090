"""The race that the next trial runs in: what the study knows of its best plan and of the noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

from actune.racing import MIN_PAIRS, Race, pooled_log_noise
from actune.statistics import Clock, pair_ratios
from actune.study_records import TrialRecord

MOST_PAIRS_FACTOR = 2
"""A plan that may still win gets this many times the pairs that a plan gets without a race."""

_MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median over that of a mean, for many normal values; for few it is a little less."""

_TIED_ERRORS = 2.0
"""Plans whose distance is within this many standard errors of it may be equally fast."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a race looks at of a timed trial.

    Attributes:
        trial: its record.
        log: the logarithm of its relative step time.
        pairs: how many it was timed for.
        own_log_noise: standard deviation of the logarithm of one of its pairs' ratios; 0 of too few to tell.
    """

    trial: TrialRecord
    log: float
    pairs: int
    own_log_noise: float

    @classmethod
    def of(cls, trial: TrialRecord, relative_step_time: float, clock: Clock) -> Timing:
        """Of a trial that was timed."""
        ratios = pair_ratios(trial.measurement, clock)
        own = stdev([math.log(ratio) for ratio in ratios]) if len(ratios) >= MIN_PAIRS else 0.0
        return cls(trial, math.log(relative_step_time), len(ratios), own)


def race_for(
    trials: Sequence[TrialRecord],
    relative_step_times: Mapping[int, float],
    budget_bytes: int,
    clock: Clock,
    *,
    timed_pairs: int,
) -> Race | None:
    """As `race_among`, of a study's finished trials and the medians of their pairs' ratios, by number."""
    timed = [trial for trial in trials if trial.number in relative_step_times]
    timings = [Timing.of(trial, relative_step_times[trial.number], clock) for trial in timed]
    log_noise = pooled_log_noise([pair_ratios(trial.measurement, clock) for trial in timed])
    return race_among(timings, log_noise, budget_bytes, timed_pairs=timed_pairs)


def race_among(
    timings: Iterable[Timing], log_noise: float | None, budget_bytes: int, *, timed_pairs: int
) -> Race | None:
    """The race of the study's next trial; None without a plan that fits, or with too few trials to know the noise.

    The best of several equally fast plans looks faster than it is, and the next plan must not be measured by its luck.
    So the best's step time is corrected by what the smallest of that many normal values is expected to be off (Blom,
    Statistical Estimates and Transformed Beta-Variables, 1958).

    Args:
        timings: of the study's timed trials.
        log_noise: `pooled_log_noise` of them.
        budget_bytes: the cap.
        timed_pairs: how many pairs a plan gets without a race.
    """
    contenders = [t for t in timings if not t.trial.measurement.lost_race and t.trial.fits(budget_bytes)]
    if log_noise is None or not contenders:
        return None
    best = min(contenders, key=lambda timing: timing.log)
    best_error = _median_error(best, log_noise)
    tied = sum(
        timing.log - best.log <= _TIED_ERRORS * math.hypot(_median_error(timing, log_noise), best_error)
        for timing in contenders
    )
    return Race(
        best_relative_step_time=math.exp(best.log + _expected_luck(tied) * best_error),
        best_log_error=best_error,
        pair_log_noise=log_noise,
        most_pairs=max(MIN_PAIRS, MOST_PAIRS_FACTOR * timed_pairs),
    )


def _median_error(timing: Timing, log_noise: float) -> float:
    """Standard error of the median's logarithm, by the pooled noise or the trial's own where that is larger."""
    return max(log_noise, timing.own_log_noise) * _MEDIAN_ERROR / math.sqrt(timing.pairs)


def _expected_luck(count: int) -> float:
    """How far the smallest of `count` standard normal values lies below 0, about: Blom's approximation."""
    return -NormalDist().inv_cdf((1 - 0.375) / (count + 0.25))
