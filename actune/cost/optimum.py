"""The best plan for a budget, and the predicted frontier: the solver's answers, checked by the cost model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actune.cost.model import Prediction
from actune.cost.solver import solve_exact, solve_frontier
from actune.cost.solver.problem import Solution
from actune.cost.stack import Stack
from actune.errors import CostError, InfeasibleBudgetError, InfeasibleError
from actune.plan import Plan
from actune.units import format_bytes

TIGHTENINGS = 16


@dataclass(frozen=True, slots=True)
class PredictedPlan:
    """A plan that a solver chose.

    Attributes:
        prediction: what the cost model says of it.
        bound_s: no plan of the menus within the budget is predicted to be faster.
    """

    plan: Plan
    prediction: Prediction
    bound_s: float


def best_plan(stack: Stack, layer_fqns: Sequence[str], budget_bytes: int) -> PredictedPlan:
    """The fastest plan that is predicted to fit.

    Raises:
        InfeasibleError: none is; the message gives the smallest peak that is predicted of any.
    """
    limit_bytes = stack.model.allocatable_bytes(budget_bytes)
    bound_s = None
    # Where layers leave different bytes behind after their backward, as compiled ones may, the problem's peaks are off
    # by that; the model's are not.
    for _ in range(TIGHTENINGS):
        try:
            solution = solve_exact(stack.problem, limit_bytes)
        except InfeasibleBudgetError as error:
            smallest = stack.predict(error.choice)
            if (smallest.peak_bytes or 0) <= budget_bytes:
                if bound_s is None:
                    bound_s = solve_exact(stack.problem, error.smallest_peak_bytes or limit_bytes).bound_s
                return PredictedPlan(stack.plan(error.choice, layer_fqns), smallest, bound_s)
            raise InfeasibleError(
                f"no plan is predicted to fit {format_bytes(budget_bytes)}: the smallest peak of any is "
                f"{format_bytes(smallest.peak_bytes or 0)}. Give a larger budget, or a space with more to choose from.",
                smallest_peak_bytes=smallest.peak_bytes,
            ) from None
        bound_s = solution.bound_s if bound_s is None else bound_s
        prediction = stack.predict(solution.choice)
        assert prediction.peak_bytes is not None, "what was refused is in no menu"
        if prediction.peak_bytes <= budget_bytes:
            return PredictedPlan(stack.plan(solution.choice, layer_fqns), prediction, bound_s)
        limit_bytes -= prediction.peak_bytes - budget_bytes
    raise CostError(
        f"after {TIGHTENINGS} attempts no plan was found whose predicted peak is within {format_bytes(budget_bytes)}."
    )


def predicted_frontier(stack: Stack, layer_fqns: Sequence[str], points: int) -> tuple[PredictedPlan, ...]:
    """Plans that no other is predicted to beat in both peak and step time, from the smallest peak to the fastest."""
    predicted = []
    for solution in solve_frontier(stack.problem, points=points):
        prediction = stack.predict(solution.choice)
        predicted.append((prediction, solution))
    predicted.sort(key=lambda pair: (pair[0].peak_bytes or 0, pair[0].step_time_s or 0.0))
    frontier: list[PredictedPlan] = []
    fastest_s = float("inf")
    for prediction, solution in predicted:
        assert prediction.step_time_s is not None
        if prediction.step_time_s < fastest_s:
            fastest_s = prediction.step_time_s
            frontier.append(_predicted(stack, layer_fqns, prediction, solution))
    return tuple(frontier)


def _predicted(stack: Stack, layer_fqns: Sequence[str], prediction: Prediction, solution: Solution) -> PredictedPlan:
    return PredictedPlan(stack.plan(solution.choice, layer_fqns), prediction, solution.bound_s)
