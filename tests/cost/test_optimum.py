"""The best plan and the frontier against every plan there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from actune.cost.model import CostModel
from actune.cost.optimum import best_plan, predicted_frontier
from actune.cost.reserve import Reserve
from actune.cost.stack import Stack, stack_of
from actune.cost.survey import begin_survey, extend_survey
from actune.errors import CostError, InfeasibleError
from actune.plan import NO_AC
from actune.step_profile import PlanProfiled

from .steps import FULL, SAC, Steps, structure_of

STRUCTURE = structure_of(1, 4)
MENU = (NO_AC, FULL, SAC)


@pytest.fixture(scope="module")
def stack() -> Stack:
    steps = Steps(STRUCTURE)
    profile = begin_survey(STRUCTURE, steps)
    menus = dict.fromkeys(STRUCTURE.layer_fqns, MENU)
    return stack_of(CostModel(extend_survey(profile, menus, steps)), menus)


def all_predictions(stack: Stack):
    for choice in itertools.product(range(len(MENU)), repeat=len(STRUCTURE.layer_fqns)):
        prediction = stack.predict(choice)
        yield prediction.peak_bytes, round(prediction.step_time_s, 9)


def test_the_problem_has_the_model_s_peaks(stack):
    for choice in itertools.product(range(len(MENU)), repeat=len(STRUCTURE.layer_fqns)):
        assert stack.problem.peak_bytes(choice) == stack.predict(choice).peak_bytes


def test_the_best_plan_is_the_fastest_of_all_that_fit(stack):
    everything = list(all_predictions(stack))
    for budget_bytes in range(min(everything)[0], max(everything)[0] + 1, 17):
        best = best_plan(stack, STRUCTURE.layer_fqns, budget_bytes)
        assert best.prediction.peak_bytes <= budget_bytes
        fastest_s = min(time_s for peak_bytes, time_s in everything if peak_bytes <= budget_bytes)
        assert best.prediction.step_time_s == pytest.approx(fastest_s)
        assert best.bound_s == pytest.approx(fastest_s)
        assert stack.model.predict(best.plan, STRUCTURE.layer_fqns) == best.prediction


def test_the_frontier_is_that_of_all_plans(stack):
    everything = set(all_predictions(stack))
    expected = sorted(p for p in everything if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in everything))
    frontier = predicted_frontier(stack, STRUCTURE.layer_fqns, 200)
    assert [(p.prediction.peak_bytes, round(p.prediction.step_time_s, 9)) for p in frontier] == expected


def test_an_infeasible_budget_says_the_smallest_peak(stack):
    smallest_bytes = min(all_predictions(stack))[0]
    with pytest.raises(InfeasibleError, match="no plan is predicted to fit") as caught:
        best_plan(stack, STRUCTURE.layer_fqns, smallest_bytes - 1)
    assert caught.value.smallest_peak_bytes == smallest_bytes


@pytest.mark.parametrize("reserve", [Reserve(0, 0.07), Reserve(0.5, 0), Reserve(0, 1 / 3)])
def test_the_smallest_peak_that_is_named_is_reached(stack, monkeypatch, reserve):
    monkeypatch.setattr(stack.model, "_reserve", reserve)
    with pytest.raises(InfeasibleError) as caught:
        best_plan(stack, STRUCTURE.layer_fqns, 1)
    smallest_bytes = caught.value.smallest_peak_bytes
    assert smallest_bytes == min(all_predictions(stack))[0]
    best = best_plan(stack, STRUCTURE.layer_fqns, smallest_bytes)
    assert best.prediction.peak_bytes == smallest_bytes


def test_backwards_in_another_order_are_no_stack():
    steps = Steps(STRUCTURE)

    def swapped(request):
        def swap(step):
            slots = list(step.slots)
            first, second = (i for i, slot in enumerate(slots) if slot.kind == "backward" and slot.call in (1, 2))
            slots[first], slots[second] = slots[second], slots[first]
            return replace(step, slots=tuple(slots))

        profiled = steps(request)
        return PlanProfiled(swap(profiled.first), swap(profiled.steady))

    model = CostModel(begin_survey(STRUCTURE, swapped))
    with pytest.raises(CostError, match="does not come in the reverse order"):
        stack_of(model, dict.fromkeys(STRUCTURE.layer_fqns, (FULL,)))
