"""The harness of the simulated search benchmark: what it calls true, and what it makes wrong."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import search_simulated
import yaml
from simulated_engine import Errors, SimulatedEngine
from simulated_truth import Enumeration, Truth, enumerated, menus_of

from actune.config import parse_space
from actune.cost.solver.problem import LayerChoices, Option, Problem
from actune.plan import NO_AC, Plan, Treatment, dump_plan
from actune.racing import Race
from actune.records import LoadTarget, Measurement, MeasurePlan, Outcome
from actune.search.space import ModelSpace
from actune.step_profile import ProfilePlan
from tests.search.fakes import OPTIMIZER_BYTES, SPACE, FakeEngine, Machine, mixture, peak_of, space_of, time_of

FULL = Treatment("full")
STRUCTURE = mixture(4)
HALF = Plan.from_treatments(dict(zip(STRUCTURE.layer_fqns, (FULL, NO_AC, FULL, NO_AC), strict=True)))


def toml_of(plan: Plan) -> str:
    return dump_plan(plan, with_provenance=False)


@pytest.fixture
def recording() -> Any:
    """A worker's answers, by formula."""
    return FakeEngine(Machine(structure=STRUCTURE, can_be_profiled=True), LoadTarget("fake", "cpu", 0), workers=1)


def engine_of(recording: Any, seed: int = 0, **changes: Any) -> SimulatedEngine:
    return SimulatedEngine(recording, Truth(recording), Errors(seed, **changes), with_save_sets=False)


def measured(engine: SimulatedEngine, plan: Plan, budget_bytes: int | None = None) -> Measurement:
    reference = toml_of(Plan.from_treatments(dict.fromkeys(STRUCTURE.layer_fqns, FULL)))
    return engine.measure(MeasurePlan(toml_of(plan), reference, budget_bytes, timed_pairs=5))


def test_enumeration_has_the_peak_and_the_time_of_every_choice() -> None:
    rng = random.Random(0)
    layers = tuple(
        LayerChoices(
            tuple(Option(rng.randrange(100), rng.randrange(300), rng.random()) for _ in range(options)),
            after_bytes=rng.randrange(300),
        )
        for options in (2, 3, 1, 4)
    )
    problem = Problem(layers, floor_bytes=200, base_time_s=0.5)
    peak_bytes, time_ps = enumerated(problem)
    choices = list(itertools.product(*(range(len(layer.options)) for layer in layers)))
    assert peak_bytes.tolist() == [problem.peak_bytes(choice) for choice in choices]
    assert time_ps.tolist() == [problem.time_ps(choice) for choice in choices]


def test_the_optimum_is_the_fastest_plan_within_the_budget(recording: Any) -> None:
    truth = Truth(recording)
    menus = menus_of(recording, ModelSpace(space_of(), STRUCTURE), save_sets=0)
    enumeration = Enumeration(truth.stack(menus), STRUCTURE.layer_fqns)
    budget_bytes = enumeration.budget_bytes(0.5)
    optimum = enumeration.optimum(budget_bytes)
    plans = [enumeration.plan(number) for number in range(enumeration.plans)]
    fitting = [plan for plan in plans if peak_of(plan, STRUCTURE) <= budget_bytes]
    assert time_of(optimum.plan, STRUCTURE) == min(time_of(plan, STRUCTURE) for plan in fitting)
    assert optimum.fitting_share == pytest.approx(len(fitting) / len(plans))
    assert truth.of(optimum.plan).peak_bytes == peak_of(optimum.plan, STRUCTURE)


def test_peaks_are_exact_and_a_plan_over_the_budget_ends_at_the_step_that_is(recording: Any) -> None:
    engine = engine_of(recording)
    peak_bytes = peak_of(HALF, STRUCTURE)
    assert measured(engine, HALF, peak_bytes).peak_bytes == peak_bytes
    in_second_step = measured(engine, HALF, peak_bytes - 1)
    assert (in_second_step.outcome, in_second_step.peak_bytes) == (Outcome.OVER_BUDGET, peak_bytes)
    in_first_step = measured(engine, HALF, peak_bytes - OPTIMIZER_BYTES - 1)
    assert (in_first_step.outcome, in_first_step.peak_bytes) == (Outcome.OVER_BUDGET, peak_bytes - OPTIMIZER_BYTES)
    assert in_first_step.pairs == ()


