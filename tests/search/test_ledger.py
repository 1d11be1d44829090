"""What a study's trials come to together: the best plan so far, how well it is known, and what the next one races."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from actune.plan import NO_AC, Plan, Treatment, dump_plan, plan_hash
from actune.racing import LEAST_LOG_NOISE, MIN_TRIALS
from actune.records import LoadTarget, Measurement, Outcome, SamplePair, StepSample
from actune.search.advice import MeasuredRatio
from actune.search.forecast import Forecast
from actune.search.foresight import Foresight
from actune.search.ledger import MEDIAN_ERROR, UNKNOWN_LOG_NOISE, Ledger
from actune.search.race import MOST_PAIRS_FACTOR
from actune.search.space import ModelSpace
from actune.store import Store
from actune.study_records import TrialRecord

from .fakes import SETTINGS, Listener, Machine, peak_of, space_of, time_of

FULL, SAC_1, SAC_2 = (
    Treatment("full"),
    Treatment("selective", save_every_nth_mm=1),
    Treatment("selective", save_every_nth_mm=2),
)
BUDGET_BYTES = 2000
QUIET = (1.0, 1.0, 1.0)
NOISY = (0.95, 1.0, 1.05)
TIMED_PAIRS = 3


def plan_of(*treatments: Treatment) -> Plan:
    return Plan.from_treatments({f"layers.{number}": treatment for number, treatment in enumerate(treatments)})


REFERENCE = plan_of(FULL, FULL, FULL, FULL)


class Study:
    """A ledger, and trials that follow the fakes' formula."""

    def __init__(self, store: Store, *, can_be_profiled: bool) -> None:
        self.machine = Machine(can_be_profiled=can_be_profiled)
        structure = self.machine.structure
        engine = self.machine.start(LoadTarget("dense-tiny", "cpu", 0), workers=1, timeout_s=60.0, log_folder=Path())
        loaded = engine.load()
        store.create_study("a", SETTINGS, loaded.target, loaded.environment)
        space = ModelSpace(space_of(), structure)
        forecast = Forecast(engine, structure, space)
        self.foresight = Foresight(store, "a", forecast, space, structure, seed=0)
        self.foresight.look_ahead(Listener())
        self.ledger = Ledger(self.foresight, lambda sample: sample.step_time_s)
        self.ledger.set_reference(REFERENCE)

    def ratio(self, plan: Plan) -> float:
        structure = self.machine.structure
        return time_of(plan, structure) / time_of(REFERENCE, structure)

    def measure(
        self,
        plan: Plan,
        *,
        off_by: float = 1.0,
        noise: Sequence[float] = QUIET,
        outcome: Outcome = Outcome.OK,
        lost_race: bool = False,
    ) -> TrialRecord:
        """Adds the plan's trial, its median off by a factor."""
        ratio = self.ratio(plan) * off_by
        pairs = tuple(SamplePair(StepSample(ratio * each, 9.0), StepSample(1.0, 1.0)) for each in noise)
        peak_bytes = peak_of(plan, self.machine.structure)
        measurement = Measurement(
            outcome, peak_bytes, pairs=pairs if outcome is Outcome.OK else (), lost_race=lost_race
        )
        toml = dump_plan(plan, with_provenance=False)
        trial = TrialRecord(len(self.ledger.trials), plan_hash(plan), toml, None, 1, False, measurement, "2026", "2026")
        self.ledger.add(trial)
        return trial


@pytest.fixture
def study(store: Store) -> Study:
    return Study(store, can_be_profiled=True)


@pytest.fixture
def unprofiled(store: Store) -> Study:
    return Study(store, can_be_profiled=False)


TWINS = (
    plan_of(SAC_1, SAC_1, SAC_2, SAC_2),
    plan_of(SAC_1, SAC_2, SAC_1, SAC_2),
    plan_of(SAC_1, SAC_2, SAC_2, SAC_1),
    plan_of(SAC_2, SAC_1, SAC_2, SAC_1),
)
FASTER = plan_of(SAC_1, SAC_1, SAC_1, SAC_2)
"""A twentieth of the step without AC less than the twins."""


def test_a_lucky_trial_is_not_the_best_where_others_of_the_same_parts_say_so(study: Study) -> None:
    lucky, *others = TWINS
    study.measure(REFERENCE, noise=NOISY)
    for plan in others:
        study.measure(plan, noise=NOISY)
    truly_best = study.measure(FASTER, noise=NOISY)
    looks_best = study.measure(lucky, off_by=0.95, noise=NOISY)
    assert study.ledger.relative_step_times[looks_best.number] < study.ledger.relative_step_times[truly_best.number]
    fitting = study.ledger.fitting(BUDGET_BYTES)
    assert fitting[0] == truly_best
    assert study.ledger.estimate(looks_best) == pytest.approx(study.ratio(lucky), rel=0.02)
    best = study.ledger.best(BUDGET_BYTES)
    assert best is not None
    assert (best.plan, best.reference) == (FASTER, REFERENCE)
    assert best.relative_step_time == study.ledger.relative_step_times[truly_best.number]


def test_without_predictions_the_best_is_what_was_measured_fastest(unprofiled: Study) -> None:
    lucky, *others = TWINS
    study = unprofiled
    assert study.foresight.advice is None
    assert study.ledger.advice is None
    for plan in (REFERENCE, *others, FASTER):
        study.measure(plan, noise=NOISY)
    looks_best = study.measure(lucky, off_by=0.95, noise=NOISY)
    assert study.ledger.fitting(BUDGET_BYTES)[0] == looks_best
    assert study.ledger.estimate(looks_best) == study.ledger.relative_step_times[looks_best.number]


