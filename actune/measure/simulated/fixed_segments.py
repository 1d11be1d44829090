"""The caching allocator as it is by default: each segment keeps its size.

Up to 1 MiB, requests come from segments of 2 MiB; below 10 MiB from segments of 20 MiB; else from segments of their own
size rounded to 2 MiB. What remains of a block is split off if it is worth it. If a new segment does not fit, segments
that are wholly free are given back first.
"""

from __future__ import annotations

from actune.measure.simulated.blocks import MIB, ROUNDING_BYTES, SMALL_BYTES, AllocatorFullError, Block, Pool, Reserved

SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
LARGE_REQUEST_BYTES = 10 * MIB
SEGMENT_ROUNDING_BYTES = 2 * MIB


def segment_bytes(block_bytes: int) -> int:
    """The segment that is reserved for a block that no cached one serves."""
    if block_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < LARGE_REQUEST_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-block_bytes // SEGMENT_ROUNDING_BYTES) * SEGMENT_ROUNDING_BYTES


class FixedSegments:
    """Gives blocks out and takes them back.

    Attributes:
        retries: how often cached segments had to be given back, since a new one did not fit.
    """

    def __init__(self, reserved: Reserved) -> None:
        self.retries = 0
        self._reserved = reserved
        self._small, self._large = Pool(is_small=True), Pool(is_small=False)
        self._next_address = 0

    def give(self, block_bytes: int) -> Block:
        """A block of that size, or somewhat more.

        Raises:
            AllocatorFullError: it does not fit.
        """
        pool = self._small if block_bytes <= SMALL_BYTES else self._large
        block = pool.best_fit(block_bytes)
        if block is None:
            block = self._new_segment(segment_bytes(block_bytes), pool)
        else:
            pool.remove(block)
        remaining_bytes = block.block_bytes - block_bytes
        if remaining_bytes >= ROUNDING_BYTES if pool.is_small else remaining_bytes > SMALL_BYTES:
            pool.add(block.split(block_bytes))
        return block

    def take_back(self, block: Block) -> None:
        """The block is free again, and one with its free neighbours."""
        block.merge()
        block.pool.add(block)

    def _new_segment(self, wanted_bytes: int, pool: Pool) -> Block:
        if not self._reserved.take(wanted_bytes):
            self.retries += 1
            self._release_cached()
            if not self._reserved.take(wanted_bytes):
                raise AllocatorFullError(
                    f"a segment of {wanted_bytes} bytes does not fit beside {self._reserved.reserved_bytes} reserved "
                    "ones"
                )
        block = Block(self._next_address, wanted_bytes, pool)
        self._next_address += wanted_bytes
        return block

    def _release_cached(self) -> None:
        for pool in (self._small, self._large):
            for block in pool.mapped():
                if block.previous is None and block.next is None:
                    pool.remove(block)
                    self._reserved.give_back(block.block_bytes)
