"""The cost model: peak and step time of any plan, composed from what each treatment costs at each layer.

Slots' bytes add up: what is held before a slot is what was held before the step, plus what the slots before it left
behind. So a plan's peak is the highest point of a running sum over the frame, its layers' slots replaced by those of
their treatments. The idea is the design's, section 6: each constraint is local to a layer once that sum is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from actune.cost.lifetimes import SharedTensor, free_tensors, hold_what_was_left, shared_tensors
from actune.cost.profile import CallCost, CostProfile, LayerCost, Refusal
from actune.cost.reserve import reserve_of
from actune.plan import Plan, Treatment
from actune.step_profile import Slot, StepProfile, highest_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan is predicted to cost.

    Attributes:
        peak_bytes: of the optimizer's first step and of a later one, the higher. On CUDA with what the allocator
            reserves beyond what is allocated, and what lies outside of it. None if a treatment was refused.
        step_time_s: of a later step; None as well then.
        allocated_bytes: the peak without what CUDA adds to it.
        refusal: which treatment of the plan can't be had, and why; then there are no numbers.
    """

    peak_bytes: int | None
    step_time_s: float | None
    allocated_bytes: int | None
    refusal: Refusal | None = None


class CostModel:
    """Predicts plans of one compile mode from a profile.

    Attributes:
        profile: what it predicts from.
        first: the step that makes the optimizer's state.
        steady: a later one.
    """

    def __init__(self, profile: CostProfile) -> None:
        self.profile = profile
        self.first = Frame(profile.first, shared_tensors(profile.first, profile.unheld_ends))
        self._reserve = reserve_of(profile.reserved_peaks)
        self.steady = Frame(profile.steady, shared_tensors(profile.steady, profile.unheld_ends))

    def predict(self, plan: Plan, layer_fqns: Sequence[str]) -> Prediction:
        """Peak and step time of a plan.

        Raises:
            UnknownTreatmentError: a treatment of the plan was not profiled.
            PlanError: a pattern of the plan matches no layer.
        """
        assert plan.compile == self.profile.compile, "a profile speaks of one compile mode"
        return self.predict_treatments(plan.resolve(layer_fqns))

    def predict_treatments(self, treatments: Mapping[str, Treatment]) -> Prediction:
        """As `predict`, for the treatments of the layers by FQN."""
        costs: dict[str, LayerCost] = {}
        for role in self.profile.roles:
            for fqn in role.layer_fqns:
                cost = role.cost(fqn, treatments[fqn])
                if cost is None:
                    refusal = role.refusals[treatments[fqn].canonical()]
                    why = f"'{treatments[fqn].label()}' at {fqn}: {refusal.reason}"
                    return Prediction(None, None, None, Refusal(why, refusal.no_room))
                costs[fqn] = cost
        first = self.first.composed({fqn: cost.first for fqn, cost in costs.items()})
        steady = self.steady.composed({fqn: cost.steady for fqn, cost in costs.items()})
        allocated_bytes = max(
            highest_bytes(self.profile.first.live_bytes, first), highest_bytes(self.profile.steady.live_bytes, steady)
        )
        return Prediction(
            self._reserve.reserved_bytes(allocated_bytes) + self.profile.steady.outside_bytes,
            sum(slot.step_time_s for slot in steady),
            allocated_bytes,
        )

    def allocatable_bytes(self, peak_bytes: int) -> int:
        """How much may be allocated for the peak to be that."""
        return self._reserve.allocatable_bytes(peak_bytes - self.profile.steady.outside_bytes)


@dataclass(frozen=True, slots=True)
class Frame:
    """A step whose layers' slots are replaced, and the tensors that its layers share."""

    step: StepProfile
    shared: tuple[SharedTensor, ...]

    def composed(self, calls: Mapping[str, tuple[CallCost, ...]]) -> list[Slot]:
        """The slots of the step with each layer's replaced by its own calls'."""
        costs = self.cost_of_calls(calls)
        slots: list[Slot] = []
        for slot in self.step.slots:
            if slot.kind == "forward":
                slots.append(_at(slot, costs[slot.call].forward))
            elif slot.kind == "backward":
                backward = costs[slot.call].backward
                assert backward is not None, "a layer has its backward under every treatment or under none"
                slots.append(_at(slot, backward))
            else:
                slots.append(slot)
        free_tensors(
            slots,
            self.shared,
            lambda call, position: costs[call].holds_input[position],
            lambda call, position: costs[call].holds_output[position],
        )
        hold_what_was_left(
            slots, {call.call: call.left for call in self.step.calls}, {c: cost.left for c, cost in costs.items()}
        )
        return slots

    def cost_of_calls(self, calls: Mapping[str, tuple[CallCost, ...]]) -> dict[int, CallCost]:
        """The calls of these layers by their numbers in the step."""
        left = {fqn: iter(of_layer) for fqn, of_layer in calls.items()}
        forward = [slot for slot in self.step.slots if slot.kind == "forward" and slot.layer_fqn in left]
        return {slot.call: next(left[slot.layer_fqn]) for slot in forward}


@lru_cache(maxsize=4096)
def _at(place: Slot, cost: Slot) -> Slot:
    """A slot that was learned at one layer, at another one's place."""
    return Slot(place.kind, place.layer_fqn, place.call, cost.delta_bytes, cost.peak_bytes, cost.step_time_s)
