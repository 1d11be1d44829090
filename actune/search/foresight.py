"""What the cost model saves a search: the plans that it tries first, and those that it does not run at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from actune.cost.optimum import PredictedPlan
from actune.errors import CostError, InfeasibleError, TargetError
from actune.plan import Plan, parse_plan
from actune.records import Outcome
from actune.search.forecast import Forecast, prediction_record
from actune.search.reporter import Reporter
from actune.search.space import ModelSpace
from actune.store import Store
from actune.study_records import TrialRecord
from actune.units import format_bytes

FIRST_BUDGET_SHARES = (1.0, 0.98, 0.95, 0.9)
"""The budgets whose predicted optima are tried first: the lower ones are there for a model that is off."""

UNPROVEN_MARGIN = 0.01
PROVEN_AFTER = 3


@dataclass(slots=True)
class PeakMargin:
    """By what share a predicted peak may be over the budget before the plan is not run: learned from the errors so far.

    It is the most that a prediction was too high; as long as few plans were measured, not less than one percent.
    """

    too_high_by: list[float] = field(default_factory=list)

    def learn(self, predicted_bytes: int, measured_bytes: int) -> None:
        """Notes a plan that was measured to its end."""
        self.too_high_by.append(max(0.0, predicted_bytes / measured_bytes - 1))

    @property
    def share(self) -> float:
        """The margin."""
        worst = max(self.too_high_by, default=0.0)
        return worst if len(self.too_high_by) >= PROVEN_AFTER else max(worst, UNPROVEN_MARGIN)


class Foresight:
    """Predictions of one study, kept in the store beside its trials."""

    def __init__(self, store: Store, study: str, forecast: Forecast, space: ModelSpace, *, budget_bytes: int) -> None:
        self._store = store
        self._study = study
        self._forecast = forecast
        self._space = space
        self._budget_bytes = budget_bytes
        self.margin = PeakMargin()

    def look_ahead(self, reporter: Reporter) -> tuple[Plan, ...]:
        """Predicts the frontier and the presets, stores them, and says which plans to try first.

        A target that can't be profiled is searched without predictions, and the reporter is told why.
        """
        reporter.stage("profiling the layers")
        try:
            frontier = self._forecast.frontier()
            self._forecast.outlook.learn_plans(self._space.presets.values())
        except (InfeasibleError, TargetError, CostError) as error:
            reporter.stage(f"searching without predictions: {error}")
            return ()
        presets = [
            prediction_record(plan, prediction, preset=name)
            for name, plan in self._space.presets.items()
            if (prediction := self._forecast.known(plan)) is not None
        ]
        points = [prediction_record(point.plan, point.prediction, on_frontier=True) for point in frontier]
        self._store.save_predictions(self._study, (*presets, *points))
        for mode, why in self._forecast.left_out.items():
            reporter.stage(f"plans with compile = {mode} are not predicted: {why}")
        smallest_bytes = _peak_bytes(frontier[0])
        if smallest_bytes > self._budget_bytes:
            reporter.stage(
                f"no plan is predicted to fit: the smallest peak is {format_bytes(smallest_bytes)}; trying that one"
            )
            return (frontier[0].plan,)
        best = [_best_within(frontier, share * self._budget_bytes) for share in FIRST_BUDGET_SHARES]
        plans = dict.fromkeys(point.plan for point in best if point is not None)
        reporter.stage(
            f"predicted frontier: {len(frontier)} plans from {format_bytes(smallest_bytes)} to "
            f"{format_bytes(_peak_bytes(frontier[-1]))}; trying the best for the budget first"
        )
        return tuple(plans)

    def note(self, plan: Plan) -> None:
        """Stores what is predicted of a plan that is about to run."""
        prediction = self._forecast.known(plan)
        if prediction is not None:
            self._store.save_predictions(self._study, (prediction_record(plan, prediction),))

    def learn(self, trial: TrialRecord) -> None:
        """Compares a trial that ran to its end with its prediction."""
        prediction = self._forecast.known(parse_plan(trial.plan_toml))
        measurement = trial.measurement
        if measurement.outcome is Outcome.OK and prediction is not None and prediction.peak_bytes is not None:
            assert measurement.peak_bytes is not None
            self.margin.learn(prediction.peak_bytes, measurement.peak_bytes)

    def excess(self, plan: Plan) -> float | None:
        """By what share of the budget a plan is predicted to be over it; None if it may fit, for all that is known."""
        prediction = self._forecast.known(plan)
        if prediction is None:
            return None
        if prediction.peak_bytes is None:
            return 1.0  # one of its treatments can't be had
        share = prediction.peak_bytes / self._budget_bytes - 1
        return share if share > self.margin.share else None


def _best_within(frontier: Sequence[PredictedPlan], budget_bytes: float) -> PredictedPlan | None:
    """The fastest plan of the frontier within the budget."""
    return next((point for point in reversed(frontier) if _peak_bytes(point) <= budget_bytes), None)


def _peak_bytes(point: PredictedPlan) -> int:
    assert point.prediction.peak_bytes is not None, "the frontier has no plan with a refused treatment"
    return point.prediction.peak_bytes
