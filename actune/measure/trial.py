"""One trial: a plan's peak, then its step time in pairs with the reference plan."""

from __future__ import annotations

import traceback
from functools import partial

import torch

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
    workload.device.set_cap(request.budget_bytes)
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
    compiled = workload.warm_up(plan)
    compile_s = None if compiled is None else compiled.compile_s
    compiled_code = None if compiled is None else compiled.code
    probe = None
    workload.start_optimizer()
    for step in range(request.peak_steps):
        latest = _probe_step(workload, plan, step)
        if probe is None or latest.peak_bytes > probe.peak_bytes:
            probe = latest
        if request.budget_bytes is not None and probe.peak_bytes > request.budget_bytes:
            return Measurement(
                Outcome.OVER_BUDGET,
                probe.peak_bytes,
                probe.allocated_bytes,
                probe.reserved_bytes,
                message=f"peak {format_bytes(probe.peak_bytes)} is over the budget of "
                f"{format_bytes(request.budget_bytes)}",
                compile_s=compile_s,
                compiled_code=compiled_code,
            )
    assert probe is not None
    workload.device.set_cap(None)  # the reference may need more than the plan
    pairs, standing = _timed_pairs(workload, plan, reference, request)
    return Measurement(
        Outcome.OK,
        probe.peak_bytes,
        probe.allocated_bytes,
        probe.reserved_bytes,
        pairs,
        compile_s=compile_s,
        lost_race=standing == "slower" and len(pairs) < request.timed_pairs,
        compiled_code=compiled_code,
    )


def _probe_step(workload: Workload, plan: Plan, step: int) -> PeakProbe:
    workload.clear_gradients()
    workload.fetch_batch(step)
    with workload.under(plan), workload.device.peak_probe(workload.bookkeeping) as probe:
        workload.train_step(step)
    return probe


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
    """The outcome of a trial that raised: out of memory (over budget, if that was the cap's doing), or an error."""
    message = str(error) if isinstance(error, ActuneError) else describe_error(error)
    if not is_out_of_memory(error):
        return Measurement(Outcome.ERROR, message=message, detail=traceback.format_exc())
    total_bytes = workload.device.environment().device_total_bytes
    if budget_bytes is not None and total_bytes is not None and budget_bytes < total_bytes:
        return Measurement(Outcome.OVER_BUDGET, message=f"out of memory under the cap of {format_bytes(budget_bytes)}")
    return Measurement(Outcome.OOM, message=message)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the card, in Python, or in the CPU allocator, which raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )
