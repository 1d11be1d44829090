"""What is advised, as measurements come in."""

from __future__ import annotations

from pathlib import Path

import pytest

from actune.cost.outlook import Outlook
from actune.plan import NO_AC, Plan, Treatment
from actune.plan.presets import preset_plan
from actune.records import LoadTarget
from actune.search.advice import Advice, MeasuredRatio
from actune.search.peaks import PeakMargins

from .fakes import Machine, dense, peak_of, time_of

STRUCTURE = dense(4)
FQNS = STRUCTURE.layer_fqns
MENU = (NO_AC, Treatment("full"), *(Treatment("selective", save_every_nth_mm=n) for n in (1, 2, 3)))
REFERENCE = preset_plan("full", STRUCTURE)
UNKNOWN = Plan.from_treatments(dict.fromkeys(FQNS, Treatment("full", early_stop=False)))
BUDGET_BYTES = 2000


@pytest.fixture
def advice() -> Advice:
    machine = Machine(STRUCTURE, can_be_profiled=True)
    with machine.start(LoadTarget("a", "cpu", 0), workers=1, timeout_s=1.0, log_folder=Path()) as engine:
        outlook = Outlook(STRUCTURE, engine.profile)
        stack = outlook.stack("off", dict.fromkeys(FQNS, MENU))
    return Advice(outlook, [stack], FQNS, margins=PeakMargins(), seed=0)


def measured(plan: Plan) -> MeasuredRatio:
    return MeasuredRatio(plan, REFERENCE, time_of(plan, STRUCTURE) / time_of(REFERENCE, STRUCTURE), 0.002)


def test_a_proposal_is_new_and_within_the_budget(advice: Advice) -> None:
    assert advice.proposal(BUDGET_BYTES, None, 0, lambda plan: False) is None, "nothing was explored yet"
    advice.explore(BUDGET_BYTES, 0)
    first = advice.proposal(BUDGET_BYTES, None, 0, lambda plan: False)
    assert first is not None
    assert peak_of(first, STRUCTURE) <= BUDGET_BYTES
    assert advice.proposal(BUDGET_BYTES, measured(first), 0, lambda plan: plan == first) != first
    assert advice.proposal(BUDGET_BYTES, measured(first), 0, lambda plan: True) is None


def test_an_estimate_is_drawn_to_what_was_measured(advice: Advice) -> None:
    sac = preset_plan("sac", STRUCTURE)
    advice.believe([MeasuredRatio(sac, REFERENCE, 0.75, 0.002)])
    assert advice.estimate(sac, REFERENCE) == pytest.approx(0.75, rel=0.01)
    assert advice.estimate(REFERENCE, REFERENCE) == 1.0


def test_what_is_not_profiled_is_not_known_and_teaches_nothing(advice: Advice) -> None:
    assert advice.knows(REFERENCE)
    assert not advice.knows(UNKNOWN)
    before = advice.estimate(Plan(), REFERENCE)
    advice.believe([MeasuredRatio(UNKNOWN, REFERENCE, 0.5, 0.002), measured(REFERENCE)])
    assert advice.estimate(Plan(), REFERENCE) == before
    assert advice.estimate(UNKNOWN, REFERENCE) is None
    assert advice.bound(BUDGET_BYTES, None, UNKNOWN) is None


def test_a_bound_needs_a_plan_that_fits_and_all_is_possible_before_there_is_a_best(advice: Advice) -> None:
    assert advice.bound(1000, None, REFERENCE) is None
    bound = advice.bound(BUDGET_BYTES, None, REFERENCE)
    assert bound is not None
    assert bound.possible_gain == 1.0
    assert 0.0 <= bound.relative_step_time < 1.0
