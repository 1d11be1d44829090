"""What is true of a target on a simulated device: every plan's peak and step time, and the optimum by enumeration.

A simulated device repeats to the last digit, and the cost model is exact on it: in step time, and in the bytes that
are handed out. What a caching allocator reserves beyond them is composed of nothing, so that no enumeration of plans
could know it; it is left out here, and a peak is what is handed out and what lies outside of the allocator.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actune.cost.derive import derived_treatments
from actune.cost.op_survey import trace_classes
from actune.cost.outlook import Outlook
from actune.cost.solver.problem import PS_PER_S, Problem, picoseconds
from actune.cost.stack import Stack
from actune.engine import LocalEngine
from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import Plan, Treatment, dump_plan, plan_hash
from actune.records import Loaded, LoadTarget, Measurement, MeasurePlan, Outcome
from actune.search.space import ModelSpace
from actune.step_profile import PlanProfiled, ProfilePlan, StepProfile, highest_bytes

MAX_PLANS = 2**23
"""What is enumerated at once: three arrays of 64 MiB."""

REQUEST_TIMEOUT_S = 600


class Recording:
    """A worker's answers, each asked for once. The worker runs from the first question to `close`."""

    def __init__(self, load: LoadTarget) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._engine = LocalEngine(load, workers=1, timeout_s=REQUEST_TIMEOUT_S, log_folder=Path(self._folder.name))
        self._answers: dict[object, Any] = {}
        self.worker_calls = 0

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *exc: object) -> None:
        self._engine.close()
        self._folder.cleanup()

    def load(self) -> Loaded:
        return self._once("load", self._engine.load)

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        """Without what the allocator reserved."""
        profiled = self._once(request, lambda: self._engine.profile(request))
        first = None if profiled.first is None else replace(profiled.first, reserved_bytes=None)
        return PlanProfiled(first, replace(profiled.steady, reserved_bytes=None))

    def trace_layers(self, request: TraceLayers) -> LayersTraced:
        return self._once(request, lambda: self._engine.trace_layers(request))

    def measure(self, plan: Plan) -> Measurement:
        """The plan's peak and one pair of steps, both under the plan itself."""
        toml = dump_plan(plan, with_provenance=False)
        request = MeasurePlan(toml, toml, None, timed_pairs=1)
        return self._once(request, lambda: self._engine.measure(request))

    def _once(self, request: object, ask: Callable[[], Any]) -> Any:
        if request not in self._answers:
            self.worker_calls += 1
            self._answers[request] = ask()
        return self._answers[request]


@dataclass(frozen=True, slots=True)
class TrueCost:
    """What a plan costs: the peaks of the optimizer's first step and of a later one, and the step time."""

    first_peak_bytes: int
    steady_peak_bytes: int
    step_time_s: float

    @property
    def peak_bytes(self) -> int:
        return max(self.first_peak_bytes, self.steady_peak_bytes)


@dataclass(frozen=True, slots=True)
class Optimum:
    """The fastest of all plans within a budget, and how the others lie.

    Attributes:
        worst_over_best: the slowest plan's step time over the fastest one's, of those that fit.
        near_share: of the plans that fit, the share within 1% of the fastest.
        fitting_share: the share of all plans that fit.
    """

    plan: Plan
    step_time_s: float
    worst_over_best: float
    near_share: float
    fitting_share: float


class Truth:
    """The costs of every plan of a target, by the cost model with what a worker measured."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.structure = recording.load().target.structure
        self._outlook = Outlook(self.structure, recording.profile)
        self._known: dict[str, TrueCost] = {}

    def of(self, plan: Plan) -> TrueCost:
        key = plan_hash(plan)
        if key not in self._known:
            treatments = plan.resolve(self.structure.layer_fqns)
            model = self._outlook.learn(plan.compile, {fqn: [treatment] for fqn, treatment in treatments.items()})
            costs = {}
            for fqn, treatment in treatments.items():
                costs[fqn] = model.profile.cost(fqn, treatment)
                assert costs[fqn] is not None, f"'{treatment.label()}' can't be had at {fqn}"
            first = model.first.composed({fqn: cost.first for fqn, cost in costs.items()})
            steady = model.steady.composed({fqn: cost.steady for fqn, cost in costs.items()})
            self._known[key] = TrueCost(
                self._peak_bytes(model.profile.first, first),
                self._peak_bytes(model.profile.steady, steady),
                sum(slot.step_time_s for slot in steady),
            )
        return self._known[key]

    def _peak_bytes(self, step: StepProfile, slots: Sequence[Any]) -> int:
        return highest_bytes(step.live_bytes, slots) + step.outside_bytes

    @property
    def outside_bytes(self) -> int:
        """What lies outside of the allocator under every plan."""
        return self._outlook.profiles["off"].steady.outside_bytes

    def stack(self, menus: Mapping[str, Sequence[Treatment]]) -> Stack:
        return self._outlook.stack("off", menus)


def menus_of(recording: Recording, space: ModelSpace, *, save_sets: int) -> dict[str, tuple[Treatment, ...]]:
    """What each layer may get: the space's menu, and so many derived save sets as the search adds to it."""
    menus = {fqn: tuple(group.menu.values()) for group in space.groups for fqn in group.layer_fqns}
    if not save_sets:
        return menus
    structure = recording.load().target.structure
    derived = derived_treatments(trace_classes(structure, recording.trace_layers), points=save_sets)
    return {
        fqn: tuple(dict.fromkeys((*menus[fqn], *derived.get(layer_class.name, ()))))
        for layer_class in structure.classes
        for fqn in layer_class.layer_fqns
    }


