"""Several budgets in one search: a best plan for each, from one study's trials."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from actune.errors import PlanError
from actune.plan import NO_AC, Plan, Treatment, parse_plan, plan_hash
from actune.plan.presets import preset_plan
from actune.records import Measurement, Outcome
from actune.search.foresight import FRONTIER_BUDGETS
from actune.store import Store
from actune.study_records import Verdict

from .fakes import Listener, Machine, peak_of, search, time_of

BUDGETS = "1700B,2000B,1500B"
IN_ORDER = [2000, 1700, 1500]


@pytest.fixture
def machine() -> Machine:
    return Machine(can_be_profiled=True)


def fastest_that_fits_s(machine: Machine, budget_bytes: int) -> float:
    """Of all plans that the treatments of the space make of the layers."""
    menu = [NO_AC, Treatment("full"), *(Treatment("selective", save_every_nth_mm=n) for n in (1, 2, 3))]
    fqns = machine.structure.layer_fqns
    plans = (
        Plan.from_treatments(dict(zip(fqns, choice, strict=True)))
        for choice in itertools.product(menu, repeat=len(fqns))
    )
    return min(time_of(plan, machine.structure) for plan in plans if peak_of(plan, machine.structure) <= budget_bytes)


def check_every_best(verdict: Verdict, machine: Machine) -> None:
    """Each fits, and is within the search's tolerance of the fastest plan that there is."""
    for of_budget in verdict.budgets:
        assert of_budget.best_toml is not None
        plan = parse_plan(of_budget.best_toml)
        assert plan_hash(plan) == of_budget.best_hash
        assert plan.provenance["budget_bytes"] == of_budget.budget_bytes
        assert of_budget.peak_bytes == peak_of(plan, machine.structure) <= of_budget.budget_bytes
        fastest_s = fastest_that_fits_s(machine, of_budget.budget_bytes)
        assert time_of(plan, machine.structure) <= 1.01 * fastest_s


def test_each_budget_has_its_best_plan_the_largest_first(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, budget=BUDGETS, sampler="thompson", trials=16)
    assert [of_budget.budget_bytes for of_budget in verdict.budgets] == IN_ORDER
    check_every_best(verdict, machine)
    assert (verdict.best_hash, verdict.best_toml) == (verdict.budgets[0].best_hash, verdict.budgets[0].best_toml)
    assert store.study("a").budgets_bytes == tuple(IN_ORDER)
    assert store.study("a").budget_bytes == IN_ORDER[0]
    assert verdict == store.verdict("a")


def test_a_frontier_is_budgets_from_the_smallest_predicted_peak_to_the_largest(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, budget="2000B", frontier=True, sampler="thompson", trials=30)
    smallest_bytes = peak_of(preset_plan("full", machine.structure), machine.structure)
    budgets = [of_budget.budget_bytes for of_budget in verdict.budgets]
    assert budgets == sorted(set(budgets), reverse=True)
    assert (budgets[0], budgets[-1], len(budgets)) == (2000, smallest_bytes, FRONTIER_BUDGETS)
    check_every_best(verdict, machine)


def test_a_frontier_up_to_less_than_the_smallest_peak_is_one_budget(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, budget="1100B", frontier=True, sampler="thompson")
    assert [of_budget.budget_bytes for of_budget in verdict.budgets] == [1100]
    assert verdict.budgets[0].best_hash is None


def test_a_budget_that_nothing_fits_leaves_the_others_theirs(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, budget="2000B,1100B", sampler="thompson", trials=16)
    largest, smallest = verdict.budgets
    check_every_best(replace(verdict, budgets=(largest,)), machine)
    assert (smallest.best_hash, smallest.best_toml, smallest.peak_bytes) == (None, None, None)


@pytest.mark.parametrize(("budget", "frontier"), [(BUDGETS, False), ("2000B", True)])
def test_a_study_that_goes_on_keeps_its_budgets(store: Store, machine: Machine, budget: str, frontier: bool) -> None:
    first = search(store, machine, budget=budget, frontier=frontier, sampler="thompson", trials=4)
    budgets = [of_budget.budget_bytes for of_budget in first.budgets]
    machine.predicted_more_bytes = 40  # a frontier would begin elsewhere now
    second = search(store, machine, budget=budget, frontier=frontier, sampler="thompson", trials=30)
    assert [of_budget.budget_bytes for of_budget in second.budgets] == budgets
    assert second.trials > first.trials == 4
    assert len(machine.measured) == len(set(machine.measured))
    check_every_best(second, machine)


