"""One trial: a plan's peak, then its step time in pairs with the reference plan."""

from __future__ import annotations

import re
import statistics
import traceback
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.checkpoint import CheckpointError

from actune.errors import ActuneError, PlanError, describe_error
from actune.measure.device import PeakProbe
from actune.measure.workload import Workload
from actune.plan import Plan, parse_plan
from actune.racing import Standing
from actune.records import Measured, Measurement, MeasurePlan, Outcome, SamplePair, StepSample
from actune.statistics import clock_of
from actune.units import format_bytes

LEAK_TOLERANCE_BYTES = 2**20


def measure_plan(workload: Workload, request: MeasurePlan) -> Measured:
    """Runs a trial. Whatever the target does under the plan is an outcome.

    Raises:
        PlanError: the plan does not fit the model.
    """
    plan = parse_plan(request.plan_toml)
    reference = None if request.reference_toml is None else parse_plan(request.reference_toml)
    workload.restart()
    live_bytes_before = workload.device.live_bytes(workload.bookkeeping)
    try:
        measurement = _run(workload, plan, reference, request)
    except PlanError:
        raise
    except Exception as error:
        measurement = failed_measurement(error, budget_bytes=request.budget_bytes, workload=workload)
    finally:
        workload.device.set_cap(None)
        workload.forget_plans()
        workload.restart()
    leaked_bytes = workload.device.live_bytes(workload.bookkeeping) - live_bytes_before
    spent = leaked_bytes > LEAK_TOLERANCE_BYTES or measurement.outcome is Outcome.OOM
    return Measured(measurement, worker_spent=spent)


def _run(workload: Workload, plan: Plan, reference: Plan | None, request: MeasurePlan) -> Measurement:
    budget_bytes = request.budget_bytes
    # Without a cap: what kernels that tune themselves try out is not the plan's.
    first_call_s = workload.warm_up(plan)
    workload.device.set_cap(budget_bytes)
    highest, retries = None, 0
    workload.start_optimizer()
    for step in range(request.peak_steps):
        workload.clear_gradients()
        workload.fetch_batch(step)
        probe = workload.device.peak_probe(workload.bookkeeping)
        try:
            with workload.under(plan), probe:
                workload.train_step(step)
        except Exception as error:
            if is_out_of_memory(error) and _is_capped(workload, budget_bytes):
                died = _died_under_cap(error, probe, budget_bytes)
                raise _TrialEndedError(_over_budget(probe, None, died)) from error
            raise
        if highest is None or probe.peak_bytes > highest.peak_bytes:
            highest = probe
        retries += probe.allocator_retries
        if budget_bytes is not None and highest.peak_bytes > budget_bytes:
            over = f"peak {format_bytes(highest.peak_bytes)} is over the budget of {format_bytes(budget_bytes)}"
            return _over_budget(highest, highest.peak_bytes, over)
        if budget_bytes is not None and retries:
            return _at_the_edge(workload, highest, retries, budget_bytes)
    assert highest is not None
    workload.device.set_cap(None)  # the reference may need more than the plan
    try:
        pairs, standing = _timed_pairs(workload, plan, reference, request)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        ran = Measurement(
            Outcome.OOM,
            highest.peak_bytes,
            highest.allocated_bytes,
            highest.reserved_bytes,
            message=f"the plan ran, but not beside the reference plan, which had no cap: {describe_error(error)}",
        )
        raise _TrialEndedError(ran) from error
    compile_s = None
    if first_call_s is not None and pairs:
        compile_s = max(0.0, first_call_s - statistics.median(pair.plan.step_time_s for pair in pairs))
    return Measurement(
        Outcome.OK,
        highest.peak_bytes,
        highest.allocated_bytes,
        highest.reserved_bytes,
        pairs,
        compile_s=compile_s,
        message=highest.note if retries == 0 else f"at the edge of what the device has: {_emptied(retries)}",
        lost_race=standing == "slower" and len(pairs) < request.timed_pairs,
    )


@dataclass(eq=False)
class _TrialEndedError(Exception):
    """A step raised, and what that means for the trial is known."""

    measurement: Measurement


def _over_budget(probe: PeakProbe, peak_bytes: int | None, message: str) -> Measurement:
    return Measurement(Outcome.OVER_BUDGET, peak_bytes, probe.allocated_bytes, probe.reserved_bytes, message=message)


