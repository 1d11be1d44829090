"""Slots of layers in a model that is compiled as one graph, where no call of a layer is left to mark.

The graph's backward is cut by what it must hand out: the gradients of a layer's weight matrices are there, in storages
of known addresses, when that layer's backward is done, whatever else the compiler moved around. Its forward hands out
nothing by layer: what it leaves behind is shared out evenly, as is time, since plans are compared by their sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from torch import nn

from actune.errors import PlanError
from actune.measure.recording import Allocation, stretch_of
from actune.step_profile import LayerCall, Slot, SlotKind, StepProfile

WHOLE_MODEL = ("",)
"""The layers of a model that is one graph: itself, by its FQN."""


def gradient_addresses(model: nn.Module, layer_fqns: Sequence[str]) -> dict[str, set[int]]:
    """Addresses of the gradients of each layer's weight matrices, after a backward."""
    return {
        fqn: {
            parameter.grad.untyped_storage().data_ptr()
            for parameter in model.get_submodule(fqn).parameters()
            if parameter.grad is not None and parameter.ndim >= 2
        }
        for fqn in layer_fqns
    }


def split_by_gradients(
    profile: StepProfile, allocations: Sequence[Sequence[Allocation]], addresses: Mapping[str, set[int]]
) -> StepProfile:
    """The step with slots for each layer in place of the graph's forward and backward.

    Args:
        profile: a step with marks at the whole model alone.
        allocations: the allocations and frees of each of its slots.
        addresses: of the layers' gradients, in the model's order.

    Raises:
        PlanError: the graph does not show where a layer's backward ends.
    """
    slots: list[Slot] = []
    for slot, of_slot in zip(profile.slots, allocations, strict=True):
        if slot.kind == "forward":
            slots += _forward_slots(slot, list(addresses))
        elif slot.kind == "backward":
            slots += _backward_slots(slot, of_slot, addresses)
        else:
            slots.append(slot)
    calls = tuple(LayerCall(call, ()) for call in range(len(addresses)))
    return replace(profile, slots=tuple(slots), calls=calls, freed=())


def with_shared_times(profile: StepProfile, kinds: Sequence[SlotKind], times_s: Sequence[float]) -> StepProfile:
    """The step with the time of each kind of slot shared out evenly among the slots of that kind.

    Args:
        profile: from `split_by_gradients`.
        kinds: of the slots of a timed step with marks at the whole model alone.
        times_s: theirs.
    """
    total_s: Counter[SlotKind] = Counter()
    for kind, time_s in zip(kinds, times_s, strict=True):
        total_s[kind] += time_s  # type: ignore[assignment]  # typeshed counts in integers
    count = Counter(slot.kind for slot in profile.slots)
    slots = [replace(slot, step_time_s=total_s[slot.kind] / count[slot.kind]) for slot in profile.slots]
    return replace(profile, slots=tuple(slots))


def _forward_slots(slot: Slot, layer_fqns: Sequence[str]) -> list[Slot]:
    count = len(layer_fqns)
    ends_bytes = [slot.delta_bytes * (call + 1) // count for call in range(count)]
    transient_bytes = slot.peak_bytes - max(0, slot.delta_bytes)
    slots = []
    for call, fqn in enumerate(layer_fqns):
        delta_bytes = ends_bytes[call] - (ends_bytes[call - 1] if call else 0)
        peak_bytes = max(0, delta_bytes) + (transient_bytes if call == count - 1 else 0)
        slots.append(Slot("forward", fqn, call, delta_bytes, peak_bytes, 0.0))
    return slots


def _backward_slots(slot: Slot, allocations: Sequence[Allocation], addresses: Mapping[str, set[int]]) -> list[Slot]:
    last_allocated = {a.address: position for position, a in enumerate(allocations) if a.delta_bytes > 0}
    in_backward_order = [*addresses][::-1]
    ends = []
    for fqn in in_backward_order:
        positions = [last_allocated[address] for address in addresses[fqn] if address in last_allocated]
        if not positions:
            raise PlanError(
                f'compile: "model": the compiled backward makes no gradient of a weight matrix of {fqn}, so what its '
                "layers hold can't be told apart. Measure plans of this mode by `actune measure`, or leave it out."
            )
        ends.append(max(positions) + 1)
    ends = list(accumulate(ends, max))
    slots = []
    for number, (fqn, start, end) in enumerate(zip(in_backward_order, [0, *ends], ends, strict=False)):
        stretch = stretch_of([a.delta_bytes for a in allocations[start:end]])
        call = len(addresses) - 1 - number
        slots.append(Slot("backward", fqn, call, stretch.delta_bytes, stretch.peak_bytes, 0.0))
    rest = stretch_of([a.delta_bytes for a in allocations[ends[-1] :]])
    return [*slots, Slot("outer", "", -1, rest.delta_bytes, rest.peak_bytes, 0.0)]
