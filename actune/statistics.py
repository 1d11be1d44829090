"""Step times to numbers: ratios in pairs, their median, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from actune.records import Environment, Measurement, StepSample

Clock = Callable[[StepSample], float]


def clock_of(environment: Environment) -> Clock:
    """The time that ratios are taken of.

    With one compute thread on a CPU, the process's own time: it does not count the time that other programs took the
    core away. Elsewhere the step's own time.
    """
    if counts_process_time(environment):
        return lambda sample: sample.process_s
    return lambda sample: sample.step_time_s


def counts_process_time(environment: Environment) -> bool:
    """Whether the clock is the process's own time."""
    return environment.device == "cpu" and environment.threads == 1


@dataclass(frozen=True, slots=True)
class Timing:
    """What the pairs of a trial come to.

    Attributes:
        pairs: how many.
        step_time_s: `median_step_time_s` of the plan's steps.
        relative_step_time: as the function of that name.
    """

    pairs: int
    step_time_s: float
    relative_step_time: float


def timing_of(pairs: Sequence[tuple[float, ...]], *, by_process: bool) -> Timing:
    """Of a trial's pairs as plain numbers: wall and process time of the plan, then of the reference."""
    plan, reference = (1, 3) if by_process else (0, 2)
    return Timing(len(pairs), median(pair[0] for pair in pairs), median(pair[plan] / pair[reference] for pair in pairs))


def median_step_time_s(samples: Sequence[StepSample]) -> float | None:
    """Median of the steps' own times, None without samples."""
    return median(sample.step_time_s for sample in samples) if samples else None


def pair_ratios(measurement: Measurement, clock: Clock) -> list[float]:
    """The plan's time over the reference's, pair by pair."""
    return [clock(pair.plan) / clock(pair.reference) for pair in measurement.pairs]


def relative_step_time(measurement: Measurement, clock: Clock) -> float | None:
    """Median over the pairs of the plan's time over the reference's; None without pairs."""
    return median(pair_ratios(measurement, clock)) if measurement.pairs else None


def relative_with_interval(
    samples: Sequence[StepSample], reference: Sequence[StepSample], clock: Clock
) -> tuple[float, float, float]:
    """Median of the ratios round by round, and a 95% confidence interval of that median.

    The interval is the distribution-free one from order statistics (Conover, Practical Nonparametric Statistics, 3.2):
    the ranks between which the median lies with a probability of at least 0.95 under the binomial with p = ½. With
    fewer than 6 rounds no such ranks exist, and the interval spans all ratios.
    """
    ratios = sorted(clock(a) / clock(b) for a, b in zip(samples, reference, strict=True))
    low = _lower_rank(len(ratios))
    return median(ratios), ratios[low], ratios[len(ratios) - 1 - low]


def _lower_rank(count: int) -> int:
    """The largest rank (from 0) with P(fewer than rank+1 ratios lie below the median) ≤ 2.5%, 0 if there is none."""
    below, rank = 0.0, 0
    for successes in range(count // 2):
        below += math.comb(count, successes) / 2**count
        if below > 0.025:
            break
        rank = successes
    return rank
