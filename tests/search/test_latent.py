"""Latent numbers, and the plans that the solver makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actune.cost.corrected import CorrectableStack
from actune.cost.optimum import best_plan
from actune.cost.outlook import Outlook
from actune.cost.stack import Stack
from actune.plan import NO_AC, CompileMode, Plan, Treatment
from actune.plan.presets import preset_plan
from actune.records import LoadTarget
from actune.search.latent import ANY, LARGEST_CORRECTION, LAYER, LOWEST_SHARE, OFF, ON, PARTS, LatentSpace
from actune.search.peaks import PeakMargins

from .fakes import Machine, dense, mixture, peak_of

STRUCTURE = dense(4)
FQNS = STRUCTURE.layer_fqns
FULL = Treatment("full")
OF_PARTS = Treatment("full", wrap=("attention", "feed_forward"))
LATE = Treatment("full", early_stop=False)
BY_NAME = Treatment("selective", save_every_nth_mm=0, save=("attention.wq::mm",))
SAC = tuple(Treatment("selective", save_every_nth_mm=n) for n in (1, 2, 3))
MENU = (NO_AC, FULL, *SAC)
BUDGET_BYTES = 2000


def stack_of(
    menu: Sequence[Treatment] = MENU, *, compile: CompileMode = "off", machine: Machine | None = None
) -> Stack:
    machine = machine or Machine(STRUCTURE)
    machine.can_be_profiled = True
    with machine.start(LoadTarget("a", "cpu", 0), workers=1, timeout_s=1.0, log_folder=Path()) as engine:
        outlook = Outlook(machine.structure, engine.profile)
        return outlook.stack(compile, dict.fromkeys(machine.structure.layer_fqns, menu))


def space_of(
    *stacks: Stack, budget_bytes: int = BUDGET_BYTES, margins: PeakMargins | None = None, lowest_share: float = 0.7
) -> LatentSpace:
    fqns = [fqn for fqn, _ in stacks[0].calls]
    return LatentSpace(stacks, fqns, margins or PeakMargins(), budget_bytes=budget_bytes, lowest_share=lowest_share)


def treatments_of(plan: Plan) -> set[Treatment]:
    return set(plan.resolve(FQNS).values())


@pytest.fixture(scope="module")
def stack() -> Stack:
    return stack_of()


@pytest.mark.parametrize("budget_bytes", [1300, 1600, 2000, 2500, 3000])
def test_without_corrections_and_with_the_whole_budget_it_is_the_predicted_optimum(
    stack: Stack, budget_bytes: int
) -> None:
    space = space_of(stack, budget_bytes=budget_bytes)
    assert space.decode(space.at_share(1.0)) == best_plan(stack, FQNS, budget_bytes).plan


def test_a_smaller_share_has_no_higher_peak(stack: Stack) -> None:
    space = space_of(stack)
    shares = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, LOWEST_SHARE]
    peaks = [peak_of(space.decode(space.at_share(share)), STRUCTURE) for share in shares]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) > 4
    assert all(peak_bytes <= share * BUDGET_BYTES for peak_bytes, share in zip(peaks, shares, strict=True))


def test_a_share_below_the_least_is_the_least(stack: Stack) -> None:
    space = space_of(stack, lowest_share=0.9)
    assert space.at_share(0.5)["budget_share"] == 0.9
    assert space.choices({})[0].span == (0.9, 1.0)


def test_a_share_that_nothing_fits_is_the_plan_of_the_smallest_peak(stack: Stack) -> None:
    space = space_of(stack, budget_bytes=1300)
    assert space.decode(space.at_share(0.8)) == preset_plan("full", STRUCTURE)


def test_margins_lower_what_is_aimed_at(stack: Stack) -> None:
    margins = PeakMargins()
    margins.learn("off", 1000, 1250, whole=True)
    space = space_of(stack, margins=margins)
    assert space.decode(space.at_share(1.0)) == best_plan(stack, FQNS, 1600).plan


def test_what_is_said_to_be_slow_is_avoided(stack: Stack) -> None:
    space = space_of(stack)
    assert FULL not in treatments_of(space.decode(space.at_share(1.0)))
    largest = {"correction.Block.selective": LARGEST_CORRECTION, "correction.Block.full": -LARGEST_CORRECTION}
    assert FULL in treatments_of(space.decode(space.at_share(1.0) | largest))


def test_classes_are_corrected_each_by_itself() -> None:
    space = space_of(stack_of(machine=Machine(mixture(4))))
    corrected = {choice.name for choice in space.choices({}) if choice.name.startswith("correction.")}
    assert corrected == {
        f"correction.{name}.{policy}" for name in ("Block", "Block#2") for policy in ("none", "full", "selective")
    }


@pytest.mark.parametrize(
    ("switch", "kind", "kept"),
    [
        ("wrap", LAYER, {NO_AC, FULL, LATE, BY_NAME, SAC[1]}),
        ("wrap", PARTS, {NO_AC, OF_PARTS}),
        ("early_stop", ON, {NO_AC, FULL, OF_PARTS, BY_NAME, SAC[1]}),
        ("early_stop", OFF, {NO_AC, LATE}),
        ("save_sets", ON, {NO_AC, FULL, OF_PARTS, LATE, BY_NAME}),
        ("save_sets", OFF, {NO_AC, FULL, OF_PARTS, LATE, SAC[1]}),
    ],
)
def test_a_switch_leaves_its_kind_alone(switch: str, kind: str, kept: set[Treatment]) -> None:
    menu = (NO_AC, FULL, OF_PARTS, LATE, BY_NAME, SAC[1])
    stack = stack_of(menu)
    space = space_of(stack)
    assert {choice.name for choice in space.choices({})} >= {"wrap", "early_stop", "save_sets"}
    restricted = CorrectableStack.of(stack).restricted(lambda treatment: treatment in kept).stack
    for share in (1.0, 0.85, 0.7):
        plan = space.decode(space.at_share(share) | {switch: kind})
        assert treatments_of(plan) <= kept
        assert plan == best_plan(restricted, FQNS, int(share * BUDGET_BYTES)).plan


def test_what_the_menu_has_one_kind_of_is_no_parameter(stack: Stack) -> None:
    names = [choice.name for choice in space_of(stack).choices({})]
    assert names == ["budget_share", *(f"correction.Block.{policy}" for policy in ("full", "none", "selective"))]


def test_each_compile_mode_is_solved_by_itself(stack: Stack) -> None:
    space = space_of(stack, stack_of((NO_AC, FULL), compile="layer"))
    first = space.at_share(1.0)
    assert first["compile"] == "off"
    assert space.decode(first) == best_plan(stack, FQNS, BUDGET_BYTES).plan
    compiled = space.decode(first | {"compile": "layer"})
    assert compiled.compile == "layer"
    assert treatments_of(compiled) == {NO_AC, FULL}


def test_parameters_are_the_same_in_every_trial_and_each_of_their_values_is_a_plan() -> None:
    space = space_of(stack_of((*MENU, OF_PARTS)), stack_of((*MENU, OF_PARTS), compile="layer"))
    choices = space.choices({})
    assert {choice.name for choice in choices} == set(space.at_share(1.0))
    rng = random.Random(1)
    for _ in range(20):
        values: dict[str, Any] = {}
        for choice in choices:
            assert space.choices(values) == choices
            values[choice.name] = rng.uniform(*choice.span) if choice.span else rng.choice(choice.labels or ())
        assert peak_of(space.decode(values), STRUCTURE) <= BUDGET_BYTES
        assert space.decode(values) == space.decode(values, number=7)


def test_plans_have_no_parameters(stack: Stack) -> None:
    assert space_of(stack).encode(preset_plan("full", STRUCTURE)) is None
    assert ANY not in space_of(stack).at_share(1.0).values()
