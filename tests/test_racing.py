"""The sequential test: how often it is wrong, and how soon it is right, under made and under recorded noise."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from actune.racing import ERROR_RATE, LEAST_LOG_NOISE, MIN_PAIRS, MIN_TRIALS, Race, Standing, pooled_log_noise

RECORDED = Path(__file__).parent / "data" / "pair_log_ratios.json"
TIMED_PAIRS = 8
MOST_PAIRS = 16
TRIALS = 2000

Noise = Callable[[random.Random, int], list[float]]
"""Draws the logarithms of that many pairs' ratios, one after the other, of a plan as fast as its reference."""


def gaussian(log_noise: float) -> Noise:
    return lambda rng, pairs: [rng.gauss(0.0, log_noise) for _ in range(pairs)]


def recorded(target: str, clock: str) -> Noise:
    """Runs of pairs as they were recorded, since noise comes in bursts; each plan's centre is taken off."""
    trials = [trial for trial in json.loads(RECORDED.read_text())["trials"] if trial["target"] == target]
    runs = []
    for plan in ("full", "sac"):
        of_plan = [trial[clock] for trial in trials if trial["plan"] == plan]
        centre = median(log for logs in of_plan for log in logs)
        runs += [[log - centre for log in logs] for logs in of_plan]

    def draw(rng: random.Random, pairs: int) -> list[float]:
        logs = rng.choice(runs)
        start = rng.randrange(len(logs) - pairs + 1)
        return logs[start : start + pairs]

    return draw


def run(race: Race, ratios: list[float]) -> tuple[Standing, int]:
    """How a trial ends, and after how many pairs."""
    for pairs in range(1, race.most_pairs + 1):
        standing = race.standing(ratios[:pairs])
        if standing != "open":
            return standing, pairs
    return "open", race.most_pairs


@dataclass
class Outcomes:
    """Of many trials: how each ended and after how many pairs."""

    ends: list[tuple[Standing, int]]

    def share(self, standing: Standing, *, within: int = MOST_PAIRS) -> float:
        return Counter(end == standing and pairs <= within for end, pairs in self.ends)[True] / len(self.ends)

    @property
    def median_pairs(self) -> float:
        return median(pairs for _, pairs in self.ends)


def simulate(noise: Noise, *, times_slower: float, past_trials: int = MIN_TRIALS) -> Outcomes:
    """Trials as a study has them: noise is known from a few earlier trials, and the best's time from one of them."""
    rng = random.Random(0)
    ends = []
    for _ in range(TRIALS):
        past = [[math.exp(log) for log in noise(rng, TIMED_PAIRS)] for _ in range(past_trials)]
        log_noise = pooled_log_noise(past)
        assert log_noise is not None
        race = Race(median(past[0]), log_noise * math.sqrt(math.pi / 2 / TIMED_PAIRS), log_noise, MOST_PAIRS)
        ends.append(run(race, [times_slower * math.exp(log) for log in noise(rng, MOST_PAIRS)]))
    return Outcomes(ends)


REAL = [(target, clock) for target in ("dense-tiny", "moe-tiny") for clock in ("process", "wall")]


@pytest.mark.parametrize("best_pairs", [3, 8, 30, math.inf])
def test_error_rate_where_the_noise_is_known(best_pairs: float) -> None:
    rng = random.Random(0)
    log_noise, best_log_error = 0.01, 0.01 / math.sqrt(best_pairs)
    errors: Counter[Standing] = Counter()
    for _ in range(2 * TRIALS):
        race = Race(math.exp(rng.gauss(0.0, best_log_error)), best_log_error, log_noise, MOST_PAIRS)
        errors[run(race, [math.exp(rng.gauss(0.0, log_noise)) for _ in range(MOST_PAIRS)])[0]] += 1
    for end in ("slower", "faster"):
        assert ERROR_RATE / 4 <= errors[end] / errors.total() <= ERROR_RATE


@pytest.mark.parametrize("past_trials", [3, 8])
def test_error_rate_where_the_noise_is_pooled(past_trials: int) -> None:
    outcomes = simulate(gaussian(0.03), times_slower=1.0, past_trials=past_trials)
    assert outcomes.share("slower") <= ERROR_RATE
    assert outcomes.share("faster") <= ERROR_RATE


@pytest.mark.parametrize("past_trials", [3, 8])
@pytest.mark.parametrize(("target", "clock"), REAL)
def test_error_rate_under_recorded_noise(target: str, clock: str, past_trials: int) -> None:
    outcomes = simulate(recorded(target, clock), times_slower=1.0, past_trials=past_trials)
    assert outcomes.share("slower") <= ERROR_RATE
    assert outcomes.share("faster") <= ERROR_RATE


