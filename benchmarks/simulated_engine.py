"""An engine for the search's benchmarks: trials are answered from the truth, with noise, and the profiles are wrong.

What a worker would say is known (`simulated_truth.py`), so a study takes no longer than the search itself. Two things
are made as bad as on a real machine: steps take some percent more or less each time, and what a profile says about
treatments is off, by one factor for each policy and layer class and a smaller one for each treatment.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from simulated_truth import Recording, TrueCost, Truth

from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import Plan, Treatment, parse_plan, plan_hash
from actune.racing import Standing
from actune.records import (
    CompareGradients,
    GradientReport,
    Loaded,
    LoadTarget,
    Measurement,
    MeasurePlan,
    MeasureRounds,
    Outcome,
    RoundsMeasured,
    SamplePair,
    StepSample,
)
from actune.step_profile import PlanProfiled, ProfilePlan, StepProfile

STEPS_OF_A_TRIAL = 14
"""Two for the peak, two to warm up, and five pairs: what the steps of other requests are measured by."""


@dataclass(frozen=True, slots=True)
class Errors:
    """How wrong profiles and how noisy steps are.

    Attributes:
        seed: of all that is drawn.
        of_policy: a policy's time is off by up to this share, evenly drawn.
        by_class: draw that anew for each layer class.
        of_treatment: a treatment's time is off by up to this share beyond that.
        of_step: standard deviation of a step's time, in log.
    """

    seed: int
    of_policy: float = 0.3
    of_treatment: float = 0.05
    of_step: float = 0.01
    by_class: bool = False

    def factor(self, class_name: str, treatment: Treatment) -> float:
        """What the profile multiplies the treatment's time at layers of the class by."""
        policy = random.Random(f"{self.seed} {class_name if self.by_class else ''} {treatment.policy}")
        label = random.Random(f"{self.seed} {treatment.label()}")
        return (1 + policy.uniform(-self.of_policy, self.of_policy)) * (
            1 + label.uniform(-self.of_treatment, self.of_treatment)
        )

    def noise(self, *drawn_for: object) -> random.Random:
        """Draws that are the same whenever the same is measured again."""
        return random.Random(" ".join(map(str, (self.seed, *drawn_for))))

    def sample(self, rng: random.Random, step_time_s: float) -> StepSample:
        noisy_s = step_time_s * rng.lognormvariate(0.0, self.of_step)
        return StepSample(noisy_s, noisy_s)


