"""What is predicted of a space, where the cost model alone is not enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actune.errors import CostError, InfeasibleError, PlanError
from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import NO_AC, Plan, parse_plan
from actune.search.forecast import Forecast
from actune.search.space import ModelSpace
from actune.step_profile import PlanProfiled, ProfilePlan

from .fakes import SPACE, dense, profile_of, space_of

STRUCTURE = dense(4)


class Card:
    """Of an engine what a forecast asks for: a card whose allocator reserves more the more layers have no AC."""

    def __init__(self, *, gap_bytes: int = 0, cannot_compile: bool = False) -> None:
        self.gap_bytes = gap_bytes
        self.cannot_compile = cannot_compile
        self.profiled: list[Plan] = []

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        plan = parse_plan(request.plan_toml)
        if plan.compile != "off" and self.cannot_compile:
            raise PlanError("nothing compiles here")
        self.profiled.append(plan)
        steady = profile_of(plan, STRUCTURE, 1000, 0)
        reserved_bytes = self.reserved_bytes(plan)
        first = replace(steady, reserved_bytes=reserved_bytes) if request.with_optimizer else None
        return PlanProfiled(first, replace(steady, reserved_bytes=reserved_bytes, outside_bytes=50))

    def reserved_bytes(self, plan: Plan) -> int:
        bare_layers = [*plan.resolve(STRUCTURE.layer_fqns).values()].count(NO_AC)
        return profile_of(plan, STRUCTURE, 1000, 0).peak_bytes + self.gap_bytes * bare_layers

    def trace_layers(self, request: TraceLayers) -> LayersTraced:
        return LayersTraced((), 0.0)


def forecast_of(card: Card, yaml: str = SPACE) -> Forecast:
    return Forecast(card, STRUCTURE, ModelSpace(space_of(yaml), STRUCTURE))  # type: ignore[arg-type]


@pytest.mark.parametrize("gap_bytes", [0, 20, 60])
def test_the_best_plan_fits_by_what_it_really_reserves(gap_bytes: int) -> None:
    card = Card(gap_bytes=gap_bytes)
    for budget_bytes in range(1300, 2700, 100):
        best = forecast_of(card).best(budget_bytes)
        assert best.prediction.peak_bytes == card.reserved_bytes(best.plan) + 50 <= budget_bytes


def test_a_budget_below_every_plan_is_infeasible() -> None:
    with pytest.raises(InfeasibleError) as caught:
        forecast_of(Card()).best(1200)
    assert caught.value.smallest_peak_bytes == 1000 + 4 * 50 + 50


def test_modes_that_cannot_be_profiled_are_left_out_by_name() -> None:
    forecast = forecast_of(Card(cannot_compile=True), SPACE + "compile: [off, layer, model]\n")
    assert {point.plan.compile for point in forecast.frontier()} == {"off"}
    assert forecast.left_out["layer"] == "nothing compiles here"
    assert "only roughly the sum" in forecast.left_out["model"]


def test_nothing_to_predict_is_an_error_that_says_why() -> None:
    with pytest.raises(CostError, match=r"nothing compiles here \(compile = layer\)"):
        forecast_of(Card(cannot_compile=True), SPACE + "compile: [layer]\n").frontier()
