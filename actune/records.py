"""What the coordinator and its workers say to each other. Plain frozen values.

A worker reads one request per line of JSON and answers each with one reply. The `kind` field tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from actune.op_trace import LayersTraced, TraceLayers
from actune.racing import Race
from actune.step_profile import PlanProfiled, ProfilePlan

RENDEZVOUS = "ACTUNE_RENDEZVOUS"
"""In a worker's environment, beside torchrun's variables: the folder where the ranks of its job meet."""


class Outcome(StrEnum):
    """How a trial ended. An outcome is data, not an exception."""

    OK = "ok"
    OVER_BUDGET = "over_budget"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LayerClass:
    """Layers of the same structure and shapes.

    Attributes:
        name: short and stable for a model, such as `TransformerBlock` or `DecoderLayer#2`.
        layer_fqns: in the model's order.
        parts: FQNs below the layer of its large children (attention, MoE, feed-forward), in order: what `split` wraps.
        module_fqns: FQNs below the layer of every submodule, in order.
        linear_fqns: those of them that are `nn.Linear`.
    """

    name: str
    layer_fqns: tuple[str, ...]
    parts: tuple[str, ...]
    module_fqns: tuple[str, ...]
    linear_fqns: tuple[str, ...]

    @property
    def typical_fqn(self) -> str:
        """The layer that stands for all: one in the middle, as the input of the first may need no gradient."""
        return self.layer_fqns[len(self.layer_fqns) // 2]


@dataclass(frozen=True, slots=True)
class ModelStructure:
    """The model's repeated layers, without the model.

    Attributes:
        layer_fqns: every layer of every stack, in the model's order.
        classes: in order of their first layer; each layer is in one.

    Raises:
        ValueError: a layer stands twice, or a class has none or others.
    """

    layer_fqns: tuple[str, ...]
    classes: tuple[LayerClass, ...]

    def __post_init__(self) -> None:
        known = set(self.layer_fqns)
        if len(known) < len(self.layer_fqns):
            raise ValueError("layer_fqns: a layer stands twice")
        for one in self.classes:
            if not one.layer_fqns or not known.issuperset(one.layer_fqns):
                raise ValueError(f"classes: {one.name} has no layer, or one that is not the model's")


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What loading a target taught.

    Attributes:
        spec: as given on the command line.
        fingerprint: equal for targets that run the same: source, options, structure, shapes, dtypes.
        parameter_bytes: of all parameters.
        static_bytes: what lies on the device before a first step (parameters, buffers, inputs): no plan peaks below.
    """

    spec: str
    fingerprint: str
    structure: ModelStructure
    parameter_bytes: int
    static_bytes: int


@dataclass(frozen=True, slots=True)
class Environment:
    """What must match before two measurements are compared.

    Attributes:
        device: as given: `cpu`, `cuda`, `cuda:1`.
        device_name: the processor's or the card's name.
        device_total_bytes: the device's capacity, None on a CPU.
        threads: of a CPU's compute.
        allocator: CUDA: the settings of PyTorch's allocator, as the environment variables have them, empty without
            any; None on other devices.
    """

    device: str
    device_name: str
    device_total_bytes: int | None
    threads: int
    torch_version: str
    python_version: str
    platform: str
    allocator: str | None = None


@dataclass(frozen=True, slots=True)
class StepSample:
    """One timed step. On a CPU `process_s` is the process's own CPU time; on CUDA both come from CUDA events."""

    step_time_s: float
    process_s: float


