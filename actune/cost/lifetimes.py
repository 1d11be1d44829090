"""When the inputs of layers are freed, given which layers hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from actune.step_profile import Slot, StepProfile


@dataclass(frozen=True, slots=True)
class SharedInput:
    """A tensor that is an input of one or more layers and is freed within the step.

    Attributes:
        storage: its number.
        size_bytes: of the storage.
        takers: the calls that it is an input of, and its position among each one's inputs.
        unheld_end: the slot in which it is freed if no layer holds it.
    """

    storage: int
    size_bytes: int
    takers: tuple[tuple[int, int], ...]
    unheld_end: int


def shared_inputs(frame: StepProfile, unheld_ends: Mapping[int, int]) -> tuple[SharedInput, ...]:
    """The inputs that are freed within the frame's step."""
    takers: dict[int, list[tuple[int, int]]] = {}
    size_bytes: dict[int, int] = {}
    for call in frame.calls:
        for position, given in enumerate(call.inputs):
            takers.setdefault(given.storage, []).append((call.call, position))
            size_bytes[given.storage] = given.size_bytes
    return tuple(
        SharedInput(
            freed.storage,
            size_bytes[freed.storage],
            tuple(takers[freed.storage]),
            unheld_ends.get(freed.storage, _usual_end(frame, takers[freed.storage])),
        )
        for freed in frame.freed
    )


def _usual_end(frame: StepProfile, takers: list[tuple[int, int]]) -> int:
    """Where an input that was never seen unheld is freed if nothing holds it.

    `x = layer(x)` drops x as the call returns; what several layers are given, or the first, is an argument or a local
    variable of the model's forward and lives until that returns, before the loss.
    """
    forward = [position for position, slot in enumerate(frame.slots) if slot.kind == "forward"]
    first_call, _ = takers[0]
    if len(takers) == 1 and first_call > 0:
        return next(position for position in forward if frame.slots[position].call == first_call) + 1
    return forward[-1] + 1


def free_inputs(slots: list[Slot], inputs: tuple[SharedInput, ...], holds: Callable[[int, int], bool]) -> None:
    """Frees each input in the slot of its end, in place.

    Args:
        slots: of a step `without_frees`.
        inputs: of the step.
        holds: whether a call, by its number, holds its input at a position.
    """
    backward_of = {slot.call: position for position, slot in enumerate(slots) if slot.kind == "backward"}
    for shared in inputs:
        holders = [call for call, position in shared.takers if holds(call, position)]
        held_until = max((backward_of[call] for call in holders if call in backward_of), default=-1)
        end = max(shared.unheld_end, held_until)
        slots[end] = _with_free(slots[end], shared.size_bytes)


def _with_free(slot: Slot, size_bytes: int) -> Slot:
    """A backward lets go of its inputs as it ends; the model's own code does so before anything else in the slot."""
    delta_bytes = slot.delta_bytes - size_bytes
    if slot.kind in ("forward", "backward"):
        return replace(slot, delta_bytes=delta_bytes)
    return replace(slot, delta_bytes=delta_bytes, peak_bytes=max(0, delta_bytes, slot.peak_bytes - size_bytes))