class SimulatedEngine:
    """Answers as workers do, at once.

    Attributes:
        busy_s: wall time inside of its methods.
        busy_process_s: the process's own time there.
        calls: how often each method was called.
        pairs: how many pairs of steps were timed.
        trial_starts_s: when each trial began, on the clock of `time.perf_counter`: a plan timed beside a reference.
        trial_ends_s: when it ended.
    """

    def __init__(
        self, recording: Recording, truth: Truth, errors: Errors, *, with_save_sets: bool, trial_s: float = 0.0
    ) -> None:
        """Starts nothing.

        Args:
            recording: of a worker with the target.
            truth: of the same target.
            errors: what is made wrong.
            with_save_sets: whether op traces are given, from which the search derives save sets.
            trial_s: how long a trial takes; other requests take as long as their steps do then.
        """
        self._recording = recording
        self._truth = truth
        self._errors = errors
        self._with_save_sets = with_save_sets
        self._trial_s = trial_s
        self._measured_before: dict[str, int] = {}
        self._rounds_before = 0
        self._class_of = {fqn: c.name for c in truth.structure.classes for fqn in c.layer_fqns}
        self.busy_s = self.busy_process_s = 0.0
        self.calls: dict[str, int] = {}
        self.pairs = 0
        self.trial_starts_s: list[float] = []
        self.trial_ends_s: list[float] = []

    def factory(self, target: LoadTarget, /, *, workers: int, timeout_s: float, log_folder: Path) -> Self:
        """Itself: an EngineFactory for one study with one worker."""
        assert workers == 1
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """There is nothing to end: the recording's worker serves other studies too."""

    def load(self) -> Loaded:
        with self._call("load"):
            return self._recording.load()

    def measure(self, request: MeasurePlan) -> Measurement:
        """The peak is exact; a step over the budget is the last one, as in a worker."""
        with self._call("measure"):
            start_s = time.perf_counter()
            measurement = self._measured(request)
            time.sleep(self._trial_s)
            if request.reference_toml is not None:
                self.trial_starts_s.append(start_s)
                self.trial_ends_s.append(time.perf_counter())
            return measurement

    def submit(self, request: MeasurePlan) -> Future[Measurement]:
        """Done when it is returned."""
        future: Future[Measurement] = Future()
        future.set_result(self.measure(request))
        return future

    def measure_rounds(self, request: MeasureRounds) -> RoundsMeasured:
        with self._call("measure_rounds"):
            self._rounds_before += 1
            time.sleep(len(request.plan_tomls) * (request.rounds + 1) * self._trial_s / STEPS_OF_A_TRIAL)
            samples = []
            for toml in request.plan_tomls:
                plan = parse_plan(toml)
                rng = self._errors.noise("rounds", self._rounds_before, plan_hash(plan))
                step_time_s = self._truth.of(plan).step_time_s
                samples.append(tuple(self._errors.sample(rng, step_time_s) for _ in range(request.rounds)))
            return RoundsMeasured(tuple(samples))

    def compare_gradients(self, request: CompareGradients) -> GradientReport:
        """There are none to compare, as on every simulated device."""
        with self._call("compare_gradients"):
            return GradientReport(False, False, 0.0, 0.0, "", compared=False)

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        """Bytes as they are; the times of layers are wrong."""
        with self._call("profile"):
            profiled = self._recording.profile(request)
            time.sleep((request.timed_steps + 1) * self._trial_s / STEPS_OF_A_TRIAL)
            treatments = parse_plan(request.plan_toml).resolve(self._truth.structure.layer_fqns)
            factors = {
                fqn: self._errors.factor(self._class_of[fqn], treatment) for fqn, treatment in treatments.items()
            }
            first = None if profiled.first is None else _with_times(profiled.first, factors)
            return PlanProfiled(first, _with_times(profiled.steady, factors))

    def trace_layers(self, request: TraceLayers) -> LayersTraced:
        with self._call("trace_layers"):
            return self._recording.trace_layers(request) if self._with_save_sets else LayersTraced((), 0.0)

    @contextmanager
    def _call(self, method: str) -> Iterator[None]:
        self.calls[method] = self.calls.get(method, 0) + 1
        start_s, start_process_s = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.busy_s += time.perf_counter() - start_s
            self.busy_process_s += time.process_time() - start_process_s

    def _measured(self, request: MeasurePlan) -> Measurement:
        plan = parse_plan(request.plan_toml)
        cost = self._truth.of(plan)
        for seen_bytes in (cost.first_peak_bytes, cost.peak_bytes):
            if request.budget_bytes is not None and seen_bytes > request.budget_bytes:
                return Measurement(Outcome.OVER_BUDGET, seen_bytes, message="over the budget")
        if request.reference_toml is None:
            return Measurement(Outcome.OK, cost.peak_bytes)
        reference = self._truth.of(parse_plan(request.reference_toml))
        pairs, standing = self._timed_pairs(plan, cost, reference, request)
        lost_race = standing == "slower" and len(pairs) < request.timed_pairs
        return Measurement(Outcome.OK, cost.peak_bytes, pairs=pairs, lost_race=lost_race)

    def _timed_pairs(
        self, plan: Plan, cost: TrueCost, reference: TrueCost, request: MeasurePlan
    ) -> tuple[tuple[SamplePair, ...], Standing]:
        """As `actune.measure.trial` times them: until a race is decided, or all pairs are there."""
        key = plan_hash(plan)
        before = self._measured_before[key] = self._measured_before.get(key, 0) + 1
        rng = self._errors.noise(key, before)
        race = request.race
        pairs: list[SamplePair] = []
        ratios: list[float] = []
        standing: Standing = "open"
        while standing != "slower" and len(pairs) < (
            request.timed_pairs if race is None or standing == "faster" else race.most_pairs
        ):
            samples = [self._errors.sample(rng, of.step_time_s) for of in (cost, reference)]
            pairs.append(SamplePair(*samples))
            ratios.append(samples[0].step_time_s / samples[1].step_time_s)
            if race is not None:
                standing = race.standing(ratios)
        self.pairs += len(pairs)
        return tuple(pairs), standing


def _with_times(step: StepProfile, factors: dict[str, float]) -> StepProfile:
    slots = (replace(slot, step_time_s=slot.step_time_s * factors.get(slot.layer_fqn, 1.0)) for slot in step.slots)
    return replace(step, slots=tuple(slots))
