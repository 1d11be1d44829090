"""The peak of a plan over its first steps, as far as the budget allows; of several ranks, the worst one's."""

from __future__ import annotations

import re
from typing import NamedTuple

from actune.measure.device import PeakProbe
from actune.measure.failures import TrialEndedError, is_capped, is_out_of_memory
from actune.measure.workload import Workload
from actune.plan import Plan
from actune.records import Measurement, Outcome
from actune.units import format_bytes


class Peak(NamedTuple):
    """Of one rank: see PeakProbe. Ranks send it to each other."""

    peak_bytes: int
    allocated_bytes: int | None
    reserved_bytes: int | None
    note: str | None


def highest_peak(workload: Workload, plan: Plan, budget_bytes: int | None, *, steps: int) -> Peak | Measurement:
    """The highest peak of so many steps with a new optimizer; the trial's end, if that is over the budget.

    Args:
        workload: put back to its start.
        plan: warmed up.
        budget_bytes: also the device's cap from here on, where it can have one.
        steps: on batches 0, 1, ….

    Raises:
        TrialEndedError: memory ran out under the cap.
        Exception: whatever the target raises under the plan.
    """
    workload.device.set_cap(budget_bytes)
    found = _peak_of_steps(workload, plan, budget_bytes, cap_bytes=budget_bytes, steps=steps)
    if not isinstance(found, _Squeezed):
        return found
    if not is_capped(workload, budget_bytes):
        return _at_the_edge(found)
    # The cap is compared with all that is reserved and the whole of a request, also where the request would be met by
    # what is free at the end of a segment (`alloc_block` in `c10/cuda/CUDACachingAllocator.cpp`). So a plan that is
    # squeezed near the cap may fit without, as in training: what it reserves there decides.
    workload.device.set_cap(None)
    workload.clear_gradients()
    workload.device.release_cached()
    uncapped = _peak_of_steps(workload, plan, budget_bytes, cap_bytes=None, steps=steps)
    return _at_the_edge(uncapped) if isinstance(uncapped, _Squeezed) else uncapped


class _Squeezed(NamedTuple):
    """The allocator emptied its cache to go on."""

    peak: Peak
    retries: int


def _peak_of_steps(
    workload: Workload, plan: Plan, budget_bytes: int | None, *, cap_bytes: int | None, steps: int
) -> Peak | Measurement | _Squeezed:
    highest: Peak | None = None
    retries = 0
    workload.start_optimizer()
    for step in range(steps):
        probe = _probed_step(workload, plan, step, cap_bytes)
        latest = Peak(probe.peak_bytes, probe.allocated_bytes, probe.reserved_bytes, probe.note)
        latest = workload.ranks.worst(latest, lambda peak: peak.peak_bytes)
        retries += int(workload.ranks.agree_max(probe.allocator_retries))
        if highest is None or latest.peak_bytes > highest.peak_bytes:
            highest = latest
        if budget_bytes is not None and highest.peak_bytes > budget_bytes:
            over = f"peak {format_bytes(highest.peak_bytes)} is over the budget of {format_bytes(budget_bytes)}"
            return _over_budget(highest, highest.peak_bytes, over)
        if budget_bytes is not None and retries:
            return _Squeezed(highest, retries)
    assert highest is not None, "a trial has a step"
    return highest._replace(note=f"at the edge of what the device has: {_emptied(retries)}") if retries else highest


def _probed_step(workload: Workload, plan: Plan, step: int, cap_bytes: int | None) -> PeakProbe:
    workload.clear_gradients()
    workload.fetch_batch(step)
    probe = workload.device.peak_probe(workload.bookkeeping)
    try:
        with workload.under(plan), probe:
            workload.train_step(step)
    except Exception as error:
        if cap_bytes is None or not (is_out_of_memory(error) and is_capped(workload, cap_bytes)):
            raise
        died = _died_under_cap(error, probe, cap_bytes)
        ended = Measurement(Outcome.OVER_BUDGET, None, probe.allocated_bytes, probe.reserved_bytes, message=died)
        raise TrialEndedError(ended) from error
    return probe


def _over_budget(peak: Peak, peak_bytes: int, message: str) -> Measurement:
    return Measurement(Outcome.OVER_BUDGET, peak_bytes, peak.allocated_bytes, peak.reserved_bytes, message=message)


def _at_the_edge(squeezed: _Squeezed) -> Measurement:
    """A plan that runs only since the allocator gave its cache back, again and again, as the device was full."""
    return Measurement(
        Outcome.OOM,
        None,
        squeezed.peak.allocated_bytes,
        squeezed.peak.reserved_bytes,
        message=f"at the edge of what the device has: {_emptied(squeezed.retries)}; such a plan runs out of memory "
        "sooner or later",
    )


def _emptied(retries: int) -> str:
    return f"the allocator emptied its cache {retries} time{'s' if retries != 1 else ''}"


def _died_under_cap(error: Exception, probe: PeakProbe, cap_bytes: int) -> str:
    message = f"out of memory under the cap of {format_bytes(cap_bytes)}"
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))  # `CUDACachingAllocator.cpp`
    if asked is None or probe.allocated_bytes is None:
        return message
    return f"{message}: with up to {format_bytes(probe.allocated_bytes)} allocated, {asked[1]} more were asked for"
