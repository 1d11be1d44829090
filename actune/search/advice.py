"""Which plan to measure next, and whether another one is worth it: the exact solver asked under possible truths.

Thompson sampling (Thompson 1933; with an exact solver as its oracle, Wang and Chen 2018) draws step times from what is
believed of them and lets the solver find the fastest plan under that draw. Here a handful of draws per trial fill a
pool of such plans. Of the pool the plan is measured that is worth most, over many draws: by what it may be faster than
the best one, and by what it teaches of all others. A plan's time under a draw is a product of two short vectors, where
a solve takes milliseconds. How much faster than the best plan the pool's may be, and then those of draws solved anew,
ends the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from actune.cost.belief import StepTimeBelief, as_row, gain_at, worth_of
from actune.cost.corrected import CorrectableStack, fastest_s
from actune.cost.optimum import best_plan
from actune.cost.outlook import Outlook
from actune.cost.posterior import Draws, Floats, KnownPlan, TimeObservation
from actune.cost.stack import Stack
from actune.cost.time_parts import Correction
from actune.errors import CostError, InfeasibleError
from actune.plan import CompileMode, Plan, plan_hash
from actune.search.peaks import PeakMargins

SOLVED_DRAWS = 8
"""How many draws a proposal solves, beside the mean."""
OPTIONS_SOLVED = 4096
"""How many options, of all layers and modes, these draws choose from in all: what a tenth of a second is enough for."""
MORE_DRAWS = 32
"""How many are solved once there is nothing new in the pool."""
POOL_DRAWS = 256
BOUND_DRAWS = 48
BOUND_DEVIATIONS = 3.0
CONFIDENCE = 0.9
"""Of the largest gain that is still possible: the search ends when it is no more than the tolerance."""


@dataclass(frozen=True, slots=True)
class MeasuredRatio:
    """A trial's step time over the reference's.

    Attributes:
        log_error: standard error of the logarithm of `relative_step_time`; of what is believed in units of its noise.
    """

    plan: Plan
    reference: Plan
    relative_step_time: float
    log_error: float


@dataclass(frozen=True, slots=True)
class Bound:
    """What the corrected model says of the best that could still be found.

    Attributes:
        relative_step_time: no plan that fits is believed to be faster than this, relative to the reference.
        possible_gain: by what share of the best plan's step time the fastest plan is faster at most, with CONFIDENCE;
            all of it as long as there is no best plan.
    """

    relative_step_time: float
    possible_gain: float


@dataclass(frozen=True, slots=True)
class _Pooled:
    known: KnownPlan
    compile: CompileMode
    peak_bytes: int


class Advice:
    """What one study believes, and what follows from it."""

    def __init__(
        self,
        outlook: Outlook,
        stacks: Sequence[Stack],
        layer_fqns: Sequence[str],
        *,
        margins: PeakMargins,
        seed: int,
    ) -> None:
        """Believes the profile.

        Args:
            outlook: knows what plans are made of.
            stacks: one for each compile mode: what may be chosen.
            layer_fqns: of the model.
            margins: of predicted peaks.
            seed: of the draws.
        """
        self._outlook = outlook
        self._stacks = [CorrectableStack.of(stack) for stack in stacks]
        self._layer_fqns = layer_fqns
        self._margins = margins
        self._seed = seed
        self._pool: dict[Plan, _Pooled] = {}
        self._explored: set[tuple[int, int, int]] = set()
        self._known_plans: dict[Plan, KnownPlan] = {}
        self._believed: list[MeasuredRatio] = []
        self._observations: list[TimeObservation] = []
        self._belief = StepTimeBelief()
        for stack in self._stacks:
            self._belief.know(stack.all_parts)
        options = sum(len(layer.options) for stack in stacks for layer in stack.problem.layers)
        self._solved_draws = min(SOLVED_DRAWS, max(1, OPTIONS_SOLVED // options))

    def knows(self, plan: Plan) -> bool:
        """Whether all that a plan is made of was profiled."""
        return self._known(plan) is not None

    def believe(self, ratios: Sequence[MeasuredRatio], *, log_noise: float = 1.0) -> None:
        """All that was measured, in place of what was believed before; what comes first again is not looked at anew.

        A plan with a treatment that is not profiled teaches nothing; nor does the reference beside itself.

        Args:
            log_noise: what the ratios' errors are multiplied by.
        """
        known = len(self._believed)
        if list(ratios[:known]) != self._believed:
            self._observations, known = [], 0
        for seen in ratios[known:]:
            of_plan, of_reference = self._known(seen.plan), self._known(seen.reference)
            if of_plan is not None and of_reference is not None and of_plan is not of_reference:
                self._observations.append(
                    TimeObservation(of_plan, of_reference, seen.relative_step_time, seen.log_error)
                )
        self._believed = list(ratios)
        self._belief.learn(self._observations, log_noise=log_noise)

    def estimate(self, plan: Plan, reference: Plan) -> float | None:
        """A plan's relative step time as all measurements together have it; None for one that is not profiled."""
        return self.estimates([plan], reference)[0]

    def estimates(self, plans: Sequence[Plan], reference: Plan) -> list[float | None]:
        """As `estimate`, of many plans at once."""
        of_reference = self._known(reference)
        of_plans = {number: known for number, plan in enumerate(plans) if (known := self._known(plan)) is not None}
        found: list[float | None] = [None] * len(plans)
        if of_reference is None or not of_plans:
            return found
        mean = self._belief.posterior().mean()
        relative = mean.step_times_s([*of_plans.values()]) / mean.of_plan_s(of_reference)
        for number, estimate in zip(of_plans, relative.ravel().tolist(), strict=True):
            found[number] = estimate
        return found

    def explore(self, budget_bytes: int, number: int, *, thoroughly: bool = False) -> None:
        """Puts the fastest plans within a budget under some draws into the pool, once for each number."""
        count = MORE_DRAWS if thoroughly else self._solved_draws
        if (explored := (budget_bytes, number, count)) in self._explored:
            return
        self._explored.add(explored)
        posterior = self._belief.posterior()
        for draws in (posterior.mean(), posterior.draws(count, self._seed, number, count)):
            for draw in range(len(draws)):
                self._solve(draws.correction(draw), budget_bytes)

    def proposal(
        self, budget_bytes: int, best: MeasuredRatio | None, number: int, is_seen: Callable[[Plan], bool]
    ) -> Plan | None:
        """The pool's plan within the budget that is worth most to measure; None if there is none that was not seen.

        Args:
            budget_bytes: the cap.
            best: the best plan so far, None without one.
            number: of the trial: the draws are the same for the same number.
            is_seen: whether a plan is no news.
        """
        pooled = self._pool_within(budget_bytes)
        unseen = [plan for plan in pooled if not is_seen(plan)]
        if not unseen:
            return None
        draws = self._belief.posterior().draws(POOL_DRAWS, self._seed, number, 0)
        if best is None:
            return unseen[int(draws.step_times_s(self._pooled(unseen)).mean(axis=1).argmin())]
        are_unseen = set(unseen)
        others = [plan for plan in pooled if plan not in are_unseen]
        known = [*self._pooled(unseen), *self._pooled(others)]
        relative = draws.relative(known, self._reference(best), self._best_s(best, draws))
        return unseen[int(worth_of(relative, range(len(unseen)), len(known), best.log_error).argmax())]

    def pooled_gain(self, budget_bytes: int, best: MeasuredRatio, number: int) -> float:
        """As `Bound.possible_gain`, of the plans of the pool alone: at least so much."""
        pooled = self._pool_within(budget_bytes)
        if not pooled:
            return 0.0
        draws = self._belief.posterior().draws(POOL_DRAWS, self._seed, number, 1)
        return gain_at(draws.step_times_s(self._pooled(pooled)), self._best_s(best, draws), CONFIDENCE)

    def bound(self, budget_bytes: int, best: MeasuredRatio | None, reference: Plan) -> Bound | None:
        """How fast any plan within the budget may be; None if none fits, or if the reference is not profiled.

        The fastest step time under each of many draws, less some standard deviations: a belief, not a proof, as good as
        the belief's own errors are.
        """
        of_reference = self._known(reference)
        if of_reference is None:
            return None
        draws = self._belief.posterior().draws(BOUND_DRAWS, self._seed, len(self._belief.observations), 2)
        fastest = []
        for draw in range(len(draws)):
            step_time_s = self._fastest_s(draws.correction(draw), budget_bytes)
            if step_time_s is None:
                return None
            fastest.append(step_time_s)
        references_s = draws.of_plan_s(of_reference).tolist()
        relative = [time_s / reference_s for time_s, reference_s in zip(fastest, references_s, strict=True)]
        lowest = max(0.0, min(*relative, fmean(relative) - BOUND_DEVIATIONS * stdev(relative)))
        if best is None:
            return Bound(lowest, 1.0)
        return Bound(lowest, gain_at(as_row(fastest), self._best_s(best, draws), CONFIDENCE))

    def _pooled(self, plans: Iterable[Plan]) -> list[KnownPlan]:
        return [self._pool[plan].known for plan in plans]

    def _reference(self, best: MeasuredRatio) -> KnownPlan:
        reference = self._known(best.reference)
        assert reference is not None, "a study whose reference is not profiled gets no advice"
        return reference

    def _best_s(self, best: MeasuredRatio, draws: Draws) -> Floats:
        """Of the best plan under each draw; of one that is not profiled what was measured."""
        known = self._known(best.plan)
        if known is not None:
            return draws.of_plan_s(known)
        return draws.of_plan_s(self._reference(best)) * best.relative_step_time

    def _known(self, plan: Plan) -> KnownPlan | None:
        known = self._known_plans.get(plan)
        if known is None and (parts := self._outlook.time_parts(plan)) is not None:
            known = self._known_plans[plan] = KnownPlan(plan_hash(plan), parts)
        return known

    def _pool_within(self, budget_bytes: int) -> list[Plan]:
        """The plans of the pool that are predicted to fit."""
        modes = {pooled.compile for pooled in self._pool.values()}
        aims_bytes = {mode: self._margins.aim_bytes(mode, budget_bytes) for mode in modes}
        return [plan for plan, pooled in self._pool.items() if pooled.peak_bytes <= aims_bytes[pooled.compile]]

    def _solve(self, correction: Correction, budget_bytes: int) -> None:
        """Pools the fastest plan of each compile mode that is predicted to fit."""
        for stack in self._stacks:
            corrected = stack.corrected(correction)
            mode = corrected.model.profile.compile
            try:
                best = best_plan(corrected, self._layer_fqns, self._margins.aim_bytes(mode, budget_bytes))
            except (InfeasibleError, CostError):  # of this mode there is none under this draw
                continue
            if best.plan not in self._pool:
                known = self._known(best.plan)
                assert known is not None, "the solver chooses from what was profiled"
                assert best.prediction.peak_bytes is not None, "what was refused is in no menu"
                self._pool[best.plan] = _Pooled(known, mode, best.prediction.peak_bytes)

    def _fastest_s(self, correction: Correction, budget_bytes: int) -> float | None:
        found = []
        for stack in self._stacks:
            corrected = stack.corrected(correction)
            too_high_by = self._margins.too_high_by(corrected.model.profile.compile)
            fastest = fastest_s(corrected, int(budget_bytes * (1 + too_high_by)))
            if fastest is not None:
                found.append(fastest)
        return min(found, default=None)