@pytest.mark.parametrize("sampler", ["tpe", "per-layer"])
def test_samplers_of_optuna_search_several_budgets_too(store: Store, machine: Machine, sampler: str) -> None:
    verdict = search(store, machine, budget=BUDGETS, sampler=sampler, trials=9)
    assert [of_budget.budget_bytes for of_budget in verdict.budgets] == IN_ORDER
    assert verdict.trials == len(set(machine.measured))
    for of_budget in verdict.budgets:
        assert of_budget.best_toml is not None
        assert peak_of(parse_plan(of_budget.best_toml), machine.structure) <= of_budget.budget_bytes


def test_without_predictions_named_budgets_are_searched(store: Store) -> None:
    verdict = search(store, Machine(), budget=BUDGETS, sampler="thompson")
    assert [of_budget.budget_bytes for of_budget in verdict.budgets] == IN_ORDER
    assert all(of_budget.certificate is None for of_budget in verdict.budgets)


def test_a_plan_that_is_over_its_budget_in_the_long_run_leaves_it_to_the_next_fastest(
    store: Store, machine: Machine
) -> None:
    fastest = search(store, machine, "without", sampler="thompson", trials=16).best_hash
    assert fastest is not None
    machine.endurance[fastest] = Measurement(Outcome.OVER_BUDGET, 2100, message="over in step 5")
    listener = Listener()
    verdict = search(store, machine, sampler="thompson", trials=16, reporter=listener)
    trials = {trial.plan_hash: trial for trial in store.trials("a")}
    amended = trials[fastest].measurement
    assert (amended.outcome, amended.peak_bytes) == (Outcome.OVER_BUDGET, 2100)
    assert amended.message == "otherwise over 8 steps: over in step 5"
    others = [
        time_of(parse_plan(trial.plan_toml), machine.structure)
        for plan_hash, trial in trials.items()
        if plan_hash != fastest and trial.fits(2000)
    ]
    assert verdict.best_toml is not None
    assert time_of(parse_plan(verdict.best_toml), machine.structure) == min(others)
    (said,) = [stage for stage in listener.stages if "it counts as over the budget" in stage]
    assert "over in step 5" in said
    assert f"trial {trials[fastest].number} fits in its trial, but otherwise over 8 steps" in said
    settings = {"sampler": "thompson", "trials": 16, "verdict_rounds": 6}  # others, so that it is decided anew
    machine.endured.clear()
    assert search(store, machine, **settings).best_hash == verdict.best_hash
    assert fastest not in machine.endured, "what was learned is stored"


def test_the_search_learns_from_plans_that_are_over_the_budget_in_the_long_run(store: Store, machine: Machine) -> None:
    """It aims lower, and finds the best plan that fits in the long run, not just the best of those it had tried."""
    machine.endurance_factor = 1.1
    verdict = search(store, machine, sampler="thompson", trials=30)
    assert verdict.best_toml is not None
    plan = parse_plan(verdict.best_toml)
    assert verdict.budgets[0].peak_bytes == round(1.1 * peak_of(plan, machine.structure)) <= 2000
    assert time_of(plan, machine.structure) <= 1.01 * fastest_that_fits_s(machine, int(2000 / 1.1))
    assert verdict.trials < 30


@pytest.mark.parametrize(("predicted_more_bytes", "at_once"), [(0, False), (40, True)])
def test_a_new_best_plan_runs_longer_at_once_where_peaks_were_not_as_predicted(
    store: Store, machine: Machine, predicted_more_bytes: int, at_once: bool
) -> None:
    machine.predicted_more_bytes = predicted_more_bytes
    machine.endurance_factor = 1.1
    endured_before: list[int] = []
    machine.before_trial = lambda name: endured_before.append(len(machine.endured))
    verdict = search(store, machine, sampler="thompson", tolerance=0.0, trials=8)
    assert any(endured_before) is at_once
    if at_once:
        assert verdict.best_toml is not None
        plan = parse_plan(verdict.best_toml)
        assert 1.1 * peak_of(plan, machine.structure) <= 2000
        assert time_of(plan, machine.structure) <= 1.05 * fastest_that_fits_s(machine, int(2000 / 1.1))