def test_exact_measurements_are_believed(study: Study) -> None:
    trials = [study.measure(plan) for plan in (REFERENCE, TWINS[0], FASTER, plan_of(SAC_1, SAC_1, SAC_1, SAC_1))]
    for trial in trials:
        assert study.ledger.estimate(trial) == pytest.approx(
            study.ledger.relative_step_times[trial.number], rel=LEAST_LOG_NOISE
        )
    by_time = sorted(trials, key=lambda trial: study.ledger.relative_step_times[trial.number])
    assert study.ledger.fitting(10_000) == by_time


def test_a_plan_that_is_not_profiled_is_taken_as_measured(study: Study) -> None:
    unknown = plan_of(*(Treatment("selective", save_every_nth_mm=4),) * 4)
    study.measure(REFERENCE)
    trial = study.measure(unknown, off_by=0.7)
    assert study.ledger.estimate(trial) == study.ledger.relative_step_times[trial.number]
    best = study.ledger.best(BUDGET_BYTES)
    assert best is not None
    assert best.plan == unknown


def test_of_equally_fast_plans_the_first_is_the_best(unprofiled: Study) -> None:
    first, second = TWINS[:2]
    by_number = [unprofiled.measure(first), unprofiled.measure(second)]
    unprofiled.ledger.relative_step_times[1] = unprofiled.ledger.relative_step_times[0]
    assert unprofiled.ledger.fitting(BUDGET_BYTES) == by_number


def test_only_what_ran_well_within_the_budget_may_be_the_best(study: Study) -> None:
    reference = study.measure(REFERENCE)
    fast = study.measure(plan_of(NO_AC, NO_AC, SAC_1, SAC_1))
    study.measure(plan_of(NO_AC, SAC_1, SAC_1, SAC_1), outcome=Outcome.OVER_BUDGET)
    study.measure(plan_of(NO_AC, SAC_2, SAC_2, SAC_2), outcome=Outcome.CRASHED)
    assert study.ledger.fitting(10_000) == [fast, reference]
    assert study.ledger.fitting(BUDGET_BYTES) == [reference]
    assert study.ledger.fitting(1000) == []
    assert study.ledger.best(1000) is None


def test_there_is_no_best_before_there_is_a_reference(study: Study) -> None:
    ledger = Ledger(study.foresight, lambda sample: sample.step_time_s)
    ledger.add(study.measure(TWINS[0]))
    assert ledger.best(BUDGET_BYTES) is None
    ledger.set_reference(REFERENCE)
    assert ledger.best(BUDGET_BYTES) is not None


def test_the_error_of_the_best_is_that_of_a_median_under_the_noise_of_all_trials(unprofiled: Study) -> None:
    def log_error() -> float:
        best = unprofiled.ledger.best(BUDGET_BYTES)
        assert isinstance(best, MeasuredRatio)
        return best.log_error

    unprofiled.measure(REFERENCE)
    assert log_error() == pytest.approx(MEDIAN_ERROR * UNKNOWN_LOG_NOISE / TIMED_PAIRS**0.5)
    for plan in TWINS[: MIN_TRIALS - 1]:
        unprofiled.measure(plan)
    assert log_error() == pytest.approx(MEDIAN_ERROR * LEAST_LOG_NOISE / TIMED_PAIRS**0.5)
    unprofiled.measure(FASTER, noise=QUIET * 4)
    assert log_error() == pytest.approx(MEDIAN_ERROR * LEAST_LOG_NOISE / (4 * TIMED_PAIRS) ** 0.5)


def test_trials_are_found_by_their_plan(study: Study) -> None:
    trial = study.measure(FASTER)
    assert study.ledger.of_plan(plan_hash(FASTER)) == trial
    assert study.ledger.of_plan(plan_hash(REFERENCE)) is None


def test_each_budget_has_a_race_of_its_own(study: Study) -> None:
    small = plan_of(SAC_2, SAC_2, FULL, FULL)
    study.measure(REFERENCE)
    study.measure(small)
    assert study.ledger.race(BUDGET_BYTES, timed_pairs=TIMED_PAIRS) is None  # two trials don't tell the noise
    study.measure(FASTER)
    large, smaller = (
        study.ledger.race(budget_bytes, timed_pairs=TIMED_PAIRS)
        for budget_bytes in (BUDGET_BYTES, peak_of(small, study.machine.structure))
    )
    assert large is not None
    assert smaller is not None
    assert large.best_relative_step_time == pytest.approx(study.ratio(FASTER))
    assert smaller.best_relative_step_time == pytest.approx(study.ratio(small))
    assert large.most_pairs == MOST_PAIRS_FACTOR * TIMED_PAIRS
    assert large.pair_log_noise == LEAST_LOG_NOISE
    assert study.ledger.race(1000, timed_pairs=TIMED_PAIRS) is None


def test_what_was_measured_of_a_part_moves_the_estimate_of_a_plan_that_was_timed_before(study: Study) -> None:
    study.measure(REFERENCE, noise=NOISY)
    trial = study.measure(TWINS[0], off_by=0.9, noise=NOISY)
    before = study.ledger.estimate(trial)
    for plan in TWINS[1:]:
        study.measure(plan, noise=NOISY)
    assert before < study.ledger.estimate(trial) < study.ratio(TWINS[0]) * 1.01
