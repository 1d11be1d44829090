"""In what order a study measures, and when it ends by itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from actune.plan import NO_AC, Plan, Treatment, parse_plan, plan_hash
from actune.plan.presets import preset_plan
from actune.records import LoadTarget
from actune.search.agenda import FIRST_SHARES
from actune.search.foresight import GREEDY
from actune.step_profile import PlanProfiled, ProfilePlan, StepProfile
from actune.store import Store
from actune.study_records import StopReason

from .fakes import NO_AC_HASH, SPACE, FakeEngine, Machine, peak_of, search, time_of

BUDGET_BYTES = 2000
TOLERANCE = 0.01


@dataclass
class OddlyProfiled(Machine):
    """A machine whose profile is off by a factor for each policy: what trials show is not what was predicted."""

    can_be_profiled: bool = True
    factors: Mapping[str, float] = field(default_factory=dict)

    def start(self, target: LoadTarget, /, *, workers: int, timeout_s: float, log_folder: Path) -> OddEngine:
        return OddEngine(self, target, workers)


class OddEngine(FakeEngine):
    def __init__(self, machine: OddlyProfiled, target: LoadTarget, workers: int) -> None:
        super().__init__(machine, target, workers)
        self._odd = machine

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        treatments = parse_plan(request.plan_toml).resolve(self._odd.structure.layer_fqns)

        def off(step: StepProfile) -> StepProfile:
            slots = (
                replace(
                    slot,
                    step_time_s=slot.step_time_s * self._odd.factors.get(treatments[slot.layer_fqn].policy, 1.0),
                )
                if slot.layer_fqn
                else slot
                for slot in step.slots
            )
            return replace(step, slots=tuple(slots))

        profiled = super().profile(request)
        return PlanProfiled(profiled.first and off(profiled.first), off(profiled.steady))


@pytest.fixture
def machine() -> Machine:
    return Machine(can_be_profiled=True)


def fastest_that_fits_s(machine: Machine) -> float:
    """Of all plans that the treatments of the space make of the layers."""
    menu = [NO_AC, Treatment("full"), *(Treatment("selective", save_every_nth_mm=n) for n in (1, 2, 3))]
    fqns = machine.structure.layer_fqns
    plans = (
        Plan.from_treatments(dict(zip(fqns, choice, strict=True)))
        for choice in itertools.product(menu, repeat=len(fqns))
    )
    return min(time_of(plan, machine.structure) for plan in plans if peak_of(plan, machine.structure) <= BUDGET_BYTES)


def named(store: Store, name: str = "a") -> list[str | None]:
    return [trial.preset for trial in store.trials(name)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "factors", [{}, {"selective": 0.75, "full": 1.2}, {"selective": 2.0}], ids=["right", "low", "high"]
)
def test_a_search_ends_by_itself_within_the_tolerance_of_the_optimum(
    store: Store, seed: int, factors: dict[str, float]
) -> None:
    machine = OddlyProfiled(factors=factors)
    verdict = search(store, machine, sampler="thompson", trials=60, seed=seed, tolerance=TOLERANCE)
    assert verdict.stopped is StopReason.TOLERANCE
    assert verdict.trials < 30
    assert verdict.best_toml is not None
    fastest_s = fastest_that_fits_s(machine)
    assert time_of(parse_plan(verdict.best_toml), machine.structure) <= (1 + TOLERANCE) * fastest_s
    (of_budget,) = verdict.budgets
    assert of_budget.certificate is not None
    assert of_budget.certificate.possible_gain <= TOLERANCE
    reference_s = time_of(preset_plan("full", machine.structure), machine.structure)
    assert of_budget.certificate.bound_relative_step_time <= fastest_s / reference_s


def test_the_reference_and_the_predicted_optimum_come_first_and_the_other_presets_last(store: Store) -> None:
    # With a profile that is right the predicted optimum is the greedy solver's plan too, and no trial of its own.
    machine = OddlyProfiled(factors={"selective": 2.0})
    verdict = search(store, machine, sampler="thompson", trials=40)
    trials = store.trials("a")
    assert named(store)[:2] == ["full", None]
    assert named(store)[-2:] == ["sac", GREEDY]
    advised = trials[2:-2]
    assert advised
    assert {trial.preset for trial in advised} == {None}
    # Without AC it is predicted to be over the budget, so it is no trial.
    assert NO_AC_HASH not in machine.measured
    assert verdict.stopped is StopReason.TOLERANCE
    assert {entry.preset for entry in verdict.entries} >= {"full", "sac", GREEDY}
    within = [r for r in store.predictions("a") if r.on_frontier and (r.peak_bytes or 0) <= BUDGET_BYTES]
    assert trials[1].plan_hash == min(within, key=lambda record: record.step_time_s or 0.0).plan_hash


@pytest.mark.parametrize(
    ("trials", "expected"), [(4, ["full", None, "sac", GREEDY]), (5, ["full", None, None, "sac", GREEDY])]
)
def test_presets_get_their_turn_before_trials_run_out(store: Store, trials: int, expected: list[str | None]) -> None:
    machine = OddlyProfiled(factors={"selective": 2.0})
    verdict = search(store, machine, sampler="thompson", trials=trials, tolerance=0.0)
    assert named(store) == expected
    assert verdict.stopped is StopReason.TRIALS


def test_a_sampler_that_learns_gets_all_given_plans_first(store: Store) -> None:
    machine = OddlyProfiled(factors={"selective": 2.0})
    search(store, machine, sampler="tpe", trials=12, tolerance=0.0)
    names = named(store)
    given = names.index(GREEDY) + 1
    assert names[:2] == ["full", None]
    assert names[given - 2 : given] == ["sac", GREEDY]
    assert given <= 1 + len(FIRST_SHARES) + 2  # the first share is the predicted optimum's
    assert set(names[given:]) == {None}
    assert len(names) == 12


def test_one_category_per_layer_gets_no_predicted_plan_but_all_presets(store: Store) -> None:
    machine = OddlyProfiled(factors={"selective": 2.0})
    search(store, machine, sampler="per-layer", trials=6, tolerance=0.0)
    assert named(store) == ["full", "sac", GREEDY, None, None, None]


WITH_MEMORY_BUDGETS = (
    SPACE.replace("segments: 2", 'segments: 2\ncompile: ["off", model]')
    + """
  - policy: memory_budget
    each:
      memory_budget: [0.25, 0.5]
