"""What profiling taught about a target, as values: a frame of slots, and what each treatment costs at each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from actune.cost.reserve import ReservedPeak
from actune.errors import CostError
from actune.plan import CompileMode, Treatment
from actune.step_profile import LeftBehind, Slot, StepProfile


class UnknownTreatmentError(CostError):
    """A treatment was not profiled at a layer, so no plan that has it there can be predicted."""

    def __init__(self, layer_fqn: str, treatment: Treatment) -> None:
        super().__init__(f"'{treatment.label()}' was not profiled at {layer_fqn}. Profile it there first.")
        self.layer_fqn = layer_fqn
        self.treatment = treatment


class RefusedTreatmentError(CostError):
    """A treatment was refused at a layer, so it costs nothing that could be told."""

    def __init__(self, layer_fqn: str, treatment: Treatment) -> None:
        super().__init__(f"'{treatment.label()}' was refused at {layer_fqn}. Choose another treatment there.")


class CallCost(NamedTuple):
    """What one call of a layer costs under a treatment. Freeing the call's inputs is in none of the slots.

    Attributes:
        forward: its slot.
        backward: its slot; None if no gradient passes through the layer.
        holds_input: for each of the call's inputs, whether it is held beyond the forward.
        holds_output: for each of its outputs, whether it is held until the backward, in whose slot freeing it is then.
        left: what the call leaves to the model without returning it and does not hold.
    """

    forward: Slot
    backward: Slot | None
    holds_input: tuple[bool, ...]
    holds_output: tuple[bool, ...]
    left: tuple[LeftBehind, ...] = ()

    @property
    def left_bytes(self) -> int:
        """All that is left to the model."""
        return sum(left.size_bytes for left in self.left)


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a treatment costs at a layer, call by call.

    Attributes:
        first: in the step that makes the optimizer's state. Other batches may route other tokens, so it is kept apart.
        steady: in a step with that state there.
    """

    first: tuple[CallCost, ...]
    steady: tuple[CallCost, ...]

    @property
    def step_time_s(self) -> float:
        """Forward and backward of all calls."""
        return sum(
            slot.step_time_s for call in self.steady for slot in (call.forward, call.backward) if slot is not None
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a treatment can't be had at a layer.

    Attributes:
        reason: as it was said.
        no_room: the device had no room for it, even at a single layer; else the treatment does not fit the layer.
    """

    reason: str
    no_room: bool


@dataclass(frozen=True, slots=True)
class LayerRole:
    """Layers for which one profile serves: of the same class, and with the same slots under one plan for all.

    The last layer of a decoder may differ from the others of its class, since it begins a gradient that they add to.

    Attributes:
        layer_fqns: in the model's order.
        class_name: of their layer class.
        depends_on_data: whether two batches gave other bytes; then each layer is a role of its own.
        costs: by canonical treatment; None for one that was refused.
        refusals: why a treatment was refused.
    """

    layer_fqns: tuple[str, ...]
    class_name: str
    depends_on_data: bool
    costs: Mapping[Treatment, LayerCost | None]
    refusals: Mapping[Treatment, Refusal]

    def cost(self, layer_fqn: str, treatment: Treatment) -> LayerCost | None:
        """What a treatment costs at one of the layers; None if it was refused there.

        Raises:
            UnknownTreatmentError: it was not profiled.
        """
        key = treatment.canonical()
        if key not in self.costs:
            raise UnknownTreatmentError(layer_fqn, treatment)
        return self.costs[key]


@dataclass(frozen=True, slots=True)
class CostProfile:
    """What is known of a target under one compile mode.

    Attributes:
        compile: of all plans that it speaks of.
        first: the step that makes the optimizer's state, under the plan that the frame was taken with; its slots are
            those of `without_frees`.
        steady: a later step, with times.
        roles: each layer that is called is in one.
        reserved_peaks: what a caching allocator had allocated and reserved under each profiled plan; empty on a CPU.
        unheld_ends: the slot in which the model's own code frees an input or output that no layer holds, by the
            storage's number.
        steps_run: how many steps were run to learn it.
    """

    compile: CompileMode
    first: StepProfile
    steady: StepProfile
    roles: tuple[LayerRole, ...]
    reserved_peaks: tuple[ReservedPeak, ...]
    unheld_ends: Mapping[int, int]
    steps_run: int

    def role_of(self, layer_fqn: str) -> LayerRole:
        """The role that a layer is in."""
        return next(role for role in self.roles if layer_fqn in role.layer_fqns)

    def cost(self, layer_fqn: str, treatment: Treatment) -> LayerCost | None:
        """What a treatment costs at a layer; None if it was refused there.

        Raises:
            UnknownTreatmentError: it was not profiled.
        """
        return self.role_of(layer_fqn).cost(layer_fqn, treatment)


def without_frees(profile: StepProfile) -> StepProfile:
    """The step as if no input of a layer were freed in it: who frees it depends on the whole plan.

    But the backward of a call that holds an output of its own frees it, whatever the layers do that are given it.
    """
    size_bytes = {given.storage: given.size_bytes for call in profile.calls for given in call.inputs}
    held_by_makers = {made.storage for call in profile.calls for made in call.outputs if made.is_held}
    freed_bytes = [0] * len(profile.slots)
    for freed in profile.freed:
        if freed.storage in size_bytes and freed.storage not in held_by_makers:
            freed_bytes[freed.slot] += size_bytes[freed.storage]
    slots = [
        replace(slot, delta_bytes=slot.delta_bytes + more, peak_bytes=max(slot.peak_bytes, slot.delta_bytes + more))
        for slot, more in zip(profile.slots, freed_bytes, strict=True)
    ]
    return replace(profile, slots=tuple(slots))


def calls_of(profile: StepProfile) -> dict[str, tuple[CallCost, ...]]:
    """What each layer's calls cost in a step `without_frees`, by the layer's FQN, in the order of the calls."""
    backward = {slot.call: slot for slot in profile.slots if slot.kind == "backward"}
    given = {call.call: call for call in profile.calls}
    calls: dict[str, tuple[CallCost, ...]] = {}
    for slot in profile.slots:
        if slot.kind == "forward":
            call = given[slot.call]
            cost = CallCost(
                slot,
                backward.get(slot.call),
                tuple(tensor.is_held for tensor in call.inputs),
                tuple(tensor.is_held for tensor in call.outputs),
                call.left,
            )
            calls[slot.layer_fqn] = (*calls.get(slot.layer_fqn, ()), cost)
    return calls


def unheld_ends(profile: StepProfile) -> dict[int, int]:
    """The slots in which the model's own code freed inputs and outputs: no layer held them, or not as long.

    An embedding of positions holds what each layer is given too until its own backward, after that of all layers.
    """
    backward_of = {slot.call: position for position, slot in enumerate(profile.slots) if slot.kind == "backward"}
    held_until: dict[int, int] = {}
    for call in profile.calls:
        end = backward_of.get(call.call, len(profile.slots))
        for tensor in (*call.inputs, *call.outputs):
            if tensor.is_held:
                held_until[tensor.storage] = max(end, held_until.get(tensor.storage, -1))
    return {freed.storage: freed.slot for freed in profile.freed if freed.slot > held_until.get(freed.storage, -1)}
