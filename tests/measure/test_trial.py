"""How long a trial takes its peak and its step times: endurance and races."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from actune.measure import Workload, measure_plan, open_device
from actune.measure.device import CpuDevice
from actune.plan import Plan, Treatment, dump_plan
from actune.racing import MIN_PAIRS, Race
from actune.records import Measurement, MeasurePlan, Outcome, StepSample
from tests.ac.models import uniform
from tests.measure.targets import Plain

FULL, NONE = dump_plan(uniform(Treatment("full"))), dump_plan(Plan())
RACE = Race(best_relative_step_time=1.0, best_log_error=0.005, pair_log_noise=0.01, most_pairs=12)
TIMED_PAIRS = 6


class ScriptedDevice(CpuDevice):
    """A CPU whose clock shows what the test says: the plan's step takes the ratio, the reference's a second."""

    def __init__(self, ratios: Sequence[float]) -> None:
        super().__init__()
        self._threads = 1
        self._ratios = ratios
        self._timed = 0

    def timed(self, step: Callable[[], None]) -> StepSample:
        step()
        pair, place = divmod(self._timed, 2)
        self._timed += 1
        is_plan = place == pair % 2  # who goes first alternates
        process_s = self._ratios[pair] if is_plan else 1.0
        return StepSample(step_time_s=1.0, process_s=process_s)


def raced(ratios: Sequence[float], race: Race | None = RACE) -> Measurement:
    workload = Workload("tests.measure.targets:Plain", ScriptedDevice(ratios), seed=0)
    request = MeasurePlan(FULL, NONE, None, TIMED_PAIRS, race)
    measurement = measure_plan(workload, request).measurement
    assert measurement.outcome is Outcome.OK
    assert [pair.plan.process_s / pair.reference.process_s for pair in measurement.pairs] == list(
        ratios[: len(measurement.pairs)]
    )
    return measurement


def test_a_plan_that_is_clearly_slower_stops_early_and_its_peak_is_whole() -> None:
    lost = raced([1.1] * 12)
    assert len(lost.pairs) == MIN_PAIRS
    assert lost.lost_race
    assert lost.peak_bytes == raced([1.1] * 12, race=None).peak_bytes


def test_a_plan_that_is_clearly_faster_is_timed_as_without_a_race_and_lost_nothing() -> None:
    won = raced([0.9] * 12)
    assert MIN_PAIRS < len(won.pairs) == TIMED_PAIRS < RACE.most_pairs
    assert not won.lost_race


def test_a_plan_that_may_still_win_gets_the_most_pairs() -> None:
    measurement = raced([1.001, 0.999] * 6)
    assert len(measurement.pairs) == RACE.most_pairs > TIMED_PAIRS
    assert not measurement.lost_race


def test_a_plan_that_turns_out_slower_late_was_timed_to_its_end() -> None:
    measurement = raced([1.0] * 4 + [1.05] * 8)
    assert TIMED_PAIRS <= len(measurement.pairs) < RACE.most_pairs
    assert not measurement.lost_race


def test_without_a_race_all_pairs_are_timed() -> None:
    measurement = raced([1.5] * TIMED_PAIRS, race=None)
    assert len(measurement.pairs) == TIMED_PAIRS
    assert not measurement.lost_race


def test_a_simulated_step_stands_for_all_and_no_race_is_run() -> None:
    workload = Workload("tests.measure.targets:Plain", open_device("sim:tiny"), seed=0)
    race = Race(0.01, 0.0, 0.01, most_pairs=12)
    measurement = measure_plan(workload, MeasurePlan(FULL, NONE, None, TIMED_PAIRS, race)).measurement
    assert len(measurement.pairs) == TIMED_PAIRS
    assert not measurement.lost_race


class Growing(Plain):
    """Its batches have 4, 8, 12 … rows, the later ones fewer again."""

    def batch(self, step: int) -> torch.Tensor:
        self.batches_asked_for.append(step)
        return torch.ones(4 * (step + 1 if step < 4 else 1), 8)


def endured(peak_steps: int, budget_bytes: int | None = None, pairs: int = 0) -> tuple[Measurement, list[int]]:
    workload = Workload("tests.measure.test_trial:Growing", open_device("cpu"), seed=0)
    request = MeasurePlan(FULL, NONE if pairs else None, budget_bytes, pairs, peak_steps=peak_steps)
    measurement = measure_plan(workload, request).measurement
    asked_for: list[int] = workload.target._build.__self__.batches_asked_for  # type: ignore[attr-defined]
    return measurement, list(dict.fromkeys(asked_for))


def test_the_highest_peak_of_all_batches_counts() -> None:
    peaks = [endured(peak_steps)[0].peak_bytes or 0 for peak_steps in (2, 3, 4, 6)]
    assert peaks[0] < peaks[1] < peaks[2] == peaks[3]
    assert endured(6)[1] == [0, 1, 2, 3, 4, 5]


def test_it_stops_at_the_first_step_over_the_budget() -> None:
    within_bytes = endured(2)[0].peak_bytes
    measurement, asked_for = endured(6, budget_bytes=within_bytes)
    assert measurement.outcome is Outcome.OVER_BUDGET
    assert asked_for == [0, 1, 2]
    assert measurement.peak_bytes is not None
    assert measurement.peak_bytes > (within_bytes or 0)


def test_timed_steps_have_batches_of_their_own() -> None:
    assert endured(3, pairs=2)[1] == [0, 1, 2, 3, 4, 5]


def test_requests_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="peak_steps: 1 do not show a step with the optimizer's state"):
        MeasurePlan(FULL, None, None, 0, peak_steps=1)
    with pytest.raises(ValueError, match=r"race\.most_pairs: 12 are fewer than 13 timed pairs"):
        MeasurePlan(FULL, NONE, None, 13, RACE)
