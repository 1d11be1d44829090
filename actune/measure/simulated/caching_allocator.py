"""CUDA's caching allocator as a pure function of what is allocated and freed.

The rules are those of PyTorch's `c10/cuda/CUDACachingAllocator.cpp` for one stream, without max_split_size and garbage
collection: requests are rounded to 512 bytes; those of up to 1 MiB have a pool of their own; the smallest free block
that is large enough is taken; a freed block merges with its free neighbours. Where new memory comes from is told by
`fixed_segments` and `expandable_segments`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from actune.measure.simulated.blocks import ROUNDING_BYTES, Block, Reserved
from actune.measure.simulated.expandable_segments import ExpandableSegments, PageBytes
from actune.measure.simulated.fixed_segments import FixedSegments

Event = tuple[int, int]
"""An allocation's number and its bytes; 0 bytes frees it."""


@dataclass(frozen=True, slots=True)
class AllocatorPeaks:
    """What the allocator's statistics say in the end.

    Attributes:
        allocated_bytes: highest sum of the blocks that were given out, with what was not split off them.
        reserved_bytes: highest sum of the segments, or of the pages that were mapped.
        retries: how often what was cached had to be given back, since something new did not fit.
    """

    allocated_bytes: int
    reserved_bytes: int
    retries: int


def rounded_bytes(requested_bytes: int) -> int:
    """The block for a request; a request for nothing gets none."""
    return -(-requested_bytes // ROUNDING_BYTES) * ROUNDING_BYTES


def replay(
    events: Iterable[Event], *, expandable: PageBytes | None = None, limit_bytes: int | None = None
) -> AllocatorPeaks:
    """The peaks after all events, from an allocator that holds nothing.

    Args:
        events: in the order of time. A number may be used again after it was freed; frees of unknown ones count for
            nothing.
        expandable: the pages of expandable segments; None for segments that keep their size.
        limit_bytes: what may be reserved at most.

    Raises:
        AllocatorFullError: a request does not fit into the limit.
    """
    reserved = Reserved(limit_bytes)
    segments = FixedSegments(reserved) if expandable is None else ExpandableSegments(reserved, expandable)
    given: dict[int, Block] = {}
    allocated_bytes = peak_allocated_bytes = 0
    for number, requested_bytes in events:
        if requested_bytes:
            block = given[number] = segments.give(rounded_bytes(requested_bytes))
            allocated_bytes += block.block_bytes
            peak_allocated_bytes = max(peak_allocated_bytes, allocated_bytes)
        elif number in given:
            block = given.pop(number)
            allocated_bytes -= block.block_bytes
            segments.take_back(block)
    return AllocatorPeaks(peak_allocated_bytes, reserved.peak_bytes, segments.retries)