def _at_the_edge(workload: Workload, probe: PeakProbe, retries: int, budget_bytes: int) -> Measurement:
    """A plan that fits only since the allocator gave its cache back, again and again, to stay under the cap.

    It wanted to reserve more than the cap allows, so without one its peak is over the budget. Where there is no cap,
    since the device has no more than the budget, it is the device that was full.
    """
    if not _is_capped(workload, budget_bytes):
        return Measurement(
            Outcome.OOM,
            None,
            probe.allocated_bytes,
            probe.reserved_bytes,
            message=f"at the edge of what the device has: {_emptied(retries)}; such a plan runs out of memory sooner "
            "or later",
        )
    return _over_budget(
        probe,
        max(probe.peak_bytes, budget_bytes + 1),
        f"at the edge: {_emptied(retries)} to stay under the budget of {format_bytes(budget_bytes)}, so without a cap "
        "the peak is above it",
    )


def _emptied(retries: int) -> str:
    return f"the allocator emptied its cache {retries} time{'s' if retries != 1 else ''}"


def _died_under_cap(error: Exception, probe: PeakProbe, budget_bytes: int | None) -> str:
    message = f"out of memory under the cap of {format_bytes(budget_bytes)}"
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))  # `CUDACachingAllocator.cpp`
    if asked is None or probe.allocated_bytes is None:
        return message
    return f"{message}: with up to {format_bytes(probe.allocated_bytes)} allocated, {asked[1]} more were asked for"


def _timed_pairs(
    workload: Workload, plan: Plan, reference: Plan | None, request: MeasurePlan
) -> tuple[tuple[SamplePair, ...], Standing]:
    """Steps of the plan and of the reference side by side, on the same batch, in alternating order; and who is ahead.

    Where ops compute nothing, times repeat to the last digit: one step of each stands for all, and there is no race.
    """
    if reference is None:
        return (), "open"
    warm_up_step = request.peak_steps  # the batches before it were for the peak
    if not workload.device.computes:
        of_plan, of_reference = (_timed_step(workload, which, warm_up_step) for which in (plan, reference))
        return (SamplePair(of_plan, of_reference),) * request.timed_pairs, "open"
    for which in (reference, plan):
        with workload.under(which):
            workload.train_step(warm_up_step)
    clock = clock_of(workload.device.environment())
    race = request.race
    pairs: list[SamplePair] = []
    ratios: list[float] = []
    standing: Standing = "open"
    # One that is faster is the next best: what others are measured by gets no fewer pairs than they do.
    while standing != "slower" and len(pairs) < (
        request.timed_pairs if race is None or standing == "faster" else race.most_pairs
    ):
        step = warm_up_step + 1 + len(pairs)
        workload.fetch_batch(step)
        samples = {}
        for which in ((plan, reference), (reference, plan))[len(pairs) % 2]:
            samples[id(which)] = _timed_step(workload, which, step)
        pairs.append(SamplePair(samples[id(plan)], samples[id(reference)]))
        ratios.append(clock(pairs[-1].plan) / clock(pairs[-1].reference))
        if race is not None:
            standing = race.standing(ratios)
    return tuple(pairs), standing


def _timed_step(workload: Workload, plan: Plan, step: int) -> StepSample:
    with workload.under(plan):
        return workload.device.timed(partial(workload.train_step, step))


def failed_measurement(error: Exception, *, budget_bytes: int | None, workload: Workload) -> Measurement:
    """The outcome of a trial that raised: out of memory (over budget, if the device has more), or an error."""
    if isinstance(error, _TrialEndedError):
        return error.measurement
    message = str(error) if isinstance(error, ActuneError) else describe_error(error)
    if isinstance(error, CheckpointError):
        message += (
            " (a region does not repeat its forward: a mixture routes tokens anew unless save_routing = true finds its "
            "router; else look for what changes between two calls of the model)"
        )
    if not is_out_of_memory(error):
        return Measurement(Outcome.ERROR, message=message, detail=traceback.format_exc())
    if _is_capped(workload, budget_bytes):
        return Measurement(Outcome.OVER_BUDGET, message=f"needs more than the device has: {message}")
    return Measurement(Outcome.OOM, message=message)


def _is_capped(workload: Workload, budget_bytes: int | None) -> bool:
    """Whether the device refuses what is over the budget, before it has no more itself."""
    total_bytes = workload.device.environment().device_total_bytes
    return budget_bytes is not None and total_bytes is not None and budget_bytes < total_bytes


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    # Outside of the caching allocator, by the card's own libraries:
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: in an allocator of PyTorch's, in Python, or in a library, as a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    )