def test_what_a_cap_refuses_in_the_long_run_is_run_without_it_to_learn_by_how_much_it_is_over(
    store: Store, machine: Machine
) -> None:
    """On a card, what runs out of memory under the cap has no peak."""
    fastest = search(store, machine, "without", sampler="thompson", trials=16).best_hash
    assert fastest is not None
    machine.endurance[fastest] = Measurement(Outcome.OVER_BUDGET, None, message="out of memory under the cap")
    machine.endurance_uncapped[fastest] = Measurement(Outcome.OK, 2400)
    verdict = search(store, machine, sampler="thompson", trials=30)
    trials = {trial.plan_hash: trial for trial in store.trials("a")}
    assert trials[fastest].measurement.peak_bytes == 2400
    plan = parse_plan(trials[fastest].plan_toml)
    lower_bytes = int(2000 * peak_of(plan, machine.structure) / 2400)
    later = [t for t in trials.values() if t.number > trials[fastest].number and t.preset is None]
    assert later, "the search went on"
    assert verdict.best_toml is not None
    assert all(peak_of(parse_plan(t.plan_toml), machine.structure) <= lower_bytes for t in later[1:])


def test_a_plan_that_is_refused_in_the_long_run_fails_alone(store: Store, machine: Machine) -> None:
    fastest = search(store, machine, "without", sampler="thompson", trials=16).best_hash
    assert fastest is not None
    machine.endurance_errors[fastest] = PlanError("save_routing: it chooses more often")
    verdict = search(store, machine, sampler="thompson", trials=16)
    (trial,) = (t for t in store.trials("a") if t.plan_hash == fastest)
    assert trial.measurement.outcome is Outcome.ERROR
    assert verdict.best_hash not in (None, fastest)


def test_without_trials_left_the_next_fastest_of_the_final_comparison_wins(store: Store, machine: Machine) -> None:
    fastest = search(store, machine, "without", sampler="tpe", tolerance=0.0, trials=6).best_hash
    assert fastest is not None
    machine.endurance[fastest] = Measurement(Outcome.OK, 2100)
    listener = Listener()
    verdict = search(store, machine, sampler="tpe", tolerance=0.0, trials=6, reporter=listener)
    assert verdict.best_hash not in (None, fastest)
    assert fastest in {entry.plan_hash for entry in verdict.entries}
    assert any("otherwise over 8 steps" in stage and "trying the next fastest" in stage for stage in listener.stages)


def test_a_search_ends_where_no_plan_fits_in_the_long_run(store: Store, machine: Machine) -> None:
    machine.endurance_factor = 2.0
    verdict = search(store, machine, sampler="thompson", trials=12)
    assert verdict.best_hash is None
    assert len(machine.endured) == len(set(machine.endured))
    assert {trial.plan_hash for trial in store.trials("a") if trial.fits(2000)} <= set(machine.endured)


def test_a_plan_that_is_over_a_small_budget_in_the_long_run_may_be_the_best_of_a_larger_one(
    store: Store, machine: Machine
) -> None:
    first = search(store, machine, "without", budget="2000B,1500B", sampler="thompson", trials=16)
    smaller = first.budgets[1]
    assert smaller.best_hash is not None
    assert smaller.peak_bytes is not None
    machine.endurance[smaller.best_hash] = Measurement(Outcome.OK, 1600)
    verdict = search(store, machine, budget="1600B,1500B", sampler="thompson", trials=16)
    for of_budget in verdict.budgets:
        assert of_budget.peak_bytes is not None
        assert of_budget.peak_bytes <= of_budget.budget_bytes
    assert verdict.budgets[1].best_hash != smaller.best_hash


def test_a_frontier_of_a_target_that_cannot_be_profiled_starts_at_what_no_plan_can_be_below(store: Store) -> None:
    machine = Machine()
    verdict = search(store, machine, budget="2400B", frontier=True, trials=6)
    sizes = [decided.budget_bytes for decided in verdict.budgets]
    assert (sizes[0], sizes[-1], len(sizes)) == (2400, machine.static_bytes, 8)
    assert verdict.budgets[0].best_hash is not None
    assert verdict.budgets[-1].best_hash is None
