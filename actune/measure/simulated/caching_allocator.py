"""CUDA's caching allocator as a pure function of what is allocated and freed.

The rules are those of PyTorch's `c10/cuda/CUDACachingAllocator.cpp` with its default settings (no expandable segments,
no max_split_size, no garbage collection) and one stream: requests are rounded to 512 bytes; up to 1 MiB they come
from segments of 2 MiB, below 10 MiB from segments of 20 MiB, else from segments of their own size rounded to 2 MiB;
the smallest free block that is large enough is taken, and split if what remains is worth it; a freed block merges with
its free neighbours. If a new segment does not fit, segments that are wholly free are given back first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 2**20
ROUNDING_BYTES = 512
SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
LARGE_REQUEST_BYTES = 10 * MIB
SEGMENT_ROUNDING_BYTES = 2 * MIB

Event = tuple[int, int]
"""An allocation's number and its bytes; 0 bytes frees it."""


@dataclass(frozen=True, slots=True)
class AllocatorPeaks:
    """What the allocator's statistics say in the end.

    Attributes:
        allocated_bytes: highest sum of the blocks that were given out, with what was not split off them.
        reserved_bytes: highest sum of the segments.
        retries: how often cached segments had to be given back, since a new one did not fit.
    """

    allocated_bytes: int
    reserved_bytes: int
    retries: int


class AllocatorFullError(Exception):
    """A request does not fit, even after all that is cached was given back."""


def rounded_bytes(requested_bytes: int) -> int:
    """The block for a request; a request for nothing gets none."""
    return -(-requested_bytes // ROUNDING_BYTES) * ROUNDING_BYTES


def segment_bytes(block_bytes: int) -> int:
    """The segment that is reserved for a block that no cached one serves."""
    if block_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < LARGE_REQUEST_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-block_bytes // SEGMENT_ROUNDING_BYTES) * SEGMENT_ROUNDING_BYTES


def replay(events: Iterable[Event], *, limit_bytes: int | None = None) -> AllocatorPeaks:
    """The peaks after all events, from an allocator that holds nothing.

    Args:
        events: in the order of time. A number may be used again after it was freed; frees of unknown ones count for
            nothing.
        limit_bytes: what may be reserved at most.

    Raises:
        AllocatorFullError: a request does not fit into the limit.
    """
    allocator = _Allocator(limit_bytes)
    for number, requested_bytes in events:
        if requested_bytes:
            allocator.allocate(number, requested_bytes)
        else:
            allocator.free(number)
    return AllocatorPeaks(allocator.peak_allocated_bytes, allocator.peak_reserved_bytes, allocator.retries)


class _Block:
    __slots__ = ("address", "block_bytes", "is_free", "next", "previous")

    def __init__(self, address: int, block_bytes: int) -> None:
        self.address = address
        self.block_bytes = block_bytes
        self.is_free = False
        self.previous: _Block | None = None
        self.next: _Block | None = None


class _Pool:
    """Free blocks by size, then by address."""

    def __init__(self) -> None:
        self._keys: list[tuple[int, int]] = []
        self._blocks: dict[int, _Block] = {}

    def add(self, block: _Block) -> None:
        block.is_free = True
        insort(self._keys, (block.block_bytes, block.address))
        self._blocks[block.address] = block

    def remove(self, block: _Block) -> None:
        block.is_free = False
        del self._keys[bisect_left(self._keys, (block.block_bytes, block.address))]
        del self._blocks[block.address]

    def take(self, block_bytes: int) -> _Block | None:
        """The best fit, removed; None if no block is large enough."""
        place = bisect_left(self._keys, (block_bytes, 0))
        if place == len(self._keys):
            return None
        block = self._blocks[self._keys[place][1]]
        self.remove(block)
        return block

    def whole_segments(self) -> list[_Block]:
        return [block for block in self._blocks.values() if block.previous is None and block.next is None]


class _Allocator:
    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._small, self._large = _Pool(), _Pool()
        self._given: dict[int, tuple[_Block, _Pool]] = {}
        self._next_address = 0
        self._allocated_bytes = self._reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_reserved_bytes = self.retries = 0

    def allocate(self, number: int, requested_bytes: int) -> None:
        block_bytes = rounded_bytes(requested_bytes)
        pool = self._small if block_bytes <= SMALL_BYTES else self._large
        block = pool.take(block_bytes) or self._new_segment(segment_bytes(block_bytes))
        remaining_bytes = block.block_bytes - block_bytes
        if remaining_bytes >= ROUNDING_BYTES if pool is self._small else remaining_bytes > SMALL_BYTES:
            self._split(block, block_bytes, pool)
        self._given[number] = block, pool
        self._allocated_bytes += block.block_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self._allocated_bytes)

    def free(self, number: int) -> None:
        if number not in self._given:
            return
        block, pool = self._given.pop(number)
        self._allocated_bytes -= block.block_bytes
        before, after = block.previous, block.next
        if before is not None and before.is_free:
            pool.remove(before)
            block.address, block.block_bytes = before.address, before.block_bytes + block.block_bytes
            block.previous = before.previous
            if block.previous is not None:
                block.previous.next = block
        if after is not None and after.is_free:
            pool.remove(after)
            block.block_bytes += after.block_bytes
            block.next = after.next
            if block.next is not None:
                block.next.previous = block
        pool.add(block)

    def _split(self, block: _Block, block_bytes: int, pool: _Pool) -> None:
        rest = _Block(block.address + block_bytes, block.block_bytes - block_bytes)
        rest.previous, rest.next = block, block.next
        if rest.next is not None:
            rest.next.previous = rest
        block.next, block.block_bytes = rest, block_bytes
        pool.add(rest)

    def _new_segment(self, wanted_bytes: int) -> _Block:
        limit_bytes = self._limit_bytes
        if limit_bytes is not None and self._reserved_bytes + wanted_bytes > limit_bytes:
            self.retries += 1
            for pool in (self._small, self._large):
                for block in pool.whole_segments():
                    pool.remove(block)
                    self._reserved_bytes -= block.block_bytes
            if self._reserved_bytes + wanted_bytes > limit_bytes:
                raise AllocatorFullError(
                    f"a segment of {wanted_bytes} bytes does not fit beside {self._reserved_bytes} reserved ones"
                )
        self._reserved_bytes += wanted_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self._reserved_bytes)
        block = _Block(self._next_address, wanted_bytes)
        self._next_address += wanted_bytes
        return block
