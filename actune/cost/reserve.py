"""What a caching allocator reserves beyond what is allocated, learned from the steps that were profiled.

A plan's allocated bytes are composed of its layers' to the byte. What is reserved depends on the order of all
allocations, as blocks are cut and gaps stay between them, and is not composed of anything. Over the plans of one target
it is close to either the same number of bytes more (gaps come from what all plans have in common, such as the
optimizer's state) or the same share more (gaps come from activations).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actune.step_profile import PlanProfiled


@dataclass(frozen=True, slots=True)
class ReservedPeak:
    """What the steps of one profiled plan held at most.

    Attributes:
        allocated_bytes: the highest sum of what was given out.
        reserved_bytes: what the allocator had reserved by the end.
    """

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """From allocated bytes to reserved ones and back.

    Attributes:
        extra_bytes: reserved beyond what is allocated, whatever that is.
        extra_share: reserved beyond what is allocated, as a share of that.
    """

    extra_bytes: float
    extra_share: float

    def reserved_bytes(self, allocated_bytes: int) -> int:
        """What is expected to be reserved if so much is allocated."""
        return round(allocated_bytes * (1 + self.extra_share) + self.extra_bytes)

    def allocatable_bytes(self, reserved_bytes: int) -> int:
        """How much may be allocated at most for no more than so much to be reserved."""
        allocatable_bytes = int((reserved_bytes - self.extra_bytes) / (1 + self.extra_share))
        # Off by the rounding of both directions: what is reserved for an amount must allow that amount.
        while self.reserved_bytes(allocatable_bytes + 1) <= reserved_bytes:
            allocatable_bytes += 1
        while self.reserved_bytes(allocatable_bytes) > reserved_bytes:
            allocatable_bytes -= 1
        return allocatable_bytes


NOTHING = Reserve(0, 0)
"""Of a device without a caching allocator."""


def reserved_peak(profiled: PlanProfiled) -> ReservedPeak | None:
    """The peak of a profiled plan; None on a device without a caching allocator."""
    if profiled.steady.reserved_bytes is None:
        return None
    steps = [step for step in (profiled.first, profiled.steady) if step is not None]
    return ReservedPeak(max(step.peak_bytes for step in steps), profiled.steady.reserved_bytes)


def reserve_of(peaks: Sequence[ReservedPeak]) -> Reserve:
    """The steadier one of a median number of bytes and a median share, by how far the peaks lie from it."""
    if not peaks:
        return NOTHING
    by_bytes = Reserve(_median(lambda peak: peak.reserved_bytes - peak.allocated_bytes, peaks), 0)
    by_share = Reserve(0, _median(lambda peak: peak.reserved_bytes / peak.allocated_bytes - 1, peaks))
    return min(by_bytes, by_share, key=lambda reserve: _distance_bytes(reserve, peaks))


def _median(extra: Callable[[ReservedPeak], float], peaks: Sequence[ReservedPeak]) -> float:
    """Not below 0: at the very end of a step less may be reserved than was allocated before a retry."""
    return statistics.median(max(0.0, extra(peak)) for peak in peaks)


def _distance_bytes(reserve: Reserve, peaks: Sequence[ReservedPeak]) -> int:
    return sum(abs(reserve.reserved_bytes(peak.allocated_bytes) - peak.reserved_bytes) for peak in peaks)
