from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from actune.records import Environment, Measurement, Outcome, SamplePair, StepSample
from actune.statistics import clock_of, median_step_time_s, relative_step_time, relative_with_interval

CPU = Environment("cpu", "A processor", None, 1, "2.11.0", "3.11.7", "Linux")


def step(step_time_s: float, process_s: float = 1.0) -> StepSample:
    return StepSample(step_time_s, process_s)


def wall(sample: StepSample) -> float:
    return sample.step_time_s


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (CPU, 2.0),
        (replace(CPU, threads=4), 3.0),
        (replace(CPU, device="cuda"), 3.0),
        (replace(CPU, device="cuda:1"), 3.0),
    ],
)
def test_one_thread_on_a_cpu_is_timed_by_the_processes_own_time(environment: Environment, expected: float) -> None:
    assert clock_of(environment)(StepSample(step_time_s=3.0, process_s=2.0)) == expected


def test_median_step_time() -> None:
    assert median_step_time_s([step(3.0), step(1.0), step(2.0)]) == 2.0
    assert median_step_time_s([step(3.0), step(1.0)]) == 2.0
    assert median_step_time_s([]) is None


def test_relative_step_time_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    pairs = tuple(SamplePair(step(a), step(b)) for a, b in [(1.0, 2.0), (4.0, 4.0), (30.0, 10.0)])
    assert relative_step_time(Measurement(Outcome.OK, 1, pairs=pairs), wall) == 1.0  # of 0.5, 1, 3; the medians say 1
    pairs = tuple(SamplePair(step(a), step(b)) for a, b in [(1.0, 2.0), (4.0, 1.0), (9.0, 3.0)])
    assert relative_step_time(Measurement(Outcome.OK, 1, pairs=pairs), wall) == 3.0  # the medians say 2
    assert relative_step_time(Measurement(Outcome.OK, 1), wall) is None


def test_a_drift_of_the_machine_cancels() -> None:
    drift = [1.0, 2.0, 5.0, 0.5, 3.0, 8.0, 1.5]
    result = relative_with_interval([step(1.5 * d) for d in drift], [step(d) for d in drift], wall)
    assert result == pytest.approx((1.5, 1.5, 1.5))


# Table A3 of Conover's book for p = ½; ranks from 1, upper is count + 1 - lower.
@pytest.mark.parametrize(
    ("count", "lower"), [(1, 1), (2, 1), (5, 1), (6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (25, 8)]
)
def test_interval_lies_between_the_ranks_of_the_binomial(count: int, lower: int) -> None:
    ratios = [float(rank) for rank in range(1, count + 1)]
    random.Random(0).shuffle(ratios)
    median, low, high = relative_with_interval([step(r) for r in ratios], [step(1.0)] * count, wall)
    assert (low, high) == (lower, count + 1 - lower)
    assert median == (count + 1) / 2


@pytest.mark.parametrize("count", range(6, 60))
def test_no_narrower_interval_covers_95_percent(count: int) -> None:
    ratios = [float(rank) for rank in range(count)]
    _, low, _ = relative_with_interval([step(r) for r in ratios], [step(1.0)] * count, wall)

    def coverage(rank: int) -> float:
        return 1 - 2 * sum(math.comb(count, below) for below in range(rank + 1)) / 2**count

    assert coverage(int(low)) >= 0.95 > coverage(int(low) + 1)


@pytest.mark.parametrize("count", [6, 9, 12, 21])
def test_coverage_by_simulation_is_what_the_binomial_says(count: int) -> None:
    draw = random.Random(count)
    runs, covered = 4000, 0
    for _ in range(runs):
        # Skewed, as step times are; the median of the ratio is exp(0) = 1.
        ratios = [math.exp(draw.expovariate(1.0) - math.log(2)) for _ in range(count)]
        _, low, high = relative_with_interval([step(r) for r in ratios], [step(1.0)] * count, wall)
        covered += low <= 1.0 <= high
    ranks = [float(rank) for rank in range(count)]
    _, lower_rank, _ = relative_with_interval([step(r) for r in ranks], [step(1.0)] * count, wall)
    expected = 1 - 2 * sum(math.comb(count, below) for below in range(int(lower_rank) + 1)) / 2**count
    four_sigma = 4 * math.sqrt(expected * (1 - expected) / runs)
    assert expected >= 0.95
    assert covered / runs == pytest.approx(expected, abs=four_sigma)


def test_thousands_of_rounds_have_an_interval() -> None:
    count = 3000
    _, low, high = relative_with_interval([step(r) for r in range(count)], [step(1.0)] * count, wall)
    half_width = 1.96 * math.sqrt(count) / 2
    assert low == pytest.approx(count / 2 - half_width, abs=2)
    assert high == pytest.approx(count / 2 + half_width, abs=2)


def test_rounds_have_to_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        relative_with_interval([step(1.0)], [step(1.0)] * 2, wall)
