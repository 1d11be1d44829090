"""What Optuna is asked and told."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from actune.config import load_space, parse_space
from actune.errors import StorageError, UsageError
from actune.plan import Plan
from actune.records import Measurement, Outcome
from actune.search.proposers import SAMPLERS, check_sampler
from actune.search.space import ModelSpace
from actune.search.study import MAX_ATTEMPTS, PEAK_CONSTRAINT, PlanStudy, optuna_errors
from actune.store import Store

from .fakes import dense, mixture, space_of

BUDGET_BYTES = 1000
OK = Measurement(Outcome.OK, 900)


@contextmanager
def opened(
    store: Store, space: ModelSpace | None = None, *, sampler: str = "tpe", seed: int = 0
) -> Iterator[PlanStudy]:
    space = space or ModelSpace(space_of(), dense(4))
    with closing(PlanStudy(store, "a", space, sampler=sampler, seed=seed)) as study:
        for name in space.presets:
            study.queue_preset(name)
        yield study


def told(study: PlanStudy, measurement: Measurement, ratio: float | None = 1.0, **kwargs: Any) -> FrozenTrial:
    number = study.ask().number
    study.tell(number, measurement, budget_bytes=BUDGET_BYTES, relative_step_time=ratio, **kwargs)
    return study._trial(number)


def test_presets_are_asked_for_first_in_their_order(store: Store) -> None:
    space = ModelSpace(load_space("dense"), dense(8))
    with opened(store, space) as study:
        asked = [study.ask() for _ in range(len(space.presets) + 2)]
    assert [proposal.preset for proposal in asked] == [*load_space("dense").presets, None, None]
    assert {proposal.preset: proposal.plan for proposal in asked[:-2]} == space.presets
    assert [proposal.number for proposal in asked] == list(range(len(asked)))
    assert {proposal.attempt for proposal in asked} == {1}


def test_presets_of_the_space_have_parameters_to_learn_from_and_others_have_none(store: Store) -> None:
    space = ModelSpace(load_space("dense"), dense(8))
    with opened(store, space) as study:
        for preset, plan in space.presets.items():
            params = study._trial(study.ask().number).params
            assert params == (space.encode(plan) or {}), preset
            assert bool(params) == (preset != "full-every-2")


@pytest.mark.parametrize(
    ("measurement", "state", "excess"),
    [
        (OK, TrialState.COMPLETE, -0.1),
        (Measurement(Outcome.OK, 1000), TrialState.COMPLETE, 0.0),
        (Measurement(Outcome.OK, 1500), TrialState.PRUNED, 0.5),  # taken over from a study with a higher budget
        (Measurement(Outcome.OVER_BUDGET, 1200), TrialState.PRUNED, 0.2),
        (Measurement(Outcome.OVER_BUDGET), TrialState.PRUNED, 1.0),
        (Measurement(Outcome.OOM), TrialState.PRUNED, 1.0),
        (Measurement(Outcome.CRASHED), TrialState.FAIL, None),
        (Measurement(Outcome.TIMEOUT), TrialState.FAIL, None),
        (Measurement(Outcome.ERROR, message="boom"), TrialState.FAIL, None),
    ],
)
def test_outcomes_become_states_constraints_and_attributes(
    store: Store, measurement: Measurement, state: TrialState, excess: float | None
) -> None:
    with opened(store) as study:
        trial = told(study, measurement, 0.75)
    assert trial.state is state
    assert trial.value == (0.75 if state is TrialState.COMPLETE else None)
    assert trial.constraints == ({} if excess is None else {PEAK_CONSTRAINT: pytest.approx(excess)})
    assert trial.user_attrs["feasible"] is (excess is not None and excess <= 0)
    assert trial.user_attrs["peak_bytes"] == measurement.peak_bytes


def test_telling_twice_is_harmless(store: Store) -> None:
    with opened(store) as study:
        trial = told(study, OK, 0.5)
        study.tell(trial.number, Measurement(Outcome.CRASHED), budget_bytes=BUDGET_BYTES, relative_step_time=None)
        assert study._trial(trial.number) == trial


def test_constraint_is_set_once_also_if_the_first_telling_was_cut_short(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(store) as study:
        number = study.ask().number
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                study.tell(number, OK, budget_bytes=BUDGET_BYTES, relative_step_time=0.5)
        # Warnings are errors here: Optuna warns of a constraint that is set already.
        study.tell(number, OK, budget_bytes=BUDGET_BYTES, relative_step_time=0.5)
        assert study._trial(number).state is TrialState.COMPLETE
        assert study._trial(number).constraints == {PEAK_CONSTRAINT: pytest.approx(-0.1)}


def test_duplicate_is_told_with_what_it_repeats(store: Store) -> None:
    with opened(store) as study:
        first = told(study, OK, 0.5)
        second = told(study, OK, 0.5, duplicate_of=first.number)
    assert second.user_attrs["actune:duplicate_of"] == first.number
    assert second.value == 0.5


def test_dead_trial_is_queued_again_with_its_plan_twice_at_most(store: Store) -> None:
    with opened(store) as study:
        for _ in range(3):
            told(study, OK)
        proposal = study.ask()
        for attempt in range(2, MAX_ATTEMPTS + 1):
            assert study.running_numbers() == [proposal.number]
            assert study.requeue(proposal.number)
            again = study.ask()
            assert (again.plan, again.preset, again.attempt) == (proposal.plan, None, attempt)
            proposal = again
        assert not study.requeue(proposal.number)
        assert not study.has_queued()
        assert study.running_numbers() == []


def test_queued_plan_that_was_taken_but_not_yet_asked_for_comes_back_as_it_was(store: Store) -> None:
    with opened(store) as study:
        for _ in range(3):
            told(study, OK)
        proposal = study.ask()
        study.requeue(proposal.number)
        taken = study._study.ask()  # where `PlanStudy.ask` dies before its next line
        assert taken.params == {}
        study.requeue(taken.number)
        again = study.ask()
    assert (again.plan, again.attempt) == (proposal.plan, 3)


def test_dead_preset_outside_of_the_space_comes_back(store: Store) -> None:
    yaml = "schema: 1\npresets: [full-every-2]\nmenu:\n  - policy: none\n"
    space = ModelSpace(parse_space(yaml, name="test"), dense(4))
    with opened(store, space) as study:
        proposal = study.ask()
    with opened(store, space) as study:
        study.requeue(proposal.number)
        again = study.ask()
    assert (again.plan, again.preset, again.attempt) == (proposal.plan, "full-every-2", 2)


def test_queue_outlives_the_coordinator(store: Store) -> None:
    with opened(store) as study:
        assert study.ask().preset == "full"
    with opened(store) as study:
        assert [study.ask().preset for _ in range(3)] == ["none", "sac", None]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_resumed_study_goes_on_with_other_proposals(store: Store, sampler: str) -> None:
    space = ModelSpace(parse_space(EVERYTHING, name="test"), dense(12))
    asked: list[Plan] = []
    for _ in range(3):
        with opened(store, space, sampler=sampler) as study:
            for _ in range(3):
                proposal = study.ask()
                asked.append(proposal.plan)
                study.tell(proposal.number, OK, budget_bytes=BUDGET_BYTES, relative_step_time=1.0)
    assert len(set(asked)) == 9


EVERYTHING = load_space("everything").yaml_text.replace("menu:", "presets: []\nmenu:")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_proposes_the_same_plans(store: Store, sampler: str) -> None:
    space = ModelSpace(parse_space(EVERYTHING, name="test"), dense(12))

    def proposals(name: str, seed: int) -> list[Plan]:
        plans = []
        with closing(PlanStudy(store, name, space, sampler=sampler, seed=seed)) as study:
            for _ in range(12 if sampler == "tpe" else 4):  # past what TPE draws at random
                proposal = study.ask()
                plans.append(proposal.plan)
                ratio = len(proposal.plan.describe()) / 100
                study.tell(proposal.number, OK, budget_bytes=BUDGET_BYTES, relative_step_time=ratio)
        return plans

    assert proposals("b", 1) == proposals("c", 1)
    assert proposals("d", 2) != proposals("c", 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("structure", [dense(6), mixture(6)], ids=["dense", "moe"])
def test_parameters_hold_through_every_mode_and_outcome(store: Store, sampler: str, structure: Any) -> None:
    # Past the sampler's startup. Optuna raises where a parameter's categories change; warnings are errors here.
    space = ModelSpace(load_space("everything"), structure)
    outcomes = [OK, Measurement(Outcome.OVER_BUDGET, 1100), Measurement(Outcome.CRASHED)]
    draw = random.Random(0)
    with opened(store, space, sampler=sampler) as study:
        for _ in range(24 if sampler == "tpe" else 12):
            told(study, draw.choice(outcomes), draw.random())


def test_tpe_learns_from_presets_outside_of_the_space_too(store: Store) -> None:
    """A trial without parameters must not put an end to joint sampling, which looks for what trials have in common."""
    space = ModelSpace(load_space("dense"), dense(8))
    with opened(store, space) as study:
        for _ in range(len(space.presets) + 3):
            told(study, OK, 1.0)
        jointly = study._study.ask().relative_params
    assert set(jointly) == {choice.name for choice in space.choices({})}


def test_sampler_learns_to_avoid_what_does_not_fit(store: Store) -> None:
    space = ModelSpace(parse_space("schema: 1\npresets: []\nsegments: 1\nmenu:\n" + MENU, name="test"), dense(4))
    asked = []
    with opened(store, space) as study:
        for _ in range(40):
            proposal = study.ask()
            fits = proposal.plan.rules and proposal.plan.rules[0].treatment.policy == "full"
            asked.append(bool(fits))
            measurement = OK if fits else Measurement(Outcome.OVER_BUDGET, 2000)
            study.tell(proposal.number, measurement, budget_bytes=BUDGET_BYTES, relative_step_time=2.0)
    assert sum(asked[-20:]) > 2 * sum(asked[:10])


MENU = """
  - policy: none
  - policy: full
  - policy: selective
    each: {save_every_nth_mm: [1, 2, 3, 4, 5, 6]}
