"""Which plans are profiled to learn what, and that what is learned predicts every other plan."""

from __future__ import annotations

import itertools

import pytest

from actune.cost.lessons import BASE
from actune.cost.model import CostModel
from actune.cost.outlook import Outlook
from actune.cost.profile import UnknownTreatmentError
from actune.cost.survey import begin_survey, extend_survey
from actune.errors import DeviceMemoryError, PlanError
from actune.plan import NO_AC, Plan

from .steps import FULL, SAC, Steps, structure_of

MENU = (NO_AC, FULL, SAC)


def model_of(steps: Steps) -> CostModel:
    profile = begin_survey(steps.structure, steps)
    return CostModel(extend_survey(profile, dict.fromkeys(steps.structure.layer_fqns, MENU), steps))


def all_plans(steps: Steps):
    fqns = steps.structure.layer_fqns
    for choice in itertools.product(MENU, repeat=len(fqns)):
        yield Plan.from_treatments(dict(zip(fqns, choice, strict=True)))


@pytest.mark.parametrize("structure", [structure_of(3), structure_of(1, 3), structure_of(2, 2)])
def test_every_plan_is_predicted_from_a_few(structure):
    steps = Steps(structure)
    model = model_of(steps)
    asked = len(steps.plans)
    for plan in all_plans(steps):
        assert model.predict(plan, structure.layer_fqns).peak_bytes == steps.peak_bytes(plan)
    assert asked == len(steps.plans)


def test_one_step_teaches_as_many_treatments_as_a_role_has_layers():
    # Layers that leave as much behind are one role; the formula lets each leave its own.
    steps = Steps(structure_of(6), odd={f"layers.{number}": -number for number in range(6)})
    profile = begin_survey(steps.structure, steps)
    assert [role.layer_fqns for role in profile.roles] == [steps.structure.layer_fqns]
    extend_survey(profile, dict.fromkeys(steps.structure.layer_fqns, MENU), steps)
    base, taught = steps.plans
    assert set(base.values()) == {BASE}
    assert list(taught.values()) == [NO_AC, SAC] * 3


def test_a_layer_that_leaves_more_behind_is_a_role_of_its_own():
    steps = Steps(structure_of(3), odd={"layers.0": 0, "layers.1": -1, "layers.2": 30})
    profile = begin_survey(steps.structure, steps)
    assert [role.layer_fqns for role in profile.roles] == [("layers.0", "layers.1"), ("layers.2",)]
    assert not any(role.depends_on_data for role in profile.roles)


def test_layers_whose_bytes_depend_on_the_batch_are_roles_of_their_own_and_both_steps_are_predicted():
    steps = Steps(structure_of(3))
    steps.data_bytes = 7
    model = model_of(steps)
    assert [len(role.layer_fqns) for role in model.profile.roles] == [1, 1, 1]
    assert all(role.depends_on_data for role in model.profile.roles)
    for plan in all_plans(steps):
        assert model.predict(plan, steps.structure.layer_fqns).peak_bytes == steps.peak_bytes(plan)


def test_time_adds_up_over_the_layers_and_what_lies_around_them():
    steps = Steps(structure_of(3))
    plan = Plan.from_treatments({"layers.0": NO_AC, "layers.1": SAC, "layers.2": FULL})
    predicted_s = model_of(steps).predict(plan, steps.structure.layer_fqns).step_time_s
    assert predicted_s == pytest.approx(0.5 + 1.0 + 1.25 + 1.5 + 0.25 + 0.1)


def test_where_there_is_no_room_treatments_are_tried_at_one_layer_each():
    structure = structure_of(4)
    room_for_one = Steps(structure).peak_bytes(Plan.from_treatments(dict.fromkeys(structure.layer_fqns[1:], FULL)))
    steps = Steps(structure, capacity_bytes=room_for_one, odd={f"layers.{number}": -number for number in range(4)})
    model = model_of(steps)
    assert all(list(plan.values()).count(BASE) >= 3 for plan in steps.plans)
    plan = Plan.from_treatments(dict.fromkeys(structure.layer_fqns, SAC))
    assert model.predict(plan, structure.layer_fqns).peak_bytes == steps.peak_bytes(plan)


def test_a_treatment_without_room_even_at_one_layer_is_known_as_such():
    structure = structure_of(2)
    base = Plan.from_treatments(dict.fromkeys(structure.layer_fqns, BASE))
    steps = Steps(structure, odd={"layers.1": -1}, capacity_bytes=Steps(structure).peak_bytes(base))
    model = model_of(steps)
    assert model.profile.cost("layers.0", NO_AC) is None
    prediction = model.predict(Plan(), structure.layer_fqns)
    assert (prediction.peak_bytes, prediction.step_time_s) == (None, None)
    assert prediction.refusal is not None
    assert prediction.refusal.no_room


def test_no_room_for_full_checkpointing_is_said():
    with pytest.raises(DeviceMemoryError):
        model_of(Steps(structure_of(2), capacity_bytes=100))


def test_what_was_not_profiled_is_not_guessed():
    steps = Steps(structure_of(2))
    model = CostModel(begin_survey(steps.structure, steps))
    with pytest.raises(UnknownTreatmentError, match=r"'none' was not profiled at layers\.0"):
        model.predict(Plan(), steps.structure.layer_fqns)


def test_an_outlook_profiles_what_it_is_asked_about_and_nothing_twice():
    steps = Steps(structure_of(2))
    outlook = Outlook(steps.structure, steps)
    assert outlook.known(Plan()) is None
    assert outlook.predict(Plan()).peak_bytes == steps.peak_bytes(Plan())
    asked = len(steps.plans)
    assert outlook.predict(Plan()) == outlook.known(Plan())
    assert len(steps.plans) == asked
    sac = Plan.from_treatments(dict.fromkeys(steps.structure.layer_fqns, SAC))
    assert outlook.known(sac) is None
    assert outlook.predict(sac).peak_bytes == steps.peak_bytes(sac)


def test_a_treatment_that_does_not_fit_is_refused_alone():
    steps = Steps(structure_of(1, 3), odd={f"layers.{number}": -number for number in range(4)})
    steps.misfits = {SAC}
    model = model_of(steps)
    for role in model.profile.roles:
        assert role.costs[SAC] is None
        assert role.refusals[SAC].reason == "it does not fit"
        assert not role.refusals[SAC].no_room
    assert model.predict(Plan(), steps.structure.layer_fqns).peak_bytes == steps.peak_bytes(Plan())
    outlook = Outlook(steps.structure, steps)
    with pytest.raises(PlanError, match=r"'selective' at layers\.0: it does not fit"):
        outlook.predict(Plan.from_treatments(dict.fromkeys(steps.structure.layer_fqns, SAC)))
