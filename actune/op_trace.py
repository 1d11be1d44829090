"""What a layer does in one training step, op by op, forward and backward. Plain frozen values.

An op is what a dispatch mode sees: below autograd, after composite ops have been taken apart, just as selective
activation checkpointing (SAC) sees it. So an op has here the name and the number that a plan's `save` gives it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from actune.plan import WHOLE_LAYER

Phase = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class OutputStorage:
    """What one output tensor of an op lies in.

    Attributes:
        storage: its number in the trace of its layer; storages are numbered as they are first met.
        storage_bytes: of the whole storage, which a view may show a part of.
        is_new: the op made it; else the output is a view, or what the op wrote to.
    """

    storage: int
    storage_bytes: int
    is_new: bool

    def __post_init__(self) -> None:
        if self.storage < 0 or self.storage_bytes < 0:
            raise ValueError(f"storage {self.storage} of {self.storage_bytes} bytes: neither may be negative")


@dataclass(frozen=True, slots=True)
class OpRecord:
    """One op.

    Attributes:
        op_name: as plans name it, see `actune.ac.ops.op_name`.
        module_fqn: of the module that it ran in, below the layer; `.` is the layer itself. In backward that of the
            forward op whose gradient it computes.
        occurrence: which one it is, from 1, among the ops of that name in that module, counted as SAC counts them for
            `save`; 0 for those that SAC does not count: ops of the backward, in-place ops, ops that SAC ignores.
        reads: storages of the tensors it is given, in their order, each once.
        writes: those of them that it writes to.
        outputs: storages of the tensors it returns, in their order, each once.
        kept_bytes: of the storages that it made, those that autograd keeps for the backward.
        kept_by_sac: whether SAC keeps its output with a selective treatment's defaults.
        time_s: median over the batches traced.
        flops: None for ops without a formula (pointwise and data movement).
        random: this call draws random numbers.
        chooses: it turns values into indices, as `topk` does, or is a router's matmul, whose scores are chosen by:
            recomputed with other rounding, it might choose otherwise.
        varies: how many ops of its name run in its module, or what they return, depends on the batch.
        optional: on some batch none does.
    """

    phase: Phase
    op_name: str
    module_fqn: str
    occurrence: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    outputs: tuple[OutputStorage, ...]
    kept_bytes: int
    kept_by_sac: bool
    time_s: float
    flops: int | None
    random: bool
    chooses: bool
    varies: bool
    optional: bool

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise ValueError(f"phase: '{self.phase}' is none of {', '.join(get_args(Phase))}")
        if not set(self.writes) <= set(self.reads):
            raise ValueError(f"writes: {self.writes} are not all among what {self.op_name} is given, {self.reads}")
        if not 0 <= self.kept_bytes <= self.new_bytes:
            raise ValueError(f"kept_bytes: {self.kept_bytes} is outside of 0 to {self.new_bytes}, what the op made")

    @property
    def made(self) -> frozenset[int]:
        """The storages that it made."""
        return frozenset(output.storage for output in self.outputs if output.is_new)

    @property
    def new_bytes(self) -> int:
        """Of the storages that it made."""
        return sum(output.storage_bytes for output in self.outputs if output.is_new)


@dataclass(frozen=True, slots=True)
class TraceSpread:
    """How much the trace of a layer differs between batches, as with a router's choices. Lowest and highest values.

    Attributes:
        same_ops: whether only sizes differ; else the batches ran different ops.
        kept_bytes: as `LayerTrace.kept_bytes`.
        forward_time_s: of the forward's ops.
        backward_time_s: of the backward's ops.
    """

    same_ops: bool
    kept_bytes: tuple[int, int]
    forward_time_s: tuple[float, float]
    backward_time_s: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("kept_bytes", "forward_time_s", "backward_time_s"):
            lowest, highest = getattr(self, name)
            if lowest > highest:
                raise ValueError(f"{name}: the lowest, {lowest}, is above the highest, {highest}")


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """One call of one layer without AC, which stands for all layers of its class.

    Attributes:
        class_name: the layer class's.
        layer_fqn: the layer that was traced.
        ops: of the forward, then of the backward, in the order of time.
        recomputed_ops: how many ops of the forward, from the first, run again when the layer is recomputed with early
            stop: what comes later makes nothing that backward needs.
        input_bytes: of the storages of its input tensors.
        output_storages: numbers of the storages of its output, which the next layer holds.
        parameter_bytes: of its parameters.
        batches: how many batches were traced.
        spread: for a layer whose trace depends on the batch; `ops` are then those of the batch that keeps most.
    """

    class_name: str
    layer_fqn: str
    ops: tuple[OpRecord, ...]
    recomputed_ops: int
    input_bytes: int
    output_storages: tuple[int, ...]
    parameter_bytes: int
    batches: int
    spread: TraceSpread | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.recomputed_ops <= len(self.forward):
            raise ValueError(
                f"recomputed_ops: {self.recomputed_ops} is outside of 0 to {len(self.forward)}, the ops of the forward"
            )

    @property
    def forward(self) -> tuple[OpRecord, ...]:
        """The ops of the forward."""
        return tuple(op for op in self.ops if op.phase == "forward")

    @property
    def backward(self) -> tuple[OpRecord, ...]:
        """The ops of the backward."""
        return tuple(op for op in self.ops if op.phase == "backward")

    @property
    def kept_bytes(self) -> int:
        """What autograd keeps of what the layer made; the input, which it may keep too, is the layer before's."""
        return sum(op.kept_bytes for op in self.ops)

    @property
    def recompute_time_s(self) -> float:
        """Of recomputing the layer whole, with early stop."""
        return total_time_s(self.forward[: self.recomputed_ops])

    @property
    def module_fqns(self) -> tuple[str, ...]:
        """Modules that ran ops of their own, each after the module it lies in, in the order of the forward."""
        return tuple(dict.fromkeys(op.module_fqn for op in self.ops)) or (WHOLE_LAYER,)


def total_time_s(ops: Iterable[OpRecord]) -> float:
    """Of all of the ops."""
    return sum(op.time_s for op in ops)


# The request and its reply; `actune.records` has the others.


@dataclass(frozen=True, slots=True)
class TraceLayers:
    """Trace layers op by op in a few forwards and backwards.

    Attributes:
        plan_toml: what the step runs under. The traced layers get no AC from it, and nothing is compiled; the others
            may, where the step does not fit otherwise.
        layer_fqns: the layers to trace; empty for a typical one of each class that is called.
        batches: how many of the target's batches are traced, from the first; a layer that runs other ops or sizes on
            one of them depends on data.
    """

    plan_toml: str
    layer_fqns: tuple[str, ...] = ()
    batches: int = 3
    kind: Literal["trace"] = "trace"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches: {self.batches} is no number of batches. Expected 1 or more.")


@dataclass(frozen=True, slots=True)
class LayersTraced:
    """The traces, in the model's order.

    Attributes:
        layers: one for each layer asked for.
        sac_op_time_s: what SAC itself costs for each op of a region, over its forward and its recomputation; 0.0 on a
            simulated device, whose clock knows the ops alone.
    """

    layers: tuple[LayerTrace, ...]
    sac_op_time_s: float
    kind: Literal["layers_traced"] = "layers_traced"
