"""What the cost model saves a search: the plans that it tries first, those that it does not run, and its advice."""

from __future__ import annotations

from collections.abc import Sequence

from actune.cost.optimum import PredictedPlan
from actune.cost.solver import solve_greedy
from actune.cost.stack import Stack
from actune.errors import CostError, InfeasibleBudgetError, InfeasibleError, TargetError
from actune.plan import CompileMode, Plan
from actune.records import Measurement, ModelStructure, Outcome
from actune.search.advice import Advice
from actune.search.forecast import Forecast, prediction_record
from actune.search.peaks import PeakMargins
from actune.search.reporter import Reporter
from actune.search.space import ModelSpace
from actune.store import Store
from actune.units import format_bytes

GREEDY = "greedy"
"""What the plan is called that a greedy solver makes of the same predictions: a peer like the presets."""

FRONTIER_BUDGETS = 8


class Foresight:
    """Predictions of one study, kept in the store beside its trials.

    Attributes:
        margins: of predicted peaks.
        stacks: what can be solved, by compile mode; none of a target that can't be profiled.
        advice: what to measure next; None without stacks.
        first: the plans to try first: the predicted optimum of each budget, or the plan of the smallest peak.
        greedy: the greedy solver's plan for the largest budget.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        forecast: Forecast,
        space: ModelSpace,
        structure: ModelStructure,
        *,
        seed: int,
    ) -> None:
        self.margins = PeakMargins()
        self.stacks: tuple[Stack, ...] = ()
        self.advice: Advice | None = None
        self.first: tuple[Plan, ...] = ()
        self.greedy: Plan | None = None
        self._store = store
        self._study = study
        self._forecast = forecast
        self._space = space
        self._layer_fqns = structure.layer_fqns
        self._seed = seed
        self._budgets_bytes: Sequence[int] = ()
        self._frontier: Sequence[PredictedPlan] = ()
        self._stored: set[Plan] = set()
        self._smallest: tuple[int, CompileMode] | None = None

    def look_ahead(self, reporter: Reporter) -> None:
        """Predicts the frontier and the presets, and stores them.

        A target that can't be profiled is searched without predictions, and the reporter is told why.
        """
        reporter.stage("profiling the layers")
        try:
            frontier = self._forecast.frontier()
            stacks = self._forecast.stacks_to_search()
            self._forecast.outlook.learn_plans(self._space.presets.values())
        except (InfeasibleError, TargetError, CostError) as error:
            reporter.stage(f"searching without predictions: {error}")
            return
        self.stacks = stacks
        self.advice = Advice(self._forecast.outlook, stacks, self._layer_fqns, margins=self.margins, seed=self._seed)
        presets = [
            prediction_record(plan, prediction, preset=name)
            for name, plan in self._space.presets.items()
            if (prediction := self._forecast.known(plan)) is not None
        ]
        points = [prediction_record(point.plan, point.prediction, on_frontier=True) for point in frontier]
        self._store.save_predictions(self._study, (*presets, *points))
        self._stored = {*self._space.presets.values(), *(point.plan for point in frontier)}
        for mode, why in self._forecast.left_out.items():
            reporter.stage(f"plans with compile = {mode} are not on the predicted frontier: {why}")
        self._frontier = frontier
        self._smallest = (_peak_bytes(frontier[0]), frontier[0].plan.compile)
        reporter.stage(
            f"predicted frontier: {len(frontier)} plans from {format_bytes(_peak_bytes(frontier[0]))} to "
            f"{format_bytes(_peak_bytes(frontier[-1]))}"
        )

    def budgets_between(self, static_bytes: int, largest_bytes: int) -> tuple[int, ...]:
        """Budgets at even distances from the smallest predicted peak to the largest budget, the largest first.

        Args:
            static_bytes: of the target: no peak is below, which is all that is known where nothing is predicted.
            largest_bytes: the largest budget.
        """
        smallest_bytes = min(static_bytes if self._smallest is None else self._smallest[0], largest_bytes)
        step_bytes = (largest_bytes - smallest_bytes) / (FRONTIER_BUDGETS - 1)
        budgets = {largest_bytes - round(number * step_bytes) for number in range(FRONTIER_BUDGETS)}
        return tuple(sorted(budgets, reverse=True))

    def choose_first(self, budgets_bytes: Sequence[int], reporter: Reporter) -> None:
        """Chooses what is tried first for these budgets, of which the first is the largest."""
        self._budgets_bytes = budgets_bytes
        if self._smallest is None:
            return
        if self._smallest[0] > budgets_bytes[0]:
            reporter.stage(
                f"no plan is predicted to fit: the smallest peak is {format_bytes(self._smallest[0])}; trying that one"
            )
            self.first = (self._frontier[0].plan,)
            return
        best = [_best_within(self._frontier, budget_bytes) for budget_bytes in budgets_bytes]
        self.first = tuple(dict.fromkeys(point.plan for point in best if point is not None))
        self.greedy = self._greedy(self.first[0], budgets_bytes[0])
        if self.greedy is not None and (prediction := self._forecast.known(self.greedy)) is not None:
            self._store.save_predictions(self._study, (prediction_record(self.greedy, prediction, preset=GREEDY),))

    def _greedy(self, best: Plan, budget_bytes: int) -> Plan | None:
        """By the greedy solver under the best plan's compile mode; None where what it takes to fit does not fit."""
        stack = next(stack for stack in self.stacks if stack.model.profile.compile == best.compile)
        try:
            solution = solve_greedy(stack.problem, stack.model.allocatable_bytes(budget_bytes))
        except InfeasibleBudgetError:
            return None
        return stack.plan(solution.choice, self._layer_fqns)

    def note(self, plan: Plan) -> None:
        """Stores what is predicted of a plan that is about to run."""
        prediction = self._forecast.known(plan)
        if prediction is not None and plan not in self._stored:
            self._store.save_predictions(self._study, (prediction_record(plan, prediction),))

    def learn_peak(self, plan: Plan, measurement: Measurement) -> None:
        """Compares a trial's peak with its prediction."""
        predicted_bytes = self._forecast.composed_peak_bytes(plan)
        if predicted_bytes is None or measurement.peak_bytes is None:
            return
        if measurement.outcome in (Outcome.OK, Outcome.OVER_BUDGET):
            is_whole = measurement.outcome is Outcome.OK
            self.margins.learn(plan.compile, predicted_bytes, measurement.peak_bytes, whole=is_whole)

    def may_fit(self, budget_bytes: int) -> bool:
        """Whether some plan is predicted to be within a budget, as far as known."""
        smallest = self._smallest
        return smallest is None or smallest[0] <= budget_bytes * (1 + self.margins.too_high_by(smallest[1]))

    def smallest_budget_of(self, plan: Plan) -> int:
        """The smallest budget that a plan is predicted to fit, which it competes for; the largest if none is known."""
        predicted_bytes = self._forecast.composed_peak_bytes(plan)
        if predicted_bytes is None:
            return self._budgets_bytes[0]
        return min((size for size in self._budgets_bytes if predicted_bytes <= size), default=self._budgets_bytes[0])

    def excess(self, plan: Plan) -> float | None:
        """By what share of the largest budget a plan is predicted to be over it; None if it may fit."""
        prediction = self._forecast.known(plan)
        if prediction is None:
            return None
        if prediction.peak_bytes is None:
            return 1.0  # one of its treatments can't be had
        share = prediction.peak_bytes / self._budgets_bytes[0] - 1
        return share if share > self.margins.too_high_by(plan.compile) else None


def _best_within(frontier: Sequence[PredictedPlan], budget_bytes: float) -> PredictedPlan | None:
    """The fastest plan of the frontier within the budget."""
    return next((point for point in reversed(frontier) if _peak_bytes(point) <= budget_bytes), None)


def _peak_bytes(point: PredictedPlan) -> int:
    assert point.prediction.peak_bytes is not None, "the frontier has no plan with a refused treatment"
    return point.prediction.peak_bytes