def test_the_same_seed_measures_the_same_and_measuring_again_does_not(recording: Any) -> None:
    engine = engine_of(recording)
    first, again = measured(engine, HALF), measured(engine, HALF)
    assert first.pairs != again.pairs
    assert measured(engine_of(recording), HALF) == first
    assert measured(engine_of(recording, seed=1), HALF) != first
    step_time_s = time_of(HALF, STRUCTURE)
    assert all(pair.plan.step_time_s == pytest.approx(step_time_s, rel=0.06) for pair in first.pairs)


def test_a_trial_ends_when_its_race_is_decided(recording: Any) -> None:
    full = Plan.from_treatments(dict.fromkeys(STRUCTURE.layer_fqns, FULL))
    race = Race(time_of(HALF, STRUCTURE) / time_of(full, STRUCTURE), 0.0, 0.014, most_pairs=10)
    request = MeasurePlan(toml_of(full), toml_of(full), None, timed_pairs=5, race=race)
    slower = engine_of(recording).measure(request)
    assert (slower.lost_race, len(slower.pairs)) == (True, 3)
    as_fast = engine_of(recording).measure(replace(request, plan_toml=toml_of(HALF)))
    assert not as_fast.lost_race
    assert len(as_fast.pairs) == 10


def test_profiles_are_wrong_in_the_times_of_layers_alone(recording: Any) -> None:
    request = ProfilePlan(toml_of(HALF), with_optimizer=True, timed_steps=1)
    right = recording.profile(request).steady
    wrong = engine_of(recording, of_treatment=0.0, by_class=True).profile(request).steady
    treatments = HALF.resolve(STRUCTURE.layer_fqns)
    factors: dict[tuple[str, str], set[float]] = {}
    class_of = {fqn: c.name for c in STRUCTURE.classes for fqn in c.layer_fqns}
    for ours, theirs in zip(wrong.slots, right.slots, strict=True):
        assert (ours.delta_bytes, ours.peak_bytes) == (theirs.delta_bytes, theirs.peak_bytes)
        if ours.kind == "forward" and theirs.step_time_s:
            key = class_of[ours.layer_fqn], treatments[ours.layer_fqn].policy
            factors.setdefault(key, set()).add(round(ours.step_time_s / theirs.step_time_s, 9))
        else:
            assert ours.step_time_s == theirs.step_time_s
    assert all(len(of_key) == 1 and 0.7 <= min(of_key) <= 1.3 for of_key in factors.values())
    assert len(set.union(*factors.values())) == len(factors)


def test_derived_save_sets_become_entries_of_the_space() -> None:
    save_set = Treatment("selective", save_every_nth_mm=0, save_ops=(), save=("attention.wq::mm",)).canonical()
    menus = dict.fromkeys(STRUCTURE.layer_fqns[1:], (NO_AC, FULL, save_set))
    text = search_simulated.with_entries(SPACE, menus)
    assert yaml.safe_load(text)["menu"][:-1] == yaml.safe_load(SPACE)["menu"]
    groups = ModelSpace(parse_space(text, name="test"), STRUCTURE).groups
    assert [save_set in group.menu.values() for group in groups] == [False, True]


def test_a_run_that_never_came_near_counts_as_one_trial_more_than_the_cap() -> None:
    near = search_simulated.Run(0, 3, 4, 2, 10, None, 0.0, 0.9, 50, 1.0)
    never = search_simulated.Run(1, None, None, None, 25, "trials", None, None, 125, 2.0)
    of = search_simulated.summary([near, near, never], 25)
    assert (of["median_trials"], of["p90_trials"], of["not_reached"]) == (3, 26, 1)
    assert (of["stopped_by_itself"], of["without_a_plan"], of["certificates"]) == (2, 1, 2)
    assert (of["median_trials_named"], of["stopped"]) == (4, {"trials": 1})
    assert (of["max_regret"], of["highest_bound"], of["bounds_above_the_optimum"]) == (0.0, 0.9, 0)
