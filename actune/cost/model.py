"""The cost model: peak and step time of any plan, composed from what each treatment costs at each layer.

Slots' bytes add up: what is held before a slot is what was held before the step, plus what the slots before it left
behind. So a plan's peak is the highest point of a running sum over the frame, its layers' slots replaced by those of
their treatments. The idea is the design's, section 6: each constraint is local to a layer once that sum is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actune.cost.profile import CallCost, CostProfile, LayerCost
from actune.plan import Plan, Treatment
from actune.step_profile import Slot, StepProfile, highest_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan is predicted to cost.

    Attributes:
        peak_bytes: of the optimizer's first step and of a later one, the higher; None if the device has no room for a
            treatment of the plan.
        step_time_s: of a later step.
    """

    peak_bytes: int | None
    step_time_s: float | None


def predict(profile: CostProfile, plan: Plan, layer_fqns: Sequence[str]) -> Prediction:
    """Peak and step time of a plan.

    Raises:
        UnknownTreatmentError: a treatment of the plan was not profiled.
        PlanError: a pattern of the plan matches no layer.
    """
    assert plan.compile == profile.compile, "a profile speaks of one compile mode"
    return predict_treatments(profile, plan.resolve(layer_fqns))


def predict_treatments(profile: CostProfile, treatments: Mapping[str, Treatment]) -> Prediction:
    """As `predict`, for the treatments of the layers by FQN."""
    costs: dict[str, LayerCost] = {}
    for role in profile.roles:
        for fqn in role.layer_fqns:
            cost = profile.cost(fqn, treatments[fqn])
            if cost is None:
                return Prediction(None, None)
            costs[fqn] = cost
    first = composed(profile.first, {fqn: cost.first for fqn, cost in costs.items()})
    steady = composed(profile.steady, {fqn: cost.steady for fqn, cost in costs.items()})
    peak_bytes = max(highest_bytes(profile.first.live_bytes, first), highest_bytes(profile.steady.live_bytes, steady))
    return Prediction(peak_bytes, sum(slot.step_time_s for slot in steady))


def composed(frame: StepProfile, calls: Mapping[str, tuple[CallCost, ...]]) -> tuple[Slot, ...]:
    """The slots of a step: the frame's, with each layer's replaced by its own calls'."""
    cost_of_call: dict[int, CallCost] = {}
    calls_left = {fqn: iter(of_layer) for fqn, of_layer in calls.items()}
    slots: list[Slot] = []
    carry_bytes = 0
    for slot in frame.slots:
        if slot.kind == "forward":
            cost = cost_of_call[slot.call] = next(calls_left[slot.layer_fqn])
            slots.append(cost.forward)
            carry_bytes = cost.carry_bytes
        elif slot.kind == "backward":
            backward = cost_of_call[slot.call].backward
            assert backward is not None, "a layer has its backward under every treatment or under none"
            slots.append(backward)
        else:
            slots.append(carried(slot, carry_bytes))
            carry_bytes = 0
    return tuple(slots)


def carried(slot: Slot, carry_bytes: int) -> Slot:
    """The slot after a call, with what the call's treatment leaves behind at its start."""
    if carry_bytes == 0:
        return slot
    return replace(
        slot, delta_bytes=slot.delta_bytes + carry_bytes, peak_bytes=max(0, carry_bytes, slot.peak_bytes + carry_bytes)
    )
