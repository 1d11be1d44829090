"""The race that the next trial runs in: what the study knows of its best plan and of the noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, stdev

from actune.racing import MIN_PAIRS, Race, pooled_log_noise
from actune.statistics import Clock
from actune.study_records import TrialRecord

MOST_PAIRS_FACTOR = 2
"""A plan that may still win gets this many times the pairs that a plan gets without a race."""

_MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median over that of a mean, for many normal values; for few it is a little less."""

_TIED_ERRORS = 2.0
"""Plans whose distance is within this many standard errors of it may be equally fast."""


def race_for(
    trials: Sequence[TrialRecord],
    relative_step_times: Mapping[int, float],
    budget_bytes: int,
    clock: Clock,
    *,
    timed_pairs: int,
) -> Race | None:
    """The race of the study's next trial; None without a plan that fits, or with too few trials to know the noise.

    The best of several equally fast plans looks faster than it is, and the next plan must not be measured by its luck.
    So the best's step time is corrected by what the smallest of that many normal values is expected to be off (Blom,
    Statistical Estimates and Transformed Beta-Variables, 1958).

    Args:
        trials: the study's finished ones.
        relative_step_times: of those that were timed, by number: the medians of their pairs' ratios.
        budget_bytes: the cap.
        clock: the time that ratios are taken of.
        timed_pairs: how many pairs a plan gets without a race.
    """
    timed = [trial for trial in trials if trial.number in relative_step_times]
    ratios = {trial.number: _ratios(trial, clock) for trial in timed}
    log_noise = pooled_log_noise(list(ratios.values()))
    contenders = [trial for trial in timed if trial.fits(budget_bytes) and not trial.measurement.lost_race]
    if log_noise is None or not contenders:
        return None
    logs = {trial.number: math.log(relative_step_times[trial.number]) for trial in contenders}
    errors = {number: _median_error(ratios[number], log_noise) for number in logs}
    best = min(logs, key=logs.__getitem__)
    tied = sum(
        log - logs[best] <= _TIED_ERRORS * math.hypot(errors[number], errors[best]) for number, log in logs.items()
    )
    return Race(
        best_relative_step_time=math.exp(logs[best] + _expected_luck(tied) * errors[best]),
        best_log_error=errors[best],
        pair_log_noise=log_noise,
        most_pairs=max(MIN_PAIRS, MOST_PAIRS_FACTOR * timed_pairs),
    )


def _ratios(trial: TrialRecord, clock: Clock) -> list[float]:
    return [clock(pair.plan) / clock(pair.reference) for pair in trial.measurement.pairs]


def _median_error(ratios: Sequence[float], log_noise: float) -> float:
    """Standard error of the median's logarithm, by the pooled noise or the trial's own where that is larger."""
    own = stdev([math.log(ratio) for ratio in ratios]) if len(ratios) >= MIN_PAIRS else 0.0
    return max(log_noise, own) * _MEDIAN_ERROR / math.sqrt(len(ratios))


def _expected_luck(count: int) -> float:
    """How far the smallest of `count` standard normal values lies below 0, about: Blom's approximation."""
    return -NormalDist().inv_cdf((1 - 0.375) / (count + 0.25))