@pytest.mark.parametrize("times_louder", [2.0, 5.0])
def test_error_rate_where_the_trial_is_noisier_than_those_before(times_louder: float) -> None:
    rng = random.Random(0)
    race = Race(1.0, 0.0, 0.01, MOST_PAIRS)
    trials = [[math.exp(rng.gauss(0.0, 0.01 * times_louder)) for _ in range(MOST_PAIRS)] for _ in range(TRIALS)]
    assert Outcomes([run(race, ratios) for ratios in trials]).share("slower") <= ERROR_RATE


def test_slower_plans_stop_soon_and_equal_ones_go_on() -> None:
    noise = gaussian(0.02)
    assert simulate(noise, times_slower=1.1).share("slower", within=4) > 0.9
    assert simulate(noise, times_slower=1.05).share("slower", within=8) > 0.8
    equal = simulate(noise, times_slower=1.0)
    assert equal.median_pairs == MOST_PAIRS
    assert equal.share("open") > 0.9


@pytest.mark.parametrize("target", ["dense-tiny", "moe-tiny"])
def test_slower_plans_stop_soon_and_equal_ones_go_on_under_recorded_noise(target: str) -> None:
    noise = recorded(target, "process")
    slower = simulate(noise, times_slower=1.1)
    assert slower.share("slower") > 0.85
    assert slower.share("slower", within=6) > 0.5
    assert simulate(noise, times_slower=1.2).share("slower", within=5) > 0.8
    assert simulate(noise, times_slower=1.0).share("open") > 0.9


def test_a_faster_plan_is_known_as_soon_as_a_slower_one() -> None:
    assert simulate(gaussian(0.02), times_slower=1 / 1.1).share("faster", within=4) > 0.9


RACE = Race(best_relative_step_time=1.2, best_log_error=0.004, pair_log_noise=0.01, most_pairs=10)


def test_nothing_is_said_before_the_least_number_of_pairs() -> None:
    assert [RACE.standing([9.0] * pairs) for pairs in range(5)] == ["open"] * MIN_PAIRS + ["slower"] * 2
    assert RACE.standing([0.9] * MIN_PAIRS) == "faster"
    assert RACE.standing([1.2] * 10) == "open"


@pytest.mark.parametrize("odd", [1.3, 2.0, 100.0])
def test_two_interrupted_steps_stop_no_good_plan(odd: float) -> None:
    assert RACE.standing([odd, odd, 1.2]) == "open"
    assert RACE.standing([1.2, odd, 1.2, 1.2, odd]) == "open"


def test_a_best_that_is_hardly_known_stops_fewer() -> None:
    ratios = [1.23, 1.24, 1.25, 1.23, 1.25]
    assert RACE.standing(ratios) == "slower"
    assert Race(1.2, 0.03, 0.01, 10).standing(ratios) == "open"


def test_more_pairs_than_the_race_has() -> None:
    with pytest.raises(ValueError, match="11 pairs in a race of 10"):
        RACE.standing([1.2] * 11)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.0, 0.1, 0.1, 9), "best_relative_step_time: 0.0 is no ratio of times"),
        ((math.nan, 0.1, 0.1, 9), "best_relative_step_time: nan"),
        ((1.0, -0.1, 0.1, 9), "best_log_error: -0.1 is no standard error"),
        ((1.0, math.inf, 0.1, 9), "best_log_error: inf"),
        ((1.0, 0.1, 0.0, 9), "pair_log_noise: 0.0 is no standard deviation above 0"),
        ((1.0, 0.1, 0.1, 2), "most_pairs: 2 are fewer than the 3 that a race takes"),
    ],
)
def test_numbers_that_are_none(numbers: tuple[float, float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Race(*numbers)


def test_pooled_noise_is_that_of_pairs_within_trials() -> None:
    rng = random.Random(0)
    # Each trial at a ratio of its own, and one pair in twenty interrupted.
    trials = [
        [ratio * math.exp(rng.gauss(0.0, 0.03)) * (2.0 if rng.random() < 0.05 else 1.0) for _ in range(8)]
        for ratio in (0.7, 0.9, 1.0, 1.3) * 50
    ]
    assert pooled_log_noise(trials) == pytest.approx(0.03, rel=0.15)


def test_pooled_noise_takes_a_few_trials_and_has_a_floor() -> None:
    steady = [1.0] * 4
    assert pooled_log_noise([]) is None
    assert pooled_log_noise([steady] * 2 + [[1.0, 2.0]] * 9) is None
    assert pooled_log_noise([steady] * MIN_TRIALS) == LEAST_LOG_NOISE
