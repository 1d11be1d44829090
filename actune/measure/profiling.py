"""Profiling a plan: a few steps with marks at the layers, bytes and time of each stretch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median

from actune.errors import TargetError
from actune.measure.marks import OPTIMIZER, LayerMarks
from actune.measure.recording import MemoryRecorder, StepTimer
from actune.measure.workload import Workload
from actune.plan import Plan, parse_plan
from actune.statistics import clock_of
from actune.step_profile import PlanProfiled, ProfilePlan, Slot, StepProfile

COMPARED_STEPS = 3
SETTLED = 0.98
MOST_SETTLING_STEPS = 16

Recorder = MemoryRecorder | StepTimer


def profile_plan(workload: Workload, request: ProfilePlan) -> PlanProfiled:
    """Runs steps under a plan and says what each slot of them holds and takes.

    Raises:
        PlanError: the plan does not fit the model.
        TargetError: the layers are not called alike in each step.
        torch.OutOfMemoryError: the plan needs more than the device has.
    """
    plan = parse_plan(request.plan_toml)
    workload.restart()
    try:
        with workload.device.without_limit():
            workload.warm_up(plan)
            first = None
            workload.start_optimizer()
            if request.with_optimizer:
                first = _recorded_step(workload, plan, 0, with_optimizer=True)
            steady = _recorded_step(workload, plan, int(request.with_optimizer), with_optimizer=request.with_optimizer)
            settling_steps = 0
            if workload.device.computes and request.settle:
                settling_steps = _settle(workload, plan)
            if workload.device.computes:
                steady = _timed(workload, plan, steady, request)
    finally:
        workload.forget_plans()
        workload.restart()
    return PlanProfiled(first, steady, settling_steps)


def _settle(workload: Workload, plan: Plan) -> int:
    """Runs steps until the latest are no faster than those before, and says how many it took."""

    def step() -> None:
        workload.forward_backward(0)

    clock = clock_of(workload.device.environment())
    times_s: list[float] = []
    with workload.under(plan):
        while len(times_s) < MOST_SETTLING_STEPS:
            workload.clear_gradients()
            times_s.append(clock(workload.timed(step)))
            before, latest = times_s[-2 * COMPARED_STEPS : -COMPARED_STEPS], times_s[-COMPARED_STEPS:]
            if len(before) == COMPARED_STEPS and median(latest) >= SETTLED * median(before):
                break
    return len(times_s)


def _recorded_step(workload: Workload, plan: Plan, step: int, *, with_optimizer: bool) -> StepProfile:
    workload.clear_gradients()
    workload.fetch_batch(step)
    with workload.under(plan):
        live_bytes = workload.device.live_bytes(workload.bookkeeping)
        recorder, timer = workload.device.memory_recorder(), workload.device.step_timer()
        # A simulated clock does not mind what is recorded beside it.
        recorders: list[Recorder] = [recorder] if workload.device.computes else [recorder, timer]
        watch = plan.compile == "off"
        marks = _run_marked(workload, plan, recorders, step, with_optimizer=with_optimizer, watch_modules=watch)
    times_s = [0.0] * len(recorder.stretches) if workload.device.computes else timer.stretches_s
    slots = [
        Slot(mark.kind, mark.layer_fqn, mark.call, stretch.delta_bytes, stretch.peak_bytes, time_s)
        for mark, stretch, time_s in zip(marks.marks, recorder.stretches, times_s, strict=True)
    ]
    return StepProfile(
        live_bytes,
        tuple(slots),
        marks.calls(),
        tuple(marks.tensors.freed),
        workload.device.reserved_bytes(),
        workload.device.outside_bytes(),
    )


def _run_marked(
    workload: Workload,
    plan: Plan,
    recorders: Sequence[Recorder],
    step: int,
    *,
    with_optimizer: bool,
    watch_modules: bool = False,
) -> LayerMarks:
    def mark() -> None:
        for recorder in recorders:
            recorder.mark()

    workload.ranks.barrier()
    marks = LayerMarks(mark, watch_modules=watch_modules)
    # In one graph for the whole model no call of a layer is left to mark.
    layer_fqns = () if plan.compile == "model" else workload.structure.layer_fqns
    with marks.at_layers(workload.model, layer_fqns), ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder)
        workload.forward_backward(step)
        if with_optimizer:
            marks.begin(OPTIMIZER)
            workload.optimizer_step()
    return marks


def _timed(workload: Workload, plan: Plan, profile: StepProfile, request: ProfilePlan) -> StepProfile:
    """The profile with the median time of each slot over the timed steps."""
    runs: list[Sequence[float]] = []
    for number in range(request.timed_steps):
        step = 1 + int(request.with_optimizer) + number
        workload.clear_gradients()
        workload.fetch_batch(step)
        timer = workload.device.step_timer()
        with workload.under(plan):
            marks = _run_marked(workload, plan, [timer], step, with_optimizer=request.with_optimizer)
        if [(slot.kind, slot.call) for slot in profile.slots] != [(mark.kind, mark.call) for mark in marks.marks]:
            raise TargetError(
                "the layers are not called alike in each step, so that their times can't be told apart. Plans of this "
                "target can be measured, by `actune measure`, but not profiled."
            )
        runs.append(timer.stretches_s)
    if not runs:
        return profile
    medians_s = [median(times_s) for times_s in zip(*runs, strict=True)]
    slots = [replace(slot, step_time_s=time_s) for slot, time_s in zip(profile.slots, medians_s, strict=True)]
    return replace(profile, slots=tuple(slots))
