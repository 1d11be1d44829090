"""The race of the next trial, from those before."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import median

import pytest

from actune.racing import ERROR_RATE, MIN_TRIALS, Race
from actune.records import Measurement, Outcome, SamplePair, StepSample
from actune.search.race import race_for
from actune.study_records import TrialRecord

BUDGET_BYTES = 1000
TIMED_PAIRS = 8
NOISY = (0.97, 1.0, 1.04, 0.98, 1.0, 1.03, 1.0, 0.96)


def trial(number: int, ratios: Sequence[float], *, peak_bytes: int = 900, lost_race: bool = False) -> TrialRecord:
    pairs = tuple(SamplePair(StepSample(9.0, ratio), StepSample(1.0, 1.0)) for ratio in ratios)
    measurement = Measurement(Outcome.OK, peak_bytes, pairs=pairs, lost_race=lost_race)
    return TrialRecord(number, f"{number:016x}", "schema = 1\n", None, 1, False, measurement, "", "")


def race(trials: Sequence[TrialRecord]) -> Race | None:
    times = {t.number: median(pair.plan.process_s for pair in t.measurement.pairs) for t in trials}
    return race_for(trials, times, BUDGET_BYTES, lambda sample: sample.process_s, timed_pairs=TIMED_PAIRS)


def scaled(ratio: float) -> list[float]:
    return [ratio * noisy for noisy in NOISY]


def test_there_is_none_before_the_noise_is_known_and_a_plan_fits() -> None:
    trials = [trial(number, scaled(1.0)) for number in range(MIN_TRIALS)]
    assert race(trials[:-1]) is None
    assert race(trials) is not None
    assert race([trial(number, scaled(1.0), peak_bytes=1001) for number in range(MIN_TRIALS)]) is None


def test_the_bar_is_the_fastest_that_fits_and_was_timed_to_its_end() -> None:
    trials = [
        trial(0, scaled(1.0)),
        trial(1, scaled(0.8)),
        trial(2, scaled(0.5), peak_bytes=1001),
        trial(3, [0.6, 0.6, 0.6], lost_race=True),
        trial(4, scaled(1.3)),
    ]
    found = race(trials)
    assert found is not None
    assert found.best_relative_step_time == pytest.approx(0.8)
    assert found.pair_log_noise == pytest.approx(0.03, rel=0.3)
    assert found.best_log_error == pytest.approx(0.03 * 1.25 / math.sqrt(8), rel=0.3)
    assert found.most_pairs == 2 * TIMED_PAIRS


def test_the_best_of_equally_fast_plans_is_not_taken_at_its_luck() -> None:
    trials = [trial(number, scaled(ratio)) for number, ratio in enumerate((1.0, 0.8, 0.805, 0.81, 0.802))]
    found = race(trials)
    assert found is not None
    # Of the smallest of four standard normal values, -1.03 is expected.
    assert math.log(found.best_relative_step_time / 0.8) == pytest.approx(1.03 * found.best_log_error, rel=0.02)


def test_a_best_that_was_noisier_than_the_others_is_known_less_well() -> None:
    quiet, loud = [0.8 * (1 + (noisy - 1) / 10) for noisy in NOISY], scaled(0.8)
    known, less_known = (
        race([trial(0, best), *(trial(number, [1.0, 1.002, 0.998, 1.0] * 2) for number in (1, 2, 3, 4))])
        for best in (quiet, loud)
    )
    assert known is not None
    assert less_known is not None
    assert less_known.best_log_error > 3 * known.best_log_error


def test_over_whole_studies_of_equally_fast_plans_the_error_rate_holds() -> None:
    rng = random.Random(0)
    raced = lost = 0
    for _ in range(150):
        trials: list[TrialRecord] = []
        for number in range(10):
            ratios = [math.exp(rng.gauss(0.0, 0.03)) for _ in range(2 * TIMED_PAIRS)]
            found, pairs, standing = race(trials), TIMED_PAIRS, "open"
            if found is not None:
                raced += 1
                for pairs in range(1, found.most_pairs + 1):
                    standing = found.standing(ratios[:pairs])
                    if standing != "open":
                        break
            lost += standing == "slower"
            trials.append(trial(number, ratios[:pairs], lost_race=standing == "slower"))
    assert raced == 150 * (10 - MIN_TRIALS)
    assert lost / raced <= ERROR_RATE
