"""An engine without workers: peaks and step times of a plan from a formula, and whatever goes wrong on demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from actune.config import Space, parse_space
from actune.engine import Engine
from actune.errors import CostError, PlanError
from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import Plan, Treatment, parse_plan, plan_hash
from actune.records import (
    CompareGradients,
    Environment,
    GradientReport,
    LayerClass,
    Loaded,
    LoadTarget,
    Measurement,
    MeasurePlan,
    MeasureRounds,
    ModelStructure,
    Outcome,
    RoundsMeasured,
    SamplePair,
    StepSample,
    TargetInfo,
)
from actune.search import Progress, run_search
from actune.step_profile import LayerCall, PlanProfiled, ProfilePlan, Slot, StepProfile
from actune.store import Store
from actune.study_records import StudySettings, Verdict

NO_AC_HASH = plan_hash(Plan())
STATIC_BYTES = 1000
OPTIMIZER_BYTES = 30
"""What the optimizer adds after its first step, which alone a plan over the budget runs."""

SPACE = """
schema: 1
segments: 2
presets: [full, none, sac]
menu:
  - policy: none
  - policy: full
  - policy: selective
    each:
      save_every_nth_mm: [1, 2, 3]
"""
SETTINGS = StudySettings(
    target="dense-tiny",
    budget="2000B",
    device="cpu",
    space="test",
    space_yaml=SPACE,
    trials=6,
    sampler="tpe",
    seed=0,
    workers=1,
    timeout_s=None,
    trial_timeout_s=60.0,
    timed_pairs=3,
    verdict_rounds=5,
)


def space_of(yaml: str = SPACE) -> Space:
    return parse_space(yaml, name="test")


def dense(layers: int) -> ModelStructure:
    """Layers of one class, as those of a dense decoder."""
    fqns = tuple(f"layers.{number}" for number in range(layers))
    modules = ("attention", "attention.wq", "attention.wo", "feed_forward", "feed_forward.w1")
    linears = ("attention.wq", "attention.wo", "feed_forward.w1")
    return ModelStructure(fqns, (LayerClass("Block", fqns, ("attention", "feed_forward"), modules, linears),))


def mixture(layers: int) -> ModelStructure:
    """One dense layer, then layers with experts and a router."""
    fqns = tuple(f"layers.{number}" for number in range(layers))
    (of_dense,) = dense(1).classes
    modules = ("attention", "attention.wq", "moe", "moe.router", "moe.router.gate", "moe.experts")
    of_moe = LayerClass("Block#2", fqns[1:], ("attention", "moe"), modules, ("attention.wq", "moe.router.gate"))
    return ModelStructure(fqns, (of_dense, of_moe))


def kept_bytes(treatment: Treatment) -> int:
    if treatment.policy == "selective":
        return 300 - 50 * min(treatment.save_every_nth_mm, 4)
    return {"none": 400, "full": 50, "memory_budget": 200}[treatment.policy]


def extra_time(treatment: Treatment) -> float:
    if treatment.policy == "selective":
        return 0.05 * min(treatment.save_every_nth_mm, 4)
    return {"none": 0.0, "full": 0.3, "memory_budget": 0.1}[treatment.policy]


def peak_of(plan: Plan, structure: ModelStructure) -> int:
    return STATIC_BYTES + OPTIMIZER_BYTES + sum(map(kept_bytes, plan.resolve(structure.layer_fqns).values()))


def time_of(plan: Plan, structure: ModelStructure) -> float:
    # A little more for each layer at another place, so that no two plans tie.
    treatments = enumerate(plan.resolve(structure.layer_fqns).values(), start=1)
    return 1.0 + sum(extra_time(treatment) * (1 + place / 1000) for place, treatment in treatments)


@dataclass
class Machine:
    """What all engines of a test run on: what it does, and what it was asked."""

    structure: ModelStructure = field(default_factory=lambda: dense(4))
    environment: Environment = field(
        default_factory=lambda: Environment("cpu", "A processor", None, 1, "2.11.0", "3.11.7", "Linux")
    )
    fingerprint: str = "0123456789abcdef"
    static_bytes: int = STATIC_BYTES
    outcomes: dict[str, Measurement | Exception] = field(default_factory=dict)
    """By plan hash, in place of the formula."""
    without_ac: Measurement | None = None
    unequal: set[str] = field(default_factory=set)
    """Plans whose gradients differ."""
    computes: bool = True
    """Whether there are gradients to compare, as there are none on a simulated device."""
    before_trial: Callable[[str], None] = lambda plan_hash: None
    before_rounds: Callable[[MeasureRounds], None] = lambda request: None
    delay_s: Callable[[str], float] | None = None
    """With it trials run in threads, each as long as it says."""
    measured: list[str] = field(default_factory=list)
    """Plans of trials that ran to their end, by hash."""
    uncapped: list[str] = field(default_factory=list)
    """Plans that were run for a few steps without timing."""
    endured: list[str] = field(default_factory=list)
    """Plans that were run for many steps."""
    endurance: dict[str, Measurement] = field(default_factory=dict)
    """By plan hash: what many steps come to, in place of the formula."""
    endurance_uncapped: dict[str, Measurement] = field(default_factory=dict)
    """By plan hash: the same without a budget."""
    endurance_errors: dict[str, PlanError] = field(default_factory=dict)
    """By plan hash: what many steps raise."""
    endurance_factor: float = 1.0
    """How much higher than the formula's the peak of many steps is."""
    references: list[str] = field(default_factory=list)
    rounds: list[list[str]] = field(default_factory=list)
    compared: list[tuple[str, str]] = field(default_factory=list)
    loads: int = 0
    can_be_profiled: bool = False
    predicted_more_bytes: int = 0
    """By how much predictions are too high."""
    profiled: list[str] = field(default_factory=list)
    """Plans that were profiled, by hash."""

    def start(self, target: LoadTarget, /, *, workers: int, timeout_s: float, log_folder: Path) -> Engine:
        return FakeEngine(self, target, workers)