"""


def test_no_warning_of_optuna_escapes(store: Store) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with opened(store) as study:
                for _ in range(8):
                    told(study, OK)
    assert [str(warning.message) for warning in caught] == []


def test_unseen_plan_is_drawn_into_the_queue(store: Store) -> None:
    with opened(store) as study:
        for _ in range(3):
            told(study, OK)
        seen = {Plan()}
        assert study.enqueue_unseen(seen.__contains__, tries=50)
        assert study.has_queued()
        assert study.ask().plan not in seen
        assert not study.enqueue_unseen(lambda plan: True, tries=50)
        assert not study.has_queued()


def test_asking_and_telling_read_the_database_no_more_often_as_trials_grow(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Optuna's cache is only as good as how it is asked: a deep copy or a full read per trial would be quadratic.
    read: list[int] = []
    backend = optuna.storages.RDBStorage
    original = backend._get_trials

    def counted(*args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = original(*args, **kwargs)
        read.append(len(trials))
        return trials

    monkeypatch.setattr(backend, "_get_trials", counted)
    per_trial = []
    with opened(store, sampler="random") as study:
        for _ in range(25):
            before = len(read), sum(read)
            told(study, OK)
            per_trial.append((len(read) - before[0], sum(read) - before[1]))
    assert per_trial[-1] == per_trial[10]
    assert per_trial[-1][1] <= per_trial[-1][0]


def test_studies_of_one_database_do_not_mix(store: Store) -> None:
    space = ModelSpace(space_of(), dense(4))
    with opened(store) as study, closing(PlanStudy(store, "b", space, sampler="random", seed=0)) as other:
        other.queue_preset("full")
        told(study, OK)
        assert other.ask().preset == "full"
        assert other.running_numbers() == [0]
        assert study.running_numbers() == []


def test_database_that_optuna_can_not_use_is_a_storage_error(store: Store) -> None:
    with opened(store) as study:
        with store._engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE trial_params")
        with pytest.raises(StorageError, match="no such table: trial_params"), optuna_errors(store.url):
            study.ask()


def test_sampler_that_is_none_is_named() -> None:
    assert [check_sampler(name) for name in SAMPLERS] == ["thompson", "tpe", "random", "gp", "per-layer"]
    with pytest.raises(
        UsageError, match=r"'cmaes' is not known\. Expected one of: thompson, tpe, random, gp, per-layer\."
    ):
        check_sampler("cmaes")


def test_plans_without_parameters_leave_the_gaussian_process_something_to_model(store: Store) -> None:
    yaml = "schema: 1\nsegments: 1\npresets: [full-every-2]\nmenu:\n  - policy: none\n  - policy: full\n"
    space = ModelSpace(parse_space(yaml, name="test"), dense(4))
    with opened(store, space, sampler="gp") as study:
        assert told(study, OK).state is TrialState.PRUNED
        for _ in range(2):
            assert told(study, OK).state is TrialState.COMPLETE
        assert study._study.sampler.infer_relative_search_space(study._study, study._trial(0))
