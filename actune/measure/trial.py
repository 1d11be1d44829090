"""One trial: a plan's peak, then its step time in pairs with the reference plan."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from actune.errors import PlanError, describe_error
from actune.measure.failures import TrialEndedError, failed_measurement, is_out_of_memory
from actune.measure.plan_peak import highest_peak
from actune.measure.workload import Workload
from actune.plan import Plan, parse_plan
from actune.racing import Standing
from actune.records import Measured, Measurement, MeasurePlan, Outcome, SamplePair, StepSample
from actune.statistics import clock_of

LEAK_TOLERANCE_BYTES = 2**20
LEAK_TOLERANCE_FILES = 32


def measure_plan(workload: Workload, request: MeasurePlan, take_turn: Callable[[], None] = lambda: None) -> Measured:
    """Runs a trial. Whatever the target does under the plan is an outcome.

    Args:
        workload: the target.
        request: the plan, and what to measure of it.
        take_turn: called before timing if the request `waits_for_turn`; returns once nothing else runs.

    Raises:
        PlanError: the plan does not fit the model.
    """
    plan = parse_plan(request.plan_toml)
    reference = None if request.reference_toml is None else parse_plan(request.reference_toml)
    workload.restart()
    live_bytes_before, files_before = workload.device.live_bytes(workload.bookkeeping), _open_files()
    try:
        measurement = _run(workload, plan, reference, request, take_turn)
    except PlanError:
        raise
    except Exception as error:
        measurement = failed_measurement(error, budget_bytes=request.budget_bytes, workload=workload)
        if workload.is_distributed:
            workload.is_spent = True  # and other ranks may wait for this one where it will not come to any more
            return Measured(measurement, worker_spent=True)
    finally:
        workload.device.set_cap(None)
        workload.forget_plans()
        workload.restart()
    leaked_bytes = workload.ranks.agree_max(workload.device.live_bytes(workload.bookkeeping) - live_bytes_before)
    leaked_files = workload.ranks.agree_max(_open_files() - files_before)  # infinite where not one more can be opened
    leaks = leaked_bytes > LEAK_TOLERANCE_BYTES or leaked_files > LEAK_TOLERANCE_FILES
    return Measured(measurement, worker_spent=leaks or measurement.outcome is Outcome.OOM)


def _open_files() -> float:
    """How many this process has; infinite where not one more can be opened, 0 where that can't be known."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError as error:
        return math.inf if error.errno in (errno.EMFILE, errno.ENFILE) else 0


def _run(
    workload: Workload, plan: Plan, reference: Plan | None, request: MeasurePlan, take_turn: Callable[[], None]
) -> Measurement:
    # Without a cap: what kernels that tune themselves try out is not the plan's.
    compiled = workload.warm_up(plan)
    compile_s = None if compiled is None else compiled.compile_s
    compiled_code = None if compiled is None else compiled.code
    highest = highest_peak(workload, plan, request.budget_bytes, steps=request.peak_steps)
    if isinstance(highest, Measurement):
        return replace(highest, compile_s=compile_s, compiled_code=compiled_code)
    workload.device.set_cap(None)  # the reference may need more than the plan
    if request.waits_for_turn and reference is not None:
        take_turn()
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
        raise TrialEndedError(ran) from error
    return Measurement(
        Outcome.OK,
        highest.peak_bytes,
        highest.allocated_bytes,
        highest.reserved_bytes,
        pairs,
        compile_s=compile_s,
        message=highest.note,
        lost_race=standing == "slower" and len(pairs) < request.timed_pairs,
        compiled_code=compiled_code,
    )


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
        return workload.timed(partial(workload.train_step, step))
