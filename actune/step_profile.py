"""What an instrumented step taught: the stretches between the marks at a model's layers, and what each one holds.

A step is cut into slots: each layer's forward, each layer's backward, the optimizer, and what lies around them
(embedding, head, loss). The slots' bytes add up, so the step of another plan is composed of slots of several steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

SlotKind = Literal["outer", "forward", "backward", "optimizer"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One stretch of a training step, from one mark to the next.

    Attributes:
        kind: forward or backward of a layer, optimizer, or outer for all that lies around them.
        layer_fqn: the layer of a forward or backward; empty for the others.
        call: the number of the layer's call in the forward, from 0 over all layers; -1 for the others.
        delta_bytes: what is held at the end, over the start.
        peak_bytes: the most that is held in between, over the start; not below 0 and not below `delta_bytes`.
        step_time_s: of the stretch; 0.0 where time was not taken.
    """

    kind: SlotKind
    layer_fqn: str
    call: int
    delta_bytes: int
    peak_bytes: int
    step_time_s: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(SlotKind):
            raise ValueError(f"kind: '{self.kind}' is none of {', '.join(get_args(SlotKind))}")
        if self.peak_bytes < max(0, self.delta_bytes):
            raise ValueError(f"peak_bytes: {self.peak_bytes} is below delta_bytes, {self.delta_bytes}, or below 0")


@dataclass(frozen=True, slots=True)
class LayerTensor:
    """A tensor that a call of a layer was given or returned, which is not the layer's own: others may have it too.

    Attributes:
        storage: its number in the step; equal for tensors that share a storage.
        size_bytes: of the storage.
        is_held: whether the layer holds it beyond its forward: for its backward, or for its recomputation.
    """

    storage: int
    size_bytes: int
    is_held: bool


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """Bytes that were made inside of a layer's call, which did not return them, and freed outside of the layers.

    So does a model that collects what its routers return, by hooks, for an auxiliary loss.

    Attributes:
        slot: the position in `StepProfile.slots` of the slot in which that happened, after all layers' forwards.
        size_bytes: of all such storages.
    """

    slot: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a call of a layer was given, returned, and left to the model by other ways.

    Attributes:
        call: its number, as in `Slot`.
        inputs: in the order of arguments and keywords.
        outputs: those whose storage is none of the inputs'. One is held if the call's own backward frees it.
        left: what submodules returned and the layer did not, as far as the layer itself does not hold it.
    """

    call: int
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...] = ()
    left: tuple[LeftBehind, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorFreed:
    """An input or output of a layer was freed.

    Attributes:
        storage: its number, as in `LayerTensor`.
        slot: the position in `StepProfile.slots` of the slot in which that happened.
    """

    storage: int
    slot: int


@dataclass(frozen=True, slots=True)
class StepProfile:
    """One step under one plan.

    Attributes:
        live_bytes: held before the step, gradients cleared: parameters, buffers, the batch, the optimizer's state.
        slots: in the order of time.
        calls: of the layers, in the order of time.
        freed: inputs and outputs of layers that were freed within the step.
        reserved_bytes: CUDA: what the allocator has reserved by the end of the step; None where there is none.
        outside_bytes: CUDA: what the process holds outside of the allocator.
    """

    live_bytes: int
    slots: tuple[Slot, ...]
    calls: tuple[LayerCall, ...]
    freed: tuple[TensorFreed, ...]
    reserved_bytes: int | None = None
    outside_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """The most that is held in the step."""
        return highest_bytes(self.live_bytes, self.slots)

    @property
    def step_time_s(self) -> float:
        """Of the whole step."""
        return sum(slot.step_time_s for slot in self.slots)


def highest_bytes(live_bytes: int, slots: Iterable[Slot]) -> int:
    """The highest point of a running sum that starts at `live_bytes`."""
    highest = running = live_bytes
    for slot in slots:
        highest = max(highest, running + slot.peak_bytes)
        running += slot.delta_bytes
    return highest


# The request and its reply; `actune.records` has the others.


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """Run a few steps under a plan with marks at its layers.

    Attributes:
        plan_toml: the plan.
        with_optimizer: also run the optimizer, in a step that makes its state and in one with that state there;
            without it, forward and backward alone.
        timed_steps: how many steps more are timed, slot by slot.
        settle: before that run steps until they take no less time than the ones before. A process's first steps are
            slow: on a CPU the heap takes a dozen to find its size, which makes them up to a quarter slower.
    """

    plan_toml: str
    with_optimizer: bool
    timed_steps: int
    settle: bool = False
    kind: Literal["profile"] = "profile"


@dataclass(frozen=True, slots=True)
class PlanProfiled:
    """What the steps taught.

    Attributes:
        first: the step that made the optimizer's state; None without the optimizer.
        steady: a step with that state there, or a forward and backward without the optimizer. Its slots have the times.
        settling_steps: how many steps it took to settle.
    """

    first: StepProfile | None
    steady: StepProfile
    settling_steps: int = 0
    kind: Literal["plan_profiled"] = "plan_profiled"
