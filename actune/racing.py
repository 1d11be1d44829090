"""When timing a plan may stop: a sequential test of its step time against the best plan's of the study.

Both are step times relative to one reference plan, so the test is on logarithms of ratios, and a plan as fast as the
best is a random walk without drift. After each pair the walk is compared with a boundary that holds at all times at
once, so that looking after every pair costs nothing in certainty.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median
from typing import Literal

Standing = Literal["slower", "faster", "open"]

ERROR_RATE = 0.05
"""The probability, at most, that a plan which is no slower than the best is ever called slower in its trial."""

MIN_PAIRS = 3
"""Before that many pairs nothing is said, whatever they show: two steps in a row may have been interrupted."""

CLIP = 2.5
"""A pair counts for no more than this many standard deviations, so that few odd steps decide nothing."""

MIN_TRIALS = 3
"""Pooled noise is of at least that many trials: one may have had the machine for itself."""

LEAST_LOG_NOISE = 0.002
"""Pooled noise is at least this. Clocks are no better, and a simulated one has no noise at all."""

_NORMAL = NormalDist()
_BOUNDARY = _NORMAL.inv_cdf(1.0 - ERROR_RATE / 2.0)
_WITHIN_ONE_SD = _NORMAL.cdf(1.0) - _NORMAL.cdf(-1.0)


@dataclass(frozen=True, slots=True)
class Race:
    """What a trial's timing runs against.

    Attributes:
        best_relative_step_time: of the study's best plan so far, against the reference that the trial has too.
        best_log_error: standard error of its logarithm.
        pair_log_noise: standard deviation of the logarithm of one pair's ratio, pooled over the study's trials.
        most_pairs: how many pairs a plan gets that may still win.

    Raises:
        ValueError: a number is not finite or out of its range.
    """

    best_relative_step_time: float
    best_log_error: float
    pair_log_noise: float
    most_pairs: int

    def __post_init__(self) -> None:
        if not 0.0 < self.best_relative_step_time < math.inf:
            raise ValueError(f"best_relative_step_time: {self.best_relative_step_time} is no ratio of times")
        if not 0.0 <= self.best_log_error < math.inf:
            raise ValueError(f"best_log_error: {self.best_log_error} is no standard error")
        if not 0.0 < self.pair_log_noise < math.inf:
            raise ValueError(f"pair_log_noise: {self.pair_log_noise} is no standard deviation above 0")
        if self.most_pairs < MIN_PAIRS:
            raise ValueError(f"most_pairs: {self.most_pairs} are fewer than the {MIN_PAIRS} that a race takes")

    def standing(self, ratios: Sequence[float]) -> Standing:
        """How the plan stands after its pairs so far; to be asked after each pair.

        The sum of the log ratios' distances to the best's is a random walk, without drift if the two are equally fast.
        Its boundary is a constant, which such a walk crosses anywhere on its way with at most twice the probability of
        ending beyond it (Lévy's inequality, for any symmetric noise; the reflection principle for a normal one; known
        as O'Brien and Fleming's test). Since a race has an end, this is tighter than boundaries that hold for ever.
        "faster" is the same test upside down.

        The best's own time is only known as well as a number of pairs tells it. As in any comparison of two samples,
        the score is a Brownian motion in the information on their difference (Jennison and Turnbull, Group Sequential
        Methods, 1999, chapter 3); so pairs count as fewer, and never as more than the best's own.

        Distances are in standard deviations: the pooled one, or the trial's own where that is larger, as when another
        program has started since. They are clipped to CLIP, which takes from a symmetric noise its tails and not its
        centre. That the rate holds under noise as it is, which is neither normal nor independent, tests/test_racing.py
        shows with recorded pairs.

        Args:
            ratios: of the plan's time to the reference's, in the order of the pairs.

        Raises:
            ValueError: there are more than `most_pairs`.
        """
        if len(ratios) > self.most_pairs:
            raise ValueError(f"{len(ratios)} pairs in a race of {self.most_pairs}")
        if len(ratios) < MIN_PAIRS:
            return "open"
        logs = [math.log(ratio) for ratio in ratios]
        log_noise = max(self.pair_log_noise, _cautious_stdev(logs))
        best_log = math.log(self.best_relative_step_time)
        distances = [max(-CLIP, min(CLIP, (log - best_log) / log_noise)) for log in logs]
        score = self._information(len(logs), log_noise) * fmean(distances)
        boundary = _BOUNDARY * math.sqrt(self._information(self.most_pairs, log_noise))
        if score >= boundary:
            return "slower"
        return "faster" if score <= -boundary else "open"

    def _information(self, pairs: int, log_noise: float) -> float:
        """On the difference to the best: as many pairs with an exactly known best would give as much."""
        return pairs / (1.0 + pairs * (self.best_log_error / log_noise) ** 2)


def _cautious_stdev(logs: Sequence[float]) -> float:
    """Sample standard deviation, larger for few values, among which it is often far too small.

    The factor is about that of Student's t quantile to the normal one (2.5%): 2.2 for three values, 1.2 for eight.
    """
    mean, degrees = fmean(logs), len(logs) - 1
    return math.sqrt(sum((log - mean) ** 2 for log in logs) / degrees) * (degrees + 2) / degrees


def pooled_log_noise(ratios_of_trials: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of the logarithm of one pair's ratio within a trial, or None before MIN_TRIALS tell it.

    It is the distance from their trial's median that 68.3% of all pairs keep, as they keep one standard deviation under
    a normal distribution; up to a third of the pairs may be off by any amount. At least LEAST_LOG_NOISE.

    Args:
        ratios_of_trials: the ratios of each trial's pairs; trials of fewer than MIN_PAIRS are passed over.
    """
    pooled = PooledLogNoise()
    for ratios in ratios_of_trials:
        pooled.add(ratios)
    return pooled.value


class PooledLogNoise:
    """As `pooled_log_noise`, of trials that come one after another."""

    def __init__(self) -> None:
        self._trials = 0
        self._deviations: list[float] = []  # sorted

    def add(self, ratios: Sequence[float]) -> None:
        """Takes the ratios of a trial's pairs in."""
        if len(ratios) >= MIN_PAIRS:
            self._trials += 1
            for deviation in _log_deviations(ratios):
                insort(self._deviations, deviation)

    @property
    def value(self) -> float | None:
        """None before MIN_TRIALS tell it."""
        if self._trials < MIN_TRIALS:
            return None
        return max(LEAST_LOG_NOISE, self._deviations[math.ceil(_WITHIN_ONE_SD * len(self._deviations)) - 1])


def _log_deviations(ratios: Sequence[float]) -> list[float]:
    logs = [math.log(ratio) for ratio in ratios]
    middle = median(logs)
    # A median lies nearer to the values that it was taken from than the true one does.
    correction = math.sqrt(len(logs) / (len(logs) - 1))
    return [abs(log - middle) * correction for log in logs]
