"""What a search knows before it measures: the predicted frontier of its space, and what any of its plans costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from actune.cost.derive import derived_treatments
from actune.cost.model import Prediction
from actune.cost.op_survey import trace_classes
from actune.cost.optimum import PredictedPlan, best_plan, predicted_frontier
from actune.cost.outlook import Outlook
from actune.cost.stack import Stack
from actune.engine import Engine
from actune.errors import CostError, InfeasibleError, PlanError
from actune.plan import CompileMode, Plan, Treatment
from actune.predictions import PredictionRecord
from actune.records import ModelStructure
from actune.search.space import ModelSpace
from actune.units import format_bytes

DERIVED_SETS = 6
FRONTIER_POINTS = 200
CALIBRATIONS = 5
WHOLE_MODEL: CompileMode = "model"


class Forecast:
    """Predicts the plans of a space on a target.

    Attributes:
        outlook: the cost models.
        left_out: compile modes of the space that are not in the frontier, and why.
    """

    def __init__(self, engine: Engine, structure: ModelStructure, space: ModelSpace) -> None:
        self._engine = engine
        self._structure = structure
        self._space = space
        self.outlook = Outlook(structure, engine.profile)
        self.left_out: dict[CompileMode, str] = {}
        self._stacks_of: dict[CompileMode, Stack] = {}
        self._derived: Mapping[str, Sequence[Treatment]] | None = None

    def predict(self, plan: Plan) -> Prediction:
        """Peak and step time of a plan. Raises as `Outlook.learn`."""
        return self.outlook.predict(plan)

    def known(self, plan: Plan) -> Prediction | None:
        """The prediction of a plan if it can be made from what was profiled so far."""
        return self.outlook.known(plan)

    def composed_peak_bytes(self, plan: Plan) -> int | None:
        """The peak that its layers' profile gives a plan, also where that is not sure enough for a prediction."""
        prediction = self.outlook.composed(plan)
        return None if prediction is None else prediction.peak_bytes

    def stacks_to_search(self) -> tuple[Stack, ...]:
        """What a search may solve, one for each compile mode: also the one whose peaks are known only roughly.

        Raises as `Outlook.learn`.
        """
        stacks = self._stacks()
        if WHOLE_MODEL in self._space.compile_modes:
            try:
                stacks.append(self._stack(WHOLE_MODEL))
            except (PlanError, CostError) as error:
                self.left_out[WHOLE_MODEL] = str(error)
        return tuple(stacks)

    def frontier(self, *, points: int = FRONTIER_POINTS) -> tuple[PredictedPlan, ...]:
        """Plans that no other of the space is predicted to beat in both peak and step time, from the smallest peak.

        Raises as `Outlook.learn`.
        """
        return _not_beaten(
            [
                predicted
                for stack in self._stacks()
                for predicted in predicted_frontier(stack, self._structure.layer_fqns, points)
            ]
        )

    def best(self, budget_bytes: int) -> PredictedPlan:
        """The plan of the space that is predicted to be the fastest that fits.

        What a caching allocator reserves is not composed of layers. Where there is one, the plan is therefore run a few
        steps, and if its peak is over the budget, the next one is looked for within as much less.

        Raises:
            InfeasibleError: none fits; with the smallest peak predicted of any.
        """
        limit_bytes = budget_bytes
        for _ in range(CALIBRATIONS):
            best = self._best_uncalibrated(limit_bytes)
            if best.prediction.peak_bytes == best.prediction.allocated_bytes:
                return best
            calibrated = replace(best, prediction=self.outlook.calibrate(best.plan))
            peak_bytes = calibrated.prediction.peak_bytes
            assert peak_bytes is not None, "the plan has just run"
            if peak_bytes <= budget_bytes:
                return calibrated
            limit_bytes -= peak_bytes - budget_bytes
        raise CostError(
            f"of {CALIBRATIONS} plans that were predicted to fit {format_bytes(budget_bytes)} none did when run a few "
            "steps. Give a larger budget, or measure plans by `actune measure`."
        )

    def _best_uncalibrated(self, budget_bytes: int) -> PredictedPlan:
        found: list[PredictedPlan] = []
        smallest: list[InfeasibleError] = []
        for stack in self._stacks():
            try:
                found.append(best_plan(stack, self._structure.layer_fqns, budget_bytes))
            except InfeasibleError as error:
                smallest.append(error)
        if not found:
            raise min(smallest, key=lambda error: error.smallest_peak_bytes or 0)
        return min(found, key=lambda predicted: predicted.prediction.step_time_s or 0.0)

    def _stacks(self) -> list[Stack]:
        """One for each compile mode that can be predicted.

        Raises:
            CostError: for none.
        """
        stacks = []
        for mode in self._space.compile_modes:
            if mode == WHOLE_MODEL:
                self.left_out[mode] = "one graph for all layers is only roughly the sum of its layers"
                continue
            try:
                stacks.append(self._stack(mode))
            except (PlanError, CostError) as error:
                self.left_out[mode] = str(error)
        if not stacks:
            raise CostError("; ".join(f"{why} (compile = {mode})" for mode, why in self.left_out.items()))
        return stacks

    def _stack(self, mode: CompileMode) -> Stack:
        if mode not in self._stacks_of:
            self._stacks_of[mode] = self.outlook.stack(mode, self._menus(mode))
        return self._stacks_of[mode]

    def _menus(self, mode: CompileMode) -> dict[str, tuple[Treatment, ...]]:
        menus = {
            fqn: tuple(group.menu_under(mode).values()) for group in self._space.groups for fqn in group.layer_fqns
        }
        if mode == "off":
            menus = {fqn: tuple(dict.fromkeys((*menu, *self._derived_of(fqn)))) for fqn, menu in menus.items()}
        if mode == WHOLE_MODEL:  # where a memory budget is the graph's, not a layer's
            menus = {fqn: tuple(t for t in menu if t.policy != "memory_budget") for fqn, menu in menus.items()}
        return menus

    def _derived_of(self, layer_fqn: str) -> Sequence[Treatment]:
        """The save sets that the layer's op trace gives, beside those that the space names."""
        if self._derived is None:
            traced = trace_classes(self._structure, self._engine.trace_layers)
            of_class = derived_treatments(traced, points=DERIVED_SETS)
            self._derived = {
                fqn: of_class.get(layer_class.name, ())
                for layer_class in self._structure.classes
                for fqn in layer_class.layer_fqns
            }
        return self._derived[layer_fqn]


def prediction_record(
    plan: Plan, prediction: Prediction, *, preset: str | None = None, on_frontier: bool = False
) -> PredictionRecord:
    """A prediction as a study keeps it."""
    return PredictionRecord.of(
        plan,
        peak_bytes=prediction.peak_bytes,
        step_time_s=prediction.step_time_s,
        preset=preset,
        on_frontier=on_frontier,
    )


def _not_beaten(candidates: Sequence[PredictedPlan]) -> tuple[PredictedPlan, ...]:
    """Those that none is better than in both, from the smallest peak up."""
    frontier: list[PredictedPlan] = []
    for candidate in sorted(candidates, key=lambda c: (c.prediction.peak_bytes or 0, c.prediction.step_time_s or 0.0)):
        if not frontier or (candidate.prediction.step_time_s or 0.0) < (frontier[-1].prediction.step_time_s or 0.0):
            frontier.append(candidate)
    return tuple(frontier)
