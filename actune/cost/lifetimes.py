"""When the inputs and outputs of layers are freed, given which layers hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actune.step_profile import LeftBehind, Slot, StepProfile


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A tensor that is an input or output of one or more layers and is freed within the step.

    Attributes:
        storage: its number.
        size_bytes: of the storage.
        takers: the calls that it is an input of, and its position among each one's inputs.
        maker: the call that it is an output of, and its position among the outputs; None if the model made it.
        unheld_end: the slot in which it is freed if no layer holds it.
    """

    storage: int
    size_bytes: int
    takers: tuple[tuple[int, int], ...]
    maker: tuple[int, int] | None
    unheld_end: int


def shared_tensors(frame: StepProfile, unheld_ends: Mapping[int, int]) -> tuple[SharedTensor, ...]:
    """The inputs and outputs that are freed within the frame's step."""
    takers: dict[int, list[tuple[int, int]]] = {}
    makers: dict[int, tuple[int, int]] = {}
    size_bytes: dict[int, int] = {}
    for call in frame.calls:
        for position, given in enumerate(call.inputs):
            takers.setdefault(given.storage, []).append((call.call, position))
            size_bytes[given.storage] = given.size_bytes
        for position, made in enumerate(call.outputs):
            makers.setdefault(made.storage, (call.call, position))
            size_bytes[made.storage] = made.size_bytes
    return tuple(
        SharedTensor(
            freed.storage,
            size_bytes[freed.storage],
            tuple(takers.get(freed.storage, ())),
            makers.get(freed.storage),
            unheld_ends.get(freed.storage, _usual_end(frame, takers.get(freed.storage, []))),
        )
        for freed in frame.freed
    )


def _usual_end(frame: StepProfile, takers: list[tuple[int, int]]) -> int:
    """Where a tensor that was never seen unheld is freed if nothing holds it.

    `x = layer(x)` drops x as the call returns; what several layers are given, or the first, is an argument or a local
    variable of the model's forward and lives until that returns, before the loss.
    """
    forward = [position for position, slot in enumerate(frame.slots) if slot.kind == "forward"]
    if len(takers) == 1 and takers[0][0] > 0:
        return next(position for position in forward if frame.slots[position].call == takers[0][0]) + 1
    return forward[-1] + 1


def free_tensors(
    slots: list[Slot],
    shared_tensors: tuple[SharedTensor, ...],
    holds_input: Callable[[int, int], bool],
    holds_output: Callable[[int, int], bool],
) -> None:
    """Frees each tensor in the slot of its end, in place; or not there, if what made it holds it until its backward.

    Args:
        slots: of a step `without_frees`.
        shared_tensors: of the step.
        holds_input: whether a call, by its number, holds its input at a position.
        holds_output: the same of its outputs.
    """
    backward_of = {slot.call: position for position, slot in enumerate(slots) if slot.kind == "backward"}
    for shared in shared_tensors:
        held_by_maker = shared.maker is not None and holds_output(*shared.maker)
        if not shared.takers and held_by_maker:
            slots[shared.unheld_end] = _with_kept(slots[shared.unheld_end], shared.size_bytes)
        if not shared.takers or held_by_maker:
            continue  # freed as in the frame, or in the maker's own backward
        holders = [call for call, position in shared.takers if holds_input(call, position)]
        held_until = max((backward_of[call] for call in holders if call in backward_of), default=-1)
        end = max(shared.unheld_end, held_until)
        slots[end] = _with_free(slots[end], shared.size_bytes)


def hold_what_was_left(
    slots: list[Slot],
    left_in_frame: Mapping[int, Sequence[LeftBehind]],
    left: Mapping[int, Sequence[LeftBehind]],
) -> None:
    """Keeps, in place, what layers left to the model in the frame and now hold themselves, until their backwards.

    Args:
        slots: of a step.
        left_in_frame: of each call, in the step that the frame is of.
        left: of each call, under its treatment now.
    """
    held_bytes: Counter[int] = Counter()
    for call, now in left.items():
        for one in left_in_frame[call]:
            held_bytes[one.slot] += one.size_bytes
        for one in now:
            held_bytes[one.slot] -= one.size_bytes
    for position, size_bytes in held_bytes.items():
        slots[position] = _with_free(slots[position], -size_bytes)


def _with_kept(slot: Slot, size_bytes: int) -> Slot:
    """What the loss is computed from is freed as the gradient is there, at the end of the slot."""
    delta_bytes = slot.delta_bytes + size_bytes
    return replace(slot, delta_bytes=delta_bytes, peak_bytes=max(slot.peak_bytes, delta_bytes))


def _with_free(slot: Slot, size_bytes: int) -> Slot:
    """A backward lets go of its inputs as it ends; the model's own code does so before anything else in the slot."""
    delta_bytes = slot.delta_bytes - size_bytes
    if slot.kind in ("forward", "backward"):
        return replace(slot, delta_bytes=delta_bytes)
    return replace(slot, delta_bytes=delta_bytes, peak_bytes=max(0, delta_bytes, slot.peak_bytes - size_bytes))