class Enumeration:
    """All plans of a stack: one number for each, whose digits are the layers' options."""

    def __init__(self, stack: Stack, layer_fqns: Sequence[str]) -> None:
        problem = stack.problem
        self._stack, self._layer_fqns = stack, layer_fqns
        self._shape = tuple(len(layer.options) for layer in problem.layers)
        self.plans = int(np.prod(self._shape))
        assert self.plans <= MAX_PLANS, f"{self.plans} plans are too many to enumerate at once"
        assert not problem.ties(), "a layer that is called twice would have to take the same option"
        self.peak_bytes, self._time_ps = enumerated(problem)
        self.peak_bytes += stack.model.profile.steady.outside_bytes

    def budget_bytes(self, share: float) -> int:
        """The budget that lies so far from the smallest peak of any plan towards the fastest plan's."""
        smallest_bytes = int(self.peak_bytes.min())
        fastest_bytes = int(self.peak_bytes[self._time_ps == self._time_ps.min()].min())
        return smallest_bytes + int(share * (fastest_bytes - smallest_bytes))

    def optimum(self, budget_bytes: int) -> Optimum:
        fits = self.peak_bytes <= budget_bytes
        times_ps = self._time_ps[fits]
        best_ps = int(times_ps.min())
        number = int(np.flatnonzero(fits & (self._time_ps == best_ps))[0])
        return Optimum(
            plan=self.plan(number),
            step_time_s=best_ps / PS_PER_S,
            worst_over_best=float(times_ps.max() / best_ps),
            near_share=float((times_ps <= 1.01 * best_ps).mean()),
            fitting_share=float(fits.mean()),
        )

    def random_plans(self, count: int, seed: int) -> list[Plan]:
        rng = random.Random(seed)
        return [self.plan(rng.randrange(self.plans)) for _ in range(count)]

    def plan(self, number: int) -> Plan:
        return self._stack.plan([int(option) for option in np.unravel_index(number, self._shape)], self._layer_fqns)


def enumerated(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The peaks, in bytes, and times, in picoseconds, of all choices: the last layer's option changes first."""
    kept_bytes = np.zeros(1, np.int64)
    peak_bytes = np.full(1, problem.floor_bytes, np.int64)
    time_ps = np.full(1, picoseconds(problem.base_time_s), np.int64)
    for layer in problem.layers:
        keeps, needs, times = (
            np.array(column, np.int64)
            for column in zip(
                *((o.kept_bytes, o.need_bytes, picoseconds(o.time_s)) for o in layer.options), strict=True
            )
        )
        peak_bytes = np.maximum(peak_bytes[:, None], kept_bytes[:, None] + needs).ravel()
        kept_bytes = (kept_bytes[:, None] + keeps).ravel()
        peak_bytes = np.maximum(peak_bytes, kept_bytes + layer.after_bytes)
        time_ps = (time_ps[:, None] + times).ravel()
    return peak_bytes, time_ps


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far from the truth a worker's own measurements of some plans are at most, as shares."""

    plans: int
    peak: float
    step_time: float


def deviation(recording: Recording, truth: Truth, plans: Sequence[Plan]) -> Deviation:
    """Runs the plans on the simulated device."""
    peaks, times = [], []
    for plan in plans:
        measured, cost = recording.measure(plan), truth.of(plan)
        assert measured.outcome is Outcome.OK, measured.message
        assert measured.allocated_bytes is not None
        peaks.append(abs((measured.allocated_bytes + truth.outside_bytes) / cost.peak_bytes - 1))
        times.append(abs(measured.pairs[0].plan.step_time_s / cost.step_time_s - 1))
    return Deviation(len(plans), max(peaks), max(times))