@dataclass(frozen=True, slots=True)
class SamplePair:
    """A step of the plan beside one of the reference, one after the other, so that the machine's drift cancels.

    Raises:
        ValueError: a time is not more than zero: no ratio can be taken of it.
    """

    plan: StepSample
    reference: StepSample

    def __post_init__(self) -> None:
        for sample in (self.plan, self.reference):
            if not (sample.step_time_s > 0 and sample.process_s > 0):
                raise ValueError(f"{sample} has a time that is not more than zero")


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """What of a plan's step ran compiled.

    Attributes:
        graph_breaks: the places at which tracing stopped, as `file:line: why`, each once.
        eager_fqns: the outermost modules that ran eagerly although the plan compiles them.
        flex_attention: how FlexAttention ran: compiled, eager (unfused: it makes the whole matrix of scores), or both
            in different layers; None if it did not run.
    """

    graph_breaks: tuple[str, ...]
    eager_fqns: tuple[str, ...]
    flex_attention: Literal["compiled", "eager", "both"] | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a trial taught, whatever its outcome.

    Attributes:
        peak_bytes: see the design's vocabulary; None if no step ended.
        allocated_bytes: CUDA: the allocator's peak of allocated bytes.
        reserved_bytes: CUDA: the allocator's peak of reserved bytes.
        pairs: raw timings against the reference; empty without one, or if the trial ended before timing.
        compile_s: the first step's extra time in a plan that compiles.
        message: one line: for outcomes other than ok what happened, else why the peak may be doubted, or None.
        detail: a traceback or the end of the worker's output.
        lost_race: timing ended early, since the plan is clearly slower than the best of its study; the peak is whole.
        compiled_code: what of a step ran compiled; None where nothing was compiled, or not known.
    """

    outcome: Outcome
    peak_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    pairs: tuple[SamplePair, ...] = ()
    compile_s: float | None = None
    message: str | None = None
    detail: str | None = None
    lost_race: bool = False
    compiled_code: CompiledCode | None = None


# Requests


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """Build the target, find its layers, and keep both. The first request of a worker's life.

    Attributes:
        world_size: a simulated device: over how many parameters, gradients and optimizer state are sharded evenly. A
            real one: how many ranks the target's `parallelize` distributes the model over, if only this one exists.
        nproc_per_node: how many worker processes make one job, all of which exist.
    """

    spec: str
    device: str
    seed: int
    world_size: int = 1
    nproc_per_node: int = 1
    kind: Literal["load"] = "load"


@dataclass(frozen=True, slots=True)
class MeasurePlan:
    """Run a few training steps under a plan: peak, then step times interleaved with the reference plan.

    Attributes:
        plan_toml: the plan.
        reference_toml: the reference; None to leave time unmeasured.
        budget_bytes: stop with `over_budget` after the first step that exceeds it; None for no cap.
        timed_pairs: how many pairs of steps are timed.
        race: what timing runs against: it ends once the plan is known to be slower than the study's best, or to be
            faster and timed for `timed_pairs` pairs, and goes on for up to `race.most_pairs` pairs while neither is
            known. None to time `timed_pairs` pairs.
        peak_steps: over how many steps, each on its own batch, the peak is taken. The optimizer's first real step makes
            its state, and the second is the first with that state there, so there are at least two.
        waits_for_turn: before timing, say AwaitsTurn and wait for TakeTurn: other workers share the processor.

    Raises:
        ValueError: there are fewer steps than two, or a race ends before `timed_pairs`.
    """

    plan_toml: str
    reference_toml: str | None
    budget_bytes: int | None
    timed_pairs: int
    race: Race | None = None
    peak_steps: int = 2
    waits_for_turn: bool = False
    kind: Literal["measure"] = "measure"

    def __post_init__(self) -> None:
        if self.peak_steps < 2:
            raise ValueError(f"peak_steps: {self.peak_steps} do not show a step with the optimizer's state there")
        if self.race is not None and self.race.most_pairs < self.timed_pairs:
            raise ValueError(f"race.most_pairs: {self.race.most_pairs} are fewer than {self.timed_pairs} timed pairs")


@dataclass(frozen=True, slots=True)
class MeasureRounds:
    """Time several plans in rounds: each round runs one step of every plan, in an order that rotates."""

    plan_tomls: tuple[str, ...]
    rounds: int
    kind: Literal["rounds"] = "rounds"


@dataclass(frozen=True, slots=True)
class CompareGradients:
    """Loss and every gradient of one step under a plan against the same step under a reference plan."""

    plan_toml: str
    reference_toml: str
    kind: Literal["gradients"] = "gradients"


@dataclass(frozen=True, slots=True)
class TakeTurn:
    """The answer to AwaitsTurn, in the middle of a MeasurePlan: nothing else runs now."""

    kind: Literal["take_turn"] = "take_turn"


Request = LoadTarget | MeasurePlan | MeasureRounds | CompareGradients | ProfilePlan | TraceLayers


# Replies


@dataclass(frozen=True, slots=True)
class Loaded:
    """The target is there."""

    target: TargetInfo
    environment: Environment
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurement of a MeasurePlan. `worker_spent` asks for a new worker, as after an OOM or a leak."""

    measurement: Measurement
    worker_spent: bool = False
    kind: Literal["measured"] = "measured"


@dataclass(frozen=True, slots=True)
class RoundsMeasured:
    """Timings of a MeasureRounds: `samples[i][r]` is plan i in round r."""

    samples: tuple[tuple[StepSample, ...], ...]
    kind: Literal["rounds_measured"] = "rounds_measured"


@dataclass(frozen=True, slots=True)
class GradientReport:
    """Whether a plan computes what the reference computes.

    Attributes:
        equal: loss and every gradient agree, bitwise where the reference itself repeats bitwise and both plans run
            the same kernels, else within `tolerance`.
        bitwise: whether bitwise equality was asked for.
        tolerance: largest relative L2 error accepted for a tensor, 0.0 if bitwise.
        largest_error: the largest one found.
        worst: the parameter it was found at, or `loss`.
        compared: whether there were values to compare. There are none on a simulated device, and none that mean
            anything where other ranks are faked; then nothing else here says anything.
        explanation: what makes the difference, where that is known.
    """

    equal: bool
    bitwise: bool
    tolerance: float
    largest_error: float
    worst: str
    compared: bool = True
    explanation: str | None = None
    kind: Literal["gradients_compared"] = "gradients_compared"


@dataclass(frozen=True, slots=True)
class Failed:
    """The request could not be carried out.

    Attributes:
        blame: `usage`: what was named does not exist or does not fit; `target`: its code raised; `plan`: the plan does
            not fit the model; `oom`: out of memory; `internal`: actune's own fault.
        message: one line.
        detail: the traceback, empty for usage.
        worker_spent: asks for a new worker, as where a step of a sharded model was left in its middle.
    """

    blame: Literal["usage", "target", "plan", "oom", "internal"]
    message: str
    detail: str = ""
    worker_spent: bool = False
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class AwaitsTurn:
    """Said in the middle of a MeasurePlan that `waits_for_turn`: what comes next is timed. No reply of its own."""

    kind: Literal["awaits_turn"] = "awaits_turn"


Reply = Loaded | Measured | RoundsMeasured | GradientReport | PlanProfiled | LayersTraced | Failed


@dataclass(frozen=True, slots=True)
class ReplyLine:
    """A line that a worker writes.

    Attributes:
        number: of the request that it answers, counted from 1 by both sides: a line too many, which only the target's
            code can have written, is never taken for the reply to a later request.
        reply: the reply, or what is said before it.
    """

    number: int
    reply: Reply | AwaitsTurn
