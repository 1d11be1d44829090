"""Which plan is measured next where the profile is wrong, and what is said of the best that could still be found."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pytest

from actune.cost.outlook import Outlook
from actune.plan import NO_AC, CompileMode, Plan, Treatment, parse_plan
from actune.records import ModelStructure
from actune.search.advice import Advice, MeasuredRatio
from actune.search.peaks import PROVEN_AFTER, PeakMargins
from actune.step_profile import PlanProfiled, ProfilePlan, StepProfile

from .fakes import OPTIMIZER_BYTES, STATIC_BYTES, extra_time, mixture, peak_of, profile_of

FULL = Treatment("full")
SAC_1, SAC_2, SAC_3 = (Treatment("selective", save_every_nth_mm=n) for n in (1, 2, 3))
MENU = (NO_AC, FULL, SAC_1, SAC_2, SAC_3)
UNPROFILED = Treatment("selective", save_every_nth_mm=4)
OUTSIDE_S = 0.5
LAYERS = 5
BUDGET_BYTES = 1900
LOG_ERROR = 0.001
TOLERANCE = 0.01
MANY_TRIALS = 20

Factors = Mapping[tuple[CompileMode, str, str], float]
"""By compile mode, layer class and policy: what a layer takes over what its profile says."""


def profiled_s(treatment: Treatment) -> float:
    return 1.0 + extra_time(treatment)


def random_factors(seed: int, modes: Sequence[CompileMode] = ("off",)) -> Factors:
    """Up to 30% off for each policy; a little more or less in each class and mode."""
    rng = random.Random(seed)
    classes = [layer_class.name for layer_class in mixture(LAYERS).classes]
    of_policy = {policy: rng.uniform(0.7, 1.3) for policy in ("none", "full", "selective")}
    return {
        (mode, name, policy): factor * rng.uniform(0.95, 1.05)
        for mode in modes
        for name in classes
        for policy, factor in of_policy.items()
    }


@dataclass
class World:
    """A target whose layers take what their profile says times a factor, and whose steps are measured exactly."""

    factors: Factors
    modes: tuple[CompileMode, ...] = ("off",)
    structure: ModelStructure = field(default_factory=lambda: mixture(LAYERS))
    margins: PeakMargins = field(default_factory=PeakMargins)

    def run(self, request: ProfilePlan) -> PlanProfiled:
        plan = parse_plan(request.plan_toml)
        steady = self._timed(profile_of(plan, self.structure, STATIC_BYTES + OPTIMIZER_BYTES, 0), plan)
        return PlanProfiled(replace(steady, live_bytes=STATIC_BYTES) if request.with_optimizer else None, steady)

    def _timed(self, profile: StepProfile, plan: Plan) -> StepProfile:
        treatments = plan.resolve(self.structure.layer_fqns)
        times_s = {("forward", fqn): profiled_s(treatment) for fqn, treatment in treatments.items()}
        times_s["outer", ""] = OUTSIDE_S
        return replace(
            profile,
            slots=tuple(
                replace(slot, step_time_s=times_s.get((slot.kind, slot.layer_fqn), 0.0)) for slot in profile.slots
            ),
        )

    def advice(self, *, seed: int = 0) -> Advice:
        outlook = Outlook(self.structure, self.run)
        menus = dict.fromkeys(self.structure.layer_fqns, MENU)
        stacks = [outlook.stack(mode, menus) for mode in self.modes]
        return Advice(outlook, stacks, self.structure.layer_fqns, margins=self.margins, seed=seed)

    def plan(self, choice: Sequence[Treatment], compile: CompileMode = "off") -> Plan:
        return Plan.from_treatments(dict(zip(self.structure.layer_fqns, choice, strict=True)), compile=compile)

    @property
    def reference(self) -> Plan:
        return self.plan([FULL] * LAYERS)

    def step_time_s(self, plan: Plan) -> float:
        treatments = plan.resolve(self.structure.layer_fqns)
        return OUTSIDE_S + sum(
            profiled_s(treatments[fqn]) * self.factors[plan.compile, layer_class.name, treatments[fqn].policy]
            for layer_class in self.structure.classes
            for fqn in layer_class.layer_fqns
        )

    def ratio(self, plan: Plan) -> float:
        return self.step_time_s(plan) / self.step_time_s(self.reference)

    def measured(self, plan: Plan) -> MeasuredRatio:
        return MeasuredRatio(plan, self.reference, self.ratio(plan), LOG_ERROR)

    def fits(self, plan: Plan, budget_bytes: int = BUDGET_BYTES) -> bool:
        return peak_of(plan, self.structure) <= budget_bytes

    @cached_property
    def optimum(self) -> Plan:
        """The fastest of all plans that fit. Layers of a class are alike, so that their order does not matter."""
        per_class = [
            list(itertools.combinations_with_replacement(MENU, len(layer_class.layer_fqns)))
            for layer_class in self.structure.classes
        ]
        plans = (
            self.plan([*itertools.chain.from_iterable(choice)], mode)
            for choice in itertools.product(*per_class)
            for mode in self.modes
        )
        return min(filter(self.fits, plans), key=self.step_time_s)


class Trials:
    """What a search does with advice: the reference, then whatever is proposed."""

    def __init__(self, world: World, advice: Advice) -> None:
        self.world = world
        self.advice = advice
        self.ratios = [world.measured(world.reference)]
        self.advice.believe(self.ratios)

    @property
    def best(self) -> MeasuredRatio:
        fitting = [ratio for ratio in self.ratios if self.world.fits(ratio.plan)]
        return min(fitting, key=lambda ratio: ratio.relative_step_time)

    @property
    def regret(self) -> float:
        """By what share the best plan so far is slower than the fastest of all."""
        return self.world.ratio(self.best.plan) / self.world.ratio(self.world.optimum) - 1.0

    def is_seen(self, plan: Plan) -> bool:
        return any(ratio.plan == plan for ratio in self.ratios)

    def proposal(self, best: MeasuredRatio | None) -> Plan | None:
        number = len(self.ratios)
        for thoroughly in (False, True):
            self.advice.explore(BUDGET_BYTES, number, thoroughly=thoroughly)
            plan = self.advice.proposal(BUDGET_BYTES, best, number, self.is_seen)
            if plan is not None:
                return plan
        return None

    def measure(self, plan: Plan) -> None:
        self.ratios.append(self.world.measured(plan))
        self.advice.believe(self.ratios)

    def go_on(self, trials: int) -> list[Plan]:
        """Measures up to so many plans that are proposed."""
        for _ in range(trials):
            plan = self.proposal(self.best)
            if plan is None:
                break
            self.measure(plan)
        return [ratio.plan for ratio in self.ratios]

    def go_on_to_the_end(self) -> None:
        """Measures until no plan is believed to be better than the best by more than the tolerance."""
        while not self._is_at_the_end():
            assert len(self.ratios) < MANY_TRIALS, "no end is seen"
            self.go_on(1)

    def _is_at_the_end(self) -> bool:
        number = len(self.ratios)
        self.advice.explore(BUDGET_BYTES, number)
        if self.advice.pooled_gain(BUDGET_BYTES, self.best, number) > TOLERANCE:
            return False
        bound = self.advice.bound(BUDGET_BYTES, self.best, self.world.reference)
        assert bound is not None
        return bound.possible_gain <= TOLERANCE


# What is proposed


def test_of_a_right_profile_the_first_proposal_is_the_optimum() -> None:
    world = World(dict.fromkeys(random_factors(0), 1.0))
    plan = Trials(world, world.advice()).proposal(None)
    assert plan is not None
    assert world.step_time_s(plan) == pytest.approx(world.step_time_s(world.optimum))


def test_of_a_wrong_profile_the_optimum_is_found_in_a_few_trials() -> None:
    regrets = []
    for seed in range(12):
        world = World(random_factors(seed))
        trials = Trials(world, world.advice(seed=seed))
        trials.go_on(1)
        at_first = trials.regret
        trials.go_on(4)
        regrets.append((at_first, trials.regret))
    assert sum(at_first > TOLERANCE for at_first, _ in regrets) >= 4, "worlds whose profile is not right enough"
    assert all(after <= TOLERANCE for _, after in regrets)
    assert sum(after <= 1e-9 for _, after in regrets) >= 9


def test_with_two_compile_modes_the_faster_one_is_found_though_the_profile_does_not_tell() -> None:
    modes: tuple[CompileMode, ...] = ("off", "layer")
    worlds, right = 6, 0
    for seed in range(worlds):
        faster: CompileMode = modes[seed % 2]
        of_modes = random_factors(seed, modes)
        world = World({key: factor * (0.9 if key[0] == faster else 1.0) for key, factor in of_modes.items()}, modes)
        trials = Trials(world, world.advice(seed=seed))
        trials.go_on_to_the_end()
        assert world.optimum.compile == trials.best.plan.compile == faster
        right += trials.regret <= TOLERANCE
    assert right >= worlds - 1  # the search's own confidence is 90%


def test_no_plan_is_proposed_twice_nor_one_that_is_over_the_budget() -> None:
    world = World(random_factors(5))
    plans = Trials(world, world.advice()).go_on(12)
    assert len(plans) > 8
    assert len(set(plans)) == len(plans)
    assert all(world.fits(plan) for plan in plans)


def test_what_is_seen_is_for_the_caller_to_say() -> None:
    world = World(random_factors(0))
    trials = Trials(world, world.advice())
    first = trials.proposal(trials.best)
    second = trials.advice.proposal(BUDGET_BYTES, trials.best, 1, lambda plan: plan == first)
    assert second is not None
    assert second != first
    assert trials.advice.proposal(BUDGET_BYTES, trials.best, 1, lambda plan: True) is None


def test_a_pool_without_plans_has_none_to_propose_and_nothing_to_gain() -> None:
    world = World(random_factors(0))
    trials = Trials(world, world.advice())
    assert trials.advice.proposal(BUDGET_BYTES, trials.best, 1, lambda plan: False) is None
    assert trials.advice.pooled_gain(BUDGET_BYTES, trials.best, 1) == 0.0
    trials.advice.explore(STATIC_BYTES, 1)  # within which nothing fits
    assert trials.advice.proposal(STATIC_BYTES, trials.best, 1, lambda plan: False) is None


def test_the_same_seed_and_measurements_propose_the_same_plans() -> None:
    world = World(random_factors(11))
    first, same, another = (Trials(world, world.advice(seed=seed)).go_on(6) for seed in (3, 3, 4))
    assert first == same
    assert first != another


def test_the_margins_of_peaks_keep_proposals_below_the_budget() -> None:
    world = World(random_factors(0))
    trials = Trials(world, world.advice())
    trials.advice.explore(BUDGET_BYTES, 1)
    for _ in range(PROVEN_AFTER):
        world.margins.learn("off", 1000, 1250, whole=True)
    proposed: set[Plan] = set()
    while (plan := trials.advice.proposal(BUDGET_BYTES, trials.best, 1, proposed.__contains__)) is not None:
        proposed.add(plan)
    assert all(world.fits(plan, BUDGET_BYTES * 1000 // 1250) for plan in proposed)
    plan = trials.proposal(trials.best)
    assert plan is not None
    assert world.fits(plan, BUDGET_BYTES * 1000 // 1250)


# What is believed


def test_measurements_teach_the_same_one_by_one_or_all_at_once() -> None:
    world = World(random_factors(11))
    one_by_one = Trials(world, world.advice())
    one_by_one.go_on(3)
    at_once = world.advice()
    at_once.believe(one_by_one.ratios)
    plan = world.optimum
    assert at_once.estimate(plan, world.reference) == one_by_one.advice.estimate(plan, world.reference)
    bounds = [advice.bound(BUDGET_BYTES, one_by_one.best, world.reference) for advice in (at_once, one_by_one.advice)]
    assert bounds[0] == bounds[1]


def test_what_is_measured_of_one_plan_moves_its_neighbours() -> None:
    world = World(random_factors(4))
    advice, plan = world.advice(), world.plan([SAC_1] * LAYERS)
    neighbour = world.plan([SAC_2] * LAYERS)
    before = advice.estimate(neighbour, world.reference)
    advice.believe([world.measured(plan)])
    after = advice.estimate(neighbour, world.reference)
    assert before is not None
    assert after is not None
    assert abs(after - world.ratio(neighbour)) < 0.3 * abs(before - world.ratio(neighbour))
    advice.believe([])
    assert advice.estimate(neighbour, world.reference) == before


def test_the_reference_beside_itself_teaches_nothing() -> None:
    world = World(random_factors(4))
    advice, plan = world.advice(), world.plan([SAC_1] * LAYERS)
    unmoved = advice.estimate(plan, world.reference), advice.bound(BUDGET_BYTES, None, world.reference)
    advice.believe([MeasuredRatio(world.reference, world.reference, 1.3, LOG_ERROR)])
    assert (advice.estimate(plan, world.reference), advice.bound(BUDGET_BYTES, None, world.reference)) == unmoved


def test_a_best_plan_that_is_not_profiled_is_held_against_the_others_as_measured() -> None:
    world = World(random_factors(4))
    trials = Trials(world, world.advice())
    trials.go_on(3)
    hopeless, unbeatable = (
        MeasuredRatio(world.plan([UNPROFILED] * LAYERS), world.reference, ratio, LOG_ERROR) for ratio in (2.0, 0.1)
    )
    gains = []
    for best in (hopeless, unbeatable):
        bound = trials.advice.bound(BUDGET_BYTES, best, world.reference)
        assert bound is not None
        gains.append((bound.possible_gain, trials.advice.pooled_gain(BUDGET_BYTES, best, 4)))
    assert min(gains[0]) > 0.4
    assert gains[1] == (0.0, 0.0)


# What could still be found


def test_the_bound_is_never_above_the_optimum() -> None:
    for seed in range(10):
        world = World(random_factors(100 + seed))
        trials = Trials(world, world.advice(seed=seed))
        optimum = world.ratio(world.optimum)
        for more in (seed % 3, 3):
            trials.go_on(more)
            bound = trials.advice.bound(BUDGET_BYTES, trials.best, world.reference)
            assert bound is not None
            assert bound.relative_step_time <= optimum, (seed, len(trials.ratios))


def test_bounds_close_in_as_more_is_measured() -> None:
    world = World(random_factors(4))
    trials = Trials(world, world.advice())
    bounds = []
    for more in (0, 1, 7):
        trials.go_on(more)
        bound = trials.advice.bound(BUDGET_BYTES, trials.best, world.reference)
        assert bound is not None
        bounds.append(bound)
    assert bounds[0].relative_step_time < bounds[1].relative_step_time < bounds[2].relative_step_time
    assert bounds[0].possible_gain > bounds[1].possible_gain > bounds[2].possible_gain


def test_where_little_can_be_gained_the_best_is_about_the_optimum() -> None:
    """The search ends on this, with 90% confidence."""
    worlds, right = 10, 0
    for seed in range(worlds):
        world = World(random_factors(200 + seed))
        trials = Trials(world, world.advice(seed=seed))
        trials.go_on_to_the_end()
        right += trials.regret <= TOLERANCE
    assert right >= 0.9 * worlds


def test_what_the_pool_has_to_gain_is_about_what_there_is() -> None:
    world = World(dict.fromkeys(random_factors(0), 1.0))
    trials = Trials(world, world.advice())
    optimum = world.optimum
    for plan in (optimum, world.plan([SAC_2] * LAYERS), world.plan([SAC_3] * LAYERS)):
        trials.measure(plan)
    trials.advice.explore(BUDGET_BYTES, 1)
    of_reference = trials.advice.pooled_gain(BUDGET_BYTES, trials.ratios[0], 1)
    assert of_reference >= 1.0 - world.ratio(optimum) - 0.01
    assert trials.advice.pooled_gain(BUDGET_BYTES, world.measured(optimum), 1) < of_reference / 2


@pytest.mark.parametrize("seed", range(4))
def test_a_compiler_that_is_a_fifth_faster_than_profiled_fools_no_bound(seed: int) -> None:
    modes: tuple[CompileMode, ...] = ("off", "layer")
    factors = {key: factor * (0.8 if key[0] == "layer" else 1.0) for key, factor in random_factors(seed, modes).items()}
    world = World(factors, modes)
    trials = Trials(world, world.advice(seed=seed))
    trials.go_on_to_the_end()
    bound = trials.advice.bound(BUDGET_BYTES, trials.best, world.reference)
    assert bound is not None
    assert bound.relative_step_time <= world.ratio(world.optimum)
    assert trials.regret <= TOLERANCE
