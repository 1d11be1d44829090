"""Stacks with corrected times, and with fewer treatments to choose from."""

from __future__ import annotations

import pytest

from actune.cost.corrected import CorrectableStack, fastest_s
from actune.cost.model import CostModel
from actune.cost.optimum import best_plan
from actune.cost.solver import solve_exhaustive
from actune.cost.stack import stack_of
from actune.cost.survey import begin_survey, extend_survey
from actune.cost.time_parts import TimePart, outside_of_layers, time_parts
from actune.plan import NO_AC, Plan

from .steps import FULL, SAC, Steps, structure_of

STRUCTURE = structure_of(1, 3)
FQNS = STRUCTURE.layer_fqns
MENUS = {"layers.0": (NO_AC, FULL), **dict.fromkeys(FQNS[1:], (NO_AC, FULL, SAC))}


@pytest.fixture(scope="module")
def correctable() -> CorrectableStack:
    steps = Steps(STRUCTURE)
    model = CostModel(extend_survey(begin_survey(STRUCTURE, steps), MENUS, steps))
    return CorrectableStack.of(stack_of(model, MENUS))


@pytest.fixture(scope="module")
def correction(correctable: CorrectableStack) -> dict[TimePart, float]:
    """Another factor for each part, under which SAC is slower than to recompute everything."""
    factors = {part: 1.0 + 0.05 * number for number, part in enumerate(correctable.all_parts)}
    return factors | {TimePart("off", "Block#1", SAC): 1.6}


def test_parts_are_those_of_every_option_and_of_what_is_outside(correctable: CorrectableStack) -> None:
    names = ("Block#0", "Block#1", "Block#1", "Block#1")
    assert correctable.parts == tuple(
        tuple(TimePart("off", name, treatment) for treatment in MENUS[fqn])
        for fqn, name in zip(FQNS, names, strict=True)
    )
    assert correctable.all_parts[0] == outside_of_layers(correctable.stack.model)
    assert len(correctable.all_parts) == len(set(correctable.all_parts)) == 1 + 2 + 3
    assert correctable.treatments == (NO_AC, FULL, SAC)


def test_times_are_the_profiled_ones_by_their_part_s_factor_and_bytes_stay(
    correctable: CorrectableStack, correction: dict[TimePart, float]
) -> None:
    before, after = correctable.stack.problem, correctable.corrected(correction).problem
    assert after.base_time_s == pytest.approx(before.base_time_s * 1.0)
    assert after.floor_bytes == before.floor_bytes
    for was, now, parts in zip(before.layers, after.layers, correctable.parts, strict=True):
        assert (now.after_bytes, now.tie) == (was.after_bytes, was.tie)
        for old, new, part in zip(was.options, now.options, parts, strict=True):
            assert new.time_s == pytest.approx(old.time_s * correction[part])
            assert (new.kept_bytes, new.need_bytes) == (old.kept_bytes, old.need_bytes)


def test_what_is_outside_of_layers_is_corrected_too(correctable: CorrectableStack) -> None:
    correction = dict.fromkeys(correctable.all_parts, 1.0) | {outside_of_layers(correctable.stack.model): 3.0}
    corrected = correctable.corrected(correction)
    assert corrected.problem.base_time_s == pytest.approx(3.0 * correctable.stack.problem.base_time_s)
    assert corrected.problem.layers == correctable.stack.problem.layers


def test_a_choice_s_corrected_time_is_the_corrected_sum_of_its_parts(
    correctable: CorrectableStack, correction: dict[TimePart, float]
) -> None:
    corrected = correctable.corrected(correction)
    choice = (1, 0, 2, 1)
    parts = time_parts(correctable.stack.model, correctable.stack.treatments(choice))
    expected_s = sum(time_s * correction[part] for part, time_s in parts.items())
    assert corrected.problem.time_ps(choice) == pytest.approx(1e12 * expected_s)


def test_the_fastest_is_the_exhaustive_solver_s_at_every_budget(
    correctable: CorrectableStack, correction: dict[TimePart, float]
) -> None:
    found = set()
    for stack in (correctable.stack, correctable.corrected(correction)):
        everything = best_plan(stack, FQNS, 10**6).prediction.peak_bytes
        assert everything is not None
        for budget_bytes in range(everything, 1000, -40):
            fastest = fastest_s(stack, budget_bytes)
            if fastest is None:
                break
            expected = solve_exhaustive(stack.problem, stack.model.allocatable_bytes(budget_bytes))
            assert fastest == pytest.approx(expected.time_s)
            found.add(expected.choice)
        assert fastest is None, "the smallest budgets have no plan"
    assert len(found) > 4


def test_corrected_times_change_what_is_fastest(
    correctable: CorrectableStack, correction: dict[TimePart, float]
) -> None:
    plan = Plan.from_treatments(dict.fromkeys(FQNS[1:], SAC))
    budget_bytes = correctable.stack.model.predict(plan, FQNS).peak_bytes
    assert budget_bytes is not None
    before = best_plan(correctable.stack, FQNS, budget_bytes).plan.resolve(FQNS)
    after = best_plan(correctable.corrected(correction), FQNS, budget_bytes).plan.resolve(FQNS)
    assert SAC in before.values()
    assert SAC not in after.values()


def test_only_what_is_allowed_is_left(correctable: CorrectableStack) -> None:
    restricted = correctable.restricted(lambda treatment: treatment != NO_AC)
    assert restricted.stack.menus == {"layers.0": (FULL,), **dict.fromkeys(FQNS[1:], (FULL, SAC))}
    assert [[part.treatment for part in parts] for parts in restricted.parts] == [[FULL], *[[FULL, SAC]] * 3]
    for was, now in zip(correctable.stack.problem.layers, restricted.stack.problem.layers, strict=True):
        assert now.options == was.options[1:]


def test_a_layer_with_nothing_allowed_keeps_its_menu(correctable: CorrectableStack) -> None:
    restricted = correctable.restricted(lambda treatment: treatment == SAC)
    assert restricted.stack.menus == {"layers.0": (NO_AC, FULL), **dict.fromkeys(FQNS[1:], (SAC,))}
    assert restricted.stack.problem.layers[0] == correctable.stack.problem.layers[0]
    assert best_plan(restricted.stack, FQNS, 10**6).plan.resolve(FQNS) == {
        "layers.0": NO_AC,
        **dict.fromkeys(FQNS[1:], SAC),
    }


def test_everything_allowed_changes_nothing(correctable: CorrectableStack) -> None:
    restricted = correctable.restricted(lambda treatment: True)
    assert restricted.stack.problem == correctable.stack.problem
    assert restricted.parts == correctable.parts
    assert restricted.all_parts == correctable.all_parts