class FakeEngine:
    def __init__(self, machine: Machine, target: LoadTarget, workers: int) -> None:
        self._machine = machine
        self._target = target
        self._threads = ThreadPoolExecutor(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def load(self) -> Loaded:
        machine = self._machine
        machine.loads += 1
        target = TargetInfo(self._target.spec, machine.fingerprint, machine.structure, 500, machine.static_bytes)
        return Loaded(target, machine.environment)

    def submit(self, request: MeasurePlan) -> Future[Measurement]:
        self._machine.before_trial(plan_hash(parse_plan(request.plan_toml)))
        if self._machine.delay_s is not None:
            return self._threads.submit(self.measure, request)
        future: Future[Measurement] = Future()
        try:
            future.set_result(self.measure(request))
        except Exception as error:
            future.set_exception(error)
        return future

    def measure(self, request: MeasurePlan) -> Measurement:
        machine = self._machine
        plan = parse_plan(request.plan_toml)
        name = plan_hash(plan)
        is_trial = request.reference_toml is not None
        if request.peak_steps > 2:
            machine.endured.append(name)
            if name in machine.endurance_errors:
                raise machine.endurance_errors[name]
            if request.budget_bytes is None and name in machine.endurance_uncapped:
                return machine.endurance_uncapped[name]
            if name in machine.endurance:
                return machine.endurance[name]
            if machine.endurance_factor != 1.0:
                peak_bytes = round(machine.endurance_factor * peak_of(plan, machine.structure))
                over = request.budget_bytes is not None and peak_bytes > request.budget_bytes
                return Measurement(Outcome.OVER_BUDGET if over else Outcome.OK, peak_bytes)
        elif not is_trial:
            machine.uncapped.append(name)
            if name == NO_AC_HASH and machine.without_ac is not None:
                return machine.without_ac
        elif machine.delay_s is not None:
            time.sleep(machine.delay_s(name))
        given = machine.outcomes.get(name)
        if isinstance(given, Exception):
            raise given
        measurement = given or self._formula(plan, request)
        if request.reference_toml is not None:
            machine.measured.append(name)
            machine.references.append(_hash(request.reference_toml))
        return measurement

    def _formula(self, plan: Plan, request: MeasurePlan) -> Measurement:
        structure = self._machine.structure
        peak_bytes = peak_of(plan, structure)
        for seen_bytes in (peak_bytes - OPTIMIZER_BYTES, peak_bytes):
            if request.budget_bytes is not None and seen_bytes > request.budget_bytes:
                return Measurement(Outcome.OVER_BUDGET, seen_bytes, message="over")
        if request.reference_toml is None:
            return Measurement(Outcome.OK, peak_bytes)
        pair = SamplePair(self._sample(plan), self._sample(parse_plan(request.reference_toml)))
        return Measurement(Outcome.OK, peak_bytes, pairs=(pair,) * request.timed_pairs)

    def _sample(self, plan: Plan) -> StepSample:
        step_time_s = time_of(plan, self._machine.structure)
        return StepSample(step_time_s, step_time_s)

    def measure_rounds(self, request: MeasureRounds) -> RoundsMeasured:
        self._machine.before_rounds(request)
        plans = [parse_plan(toml) for toml in request.plan_tomls]
        self._machine.rounds.append([plan_hash(plan) for plan in plans])
        return RoundsMeasured(tuple((self._sample(plan),) * request.rounds for plan in plans))

    def compare_gradients(self, request: CompareGradients) -> GradientReport:
        name = _hash(request.plan_toml)
        self._machine.compared.append((name, _hash(request.reference_toml)))
        equal = self._machine.computes and name not in self._machine.unequal
        error = 0.0 if equal else 0.5
        return GradientReport(equal, True, 0.0, error, "layers.0.attention.wq.weight", compared=self._machine.computes)

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        machine = self._machine
        if not machine.can_be_profiled:
            raise CostError("nothing can be predicted of this target")
        plan = parse_plan(request.plan_toml)
        machine.profiled.append(plan_hash(plan))
        steady = profile_of(plan, machine.structure, STATIC_BYTES + OPTIMIZER_BYTES, machine.predicted_more_bytes)
        return PlanProfiled(replace(steady, live_bytes=STATIC_BYTES) if request.with_optimizer else None, steady)

    def trace_layers(self, request: TraceLayers) -> LayersTraced:
        return LayersTraced((), 0.0)


def profile_of(plan: Plan, structure: ModelStructure, live_bytes: int, more_bytes: int) -> StepProfile:
    """What the formula comes to slot by slot, and `more_bytes` that no step holds."""
    treatments = plan.resolve(structure.layer_fqns)
    forward, backward = [], []
    for call, (fqn, treatment) in enumerate(treatments.items()):
        kept = kept_bytes(treatment)
        forward.append(Slot("forward", fqn, call, kept, kept, extra_time(treatment) * (1 + (call + 1) / 1000)))
        backward.insert(0, Slot("backward", fqn, call, -kept, 0, 0.0))
    outer = Slot("outer", "", -1, 0, more_bytes, 1.0)
    calls = tuple(LayerCall(slot.call, ()) for slot in forward)
    return StepProfile(live_bytes, (*forward, outer, *backward), calls, ())


def _hash(toml: str) -> str:
    return plan_hash(parse_plan(toml))


class Listener:
    """A reporter that keeps what it hears."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.progress: list[Progress] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def trial_finished(self, progress: Progress) -> None:
        self.progress.append(progress)


def search(
    store: Store,
    machine: Machine,
    name: str = "a",
    *,
    settings: StudySettings = SETTINGS,
    reporter: Listener | None = None,
    **changes: object,
) -> Verdict:
    """`run_search` on the machine, with some settings changed."""
    return run_search(
        store,
        name,
        replace(settings, **changes),  # type: ignore[arg-type]
        log_folder=Path(store.url.removeprefix("sqlite:///")).parent / "logs",
        reporter=reporter or Listener(),
        engine_factory=machine.start,
    )