"""
)


def memory_budgets(store: Store) -> list[float | None]:
    rules = [rule for trial in store.trials("a") for rule in parse_plan(trial.plan_toml).rules]
    return [rule.treatment.memory_budget for rule in rules if rule.treatment.policy == "memory_budget"]


def test_memory_budgets_of_the_whole_model_are_measured_as_no_sum_of_layers_tells_of_them(
    store: Store, machine: Machine
) -> None:
    search(store, machine, sampler="thompson", trials=30, space_yaml=WITH_MEMORY_BUDGETS)
    assert memory_budgets(store) == [0.25, 0.5]
    # After the reference and the predicted optimum, before what is advised.
    plans = [parse_plan(trial.plan_toml) for trial in store.trials("a")]
    assert [plan.compile for plan in plans[:4]] == ["off", "off", "model", "model"]


def test_a_sampler_that_learns_gets_no_memory_budgets_in_advance(store: Store, machine: Machine) -> None:
    search(store, machine, sampler="tpe", trials=7, space_yaml=WITH_MEMORY_BUDGETS)
    assert memory_budgets(store) == []


@pytest.mark.parametrize("sampler", ["thompson", "tpe", "random", "per-layer"])
def test_no_plan_is_measured_twice(store: Store, machine: Machine, sampler: str) -> None:
    search(store, machine, sampler=sampler, trials=9, tolerance=0.0)
    assert len(machine.measured) == 9 == len(set(machine.measured))
    assert machine.measured == [trial.plan_hash for trial in store.trials("a")]


def test_without_predictions_all_goes_on_by_segments(store: Store) -> None:
    first, second = Machine(), Machine()
    search(store, first, "advised", sampler="thompson", trials=12)
    verdict = search(store, second, "by-tpe", sampler="tpe", trials=12)
    assert [trial.plan_hash for trial in store.trials("by-tpe")] == first.measured
    assert second.measured == [], "what was measured under another study's name is not run again"
    assert named(store, "advised")[:3] == ["full", "none", "sac"]
    for trial in store.trials("advised"):
        treatments = [*parse_plan(trial.plan_toml).resolve(first.structure.layer_fqns).values()]
        assert sum(one != next_one for one, next_one in itertools.pairwise(treatments)) <= 1
    assert verdict.stopped is StopReason.TRIALS
    assert verdict.budgets[0].certificate is None


def test_a_search_that_found_everything_has_nothing_left_to_do(store: Store, machine: Machine) -> None:
    first = search(store, machine, sampler="thompson", trials=40)
    assert first.stopped is StopReason.TOLERANCE
    loads = machine.loads
    assert search(store, machine, sampler="thompson", trials=40) == first
    assert machine.loads == loads


def test_a_smaller_tolerance_goes_on_with_what_is_there(store: Store) -> None:
    machine = OddlyProfiled(factors={"selective": 2.0})
    first = search(store, machine, sampler="thompson", trials=40, tolerance=0.5)
    second = search(store, machine, sampler="thompson", trials=40, tolerance=0.001)
    assert second.trials > first.trials
    assert len(machine.measured) == len(set(machine.measured))
    assert machine.measured[0] == plan_hash(preset_plan("full", machine.structure))


def test_several_workers_end_within_the_tolerance_too(store: Store) -> None:
    machine = OddlyProfiled(factors={"selective": 2.0})
    verdict = search(store, machine, sampler="thompson", trials=60, workers=3)
    assert verdict.stopped is StopReason.TOLERANCE
    assert verdict.best_toml is not None
    assert time_of(parse_plan(verdict.best_toml), machine.structure) <= 1.01 * fastest_that_fits_s(machine)
    assert len(machine.measured) == len(set(machine.measured)) == verdict.trials
