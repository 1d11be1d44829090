"""What step times are made of: their parts come to what the model predicts."""

from __future__ import annotations

import random

import pytest

from actune.cost.model import CostModel
from actune.cost.outlook import Outlook
from actune.cost.profile import RefusedTreatmentError, UnknownTreatmentError
from actune.cost.survey import begin_survey, extend_survey
from actune.cost.time_parts import TimePart, outside_of_layers, outside_s, time_parts
from actune.plan import NO_AC, CompileMode, Plan, Treatment

from .steps import FULL, SAC, TIME_S, Steps, structure_of

STRUCTURE = structure_of(1, 4)
MENU = (NO_AC, FULL, SAC)
MISFIT = Treatment("selective", save_every_nth_mm=7)
OUTSIDE_S = 0.5 + 0.25 + 0.1
"""Of the made-up steps: embeddings, loss and optimizer."""


def model_of(compile: CompileMode = "off") -> CostModel:
    steps = Steps(STRUCTURE)
    steps.misfits = {MISFIT}
    profile = begin_survey(STRUCTURE, steps, compile=compile)
    return CostModel(extend_survey(profile, dict.fromkeys(STRUCTURE.layer_fqns, (*MENU, MISFIT)), steps))


@pytest.fixture(scope="module")
def model() -> CostModel:
    return model_of()


def test_the_parts_of_any_plan_come_to_its_predicted_step_time(model: CostModel) -> None:
    rng = random.Random(7)
    for _ in range(50):
        treatments = {fqn: rng.choice(MENU) for fqn in STRUCTURE.layer_fqns}
        parts = time_parts(model, treatments)
        assert sum(parts.values()) == pytest.approx(model.predict_treatments(treatments).step_time_s)
        expected_s = OUTSIDE_S + sum(TIME_S[treatment] for treatment in treatments.values())
        assert sum(parts.values()) == pytest.approx(expected_s)


def test_layers_of_a_class_under_one_treatment_are_one_part(model: CostModel) -> None:
    first, *others = STRUCTURE.layer_fqns
    treatments = {first: FULL, **dict(zip(others, (FULL, FULL, SAC, NO_AC), strict=True))}
    assert time_parts(model, treatments) == pytest.approx(
        {
            TimePart("off", "", None): OUTSIDE_S,
            TimePart("off", "Block#0", FULL): 1.5,
            TimePart("off", "Block#1", FULL): 3.0,
            TimePart("off", "Block#1", SAC): 1.25,
            TimePart("off", "Block#1", NO_AC): 1.0,
        }
    )


def test_what_is_outside_of_layers_is_the_same_part_of_every_plan(model: CostModel) -> None:
    assert outside_of_layers(model) == TimePart("off", "", None)
    assert outside_s(model) == pytest.approx(OUTSIDE_S)


def test_each_compile_mode_has_parts_of_its_own(model: CostModel) -> None:
    compiled = time_parts(model_of("layer"), dict.fromkeys(STRUCTURE.layer_fqns, FULL))
    eager = time_parts(model, dict.fromkeys(STRUCTURE.layer_fqns, FULL))
    assert {part.compile for part in compiled} == {"layer"}
    assert not compiled.keys() & eager.keys()
    assert {part._replace(compile="off") for part in compiled} == set(eager)


def test_treatments_that_were_not_profiled_have_no_parts(model: CostModel) -> None:
    treatments = dict.fromkeys(STRUCTURE.layer_fqns, FULL) | {"layers.2": Treatment("selective", save_every_nth_mm=9)}
    with pytest.raises(UnknownTreatmentError, match=r"layers\.2"):
        time_parts(model, treatments)


def test_treatments_that_were_refused_have_no_parts(model: CostModel) -> None:
    with pytest.raises(RefusedTreatmentError, match=r"layers\.3"):
        time_parts(model, dict.fromkeys(STRUCTURE.layer_fqns, FULL) | {"layers.3": MISFIT})


def test_an_outlook_has_the_parts_of_plans_that_it_knows_and_of_no_others() -> None:
    steps = Steps(STRUCTURE)
    steps.misfits = {MISFIT}
    outlook = Outlook(STRUCTURE, steps)
    full, sac, misfit = (
        Plan.from_treatments(dict.fromkeys(STRUCTURE.layer_fqns, treatment)) for treatment in (FULL, SAC, MISFIT)
    )
    assert outlook.time_parts(full) is None
    outlook.learn("off", dict.fromkeys(STRUCTURE.layer_fqns, (FULL, MISFIT)))
    parts = outlook.time_parts(full)
    assert parts is not None
    assert sum(parts.values()) == pytest.approx(OUTSIDE_S + 5 * TIME_S[FULL])
    assert outlook.time_parts(sac) is None
    assert outlook.time_parts(misfit) is None
