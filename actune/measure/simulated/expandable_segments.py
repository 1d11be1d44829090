"""The caching allocator with `expandable_segments:True`: each pool has one segment, which grows and shrinks by pages.

The rules are those of `ExpandableSegment`, `find_expandable_block`, `map_block` and `unmap_block` in PyTorch's
`c10/cuda/CUDACachingAllocator.cpp`. A segment is a range of addresses as wide as it may ever need; memory is mapped to
them page by page. A request takes the smallest free block that is large enough, where one that could grow counts as
large as it could become, so that it is taken last. Else pages are mapped at the lowest addresses that the request fits
at, which are those of the last free block and of what follows it, unless pages were given back before. All but the
request is split off, whatever remains. On a full device the pages that are wholly free are unmapped first.

Left out: that addresses run out after 1 1/8 of the device, when PyTorch begins another segment, and that a process with
a memory fraction of its own is refused a request that only a part of would have to be mapped for.
"""

from __future__ import annotations

from dataclasses import dataclass

from actune.measure.simulated.blocks import MIB, ROUNDING_BYTES, SMALL_BYTES, AllocatorFullError, Block, Pool, Reserved

_ADDRESSES_BYTES = 2**60
"""Of a segment, rounded to whole pages: wider than any device."""


@dataclass(frozen=True, slots=True)
class PageBytes:
    """What memory is mapped in.

    Attributes:
        small: in the segment of requests of up to 1 MiB.
        large: in that of larger ones.
    """

    small: int = 2 * MIB
    large: int = 20 * MIB

    def __post_init__(self) -> None:
        for page_bytes in (self.small, self.large):
            if page_bytes <= 0 or page_bytes % ROUNDING_BYTES:
                raise ValueError(f"{page_bytes} is no size of a page. Expected a multiple of {ROUNDING_BYTES} bytes.")


class ExpandableSegments:
    """Gives blocks out and takes them back.

    Attributes:
        retries: how often cached pages had to be unmapped, since new ones did not fit.
    """

    def __init__(self, reserved: Reserved, pages: PageBytes) -> None:
        self.retries = 0
        self._reserved = reserved
        self._pages = pages
        self._small, self._large = _new_pool(pages.small, is_small=True), _new_pool(pages.large, is_small=False)

    def give(self, block_bytes: int) -> Block:
        """A block of that size.

        Raises:
            AllocatorFullError: it does not fit.
        """
        pool = self._small if block_bytes <= SMALL_BYTES else self._large
        block = pool.best_fit(block_bytes) or self._extended(pool, block_bytes)
        if block is None:
            self.retries += 1
            self._release_cached()
            block = self._extended(pool, block_bytes)
        if block is None:
            raise AllocatorFullError(
                f"pages for {block_bytes} bytes do not fit beside {self._reserved.reserved_bytes} reserved ones"
            )
        pool.remove(block)
        if block.block_bytes > block_bytes:
            pool.add(block.split(block_bytes))
        return block

    def take_back(self, block: Block) -> None:
        """The block is free again, and one with its free neighbours."""
        block.merge()
        block.pool.add(block)

    def _page_bytes(self, pool: Pool) -> int:
        return self._pages.small if pool.is_small else self._pages.large

    def _extended(self, pool: Pool, block_bytes: int) -> Block | None:
        """A free block that was made large enough; None if the device is full. What was mapped until then stays."""
        block = _lowest_room(pool, block_bytes)
        if not block.is_mapped and not self._map(block, block_bytes):
            return None
        while block.block_bytes < block_bytes:
            following = block.next
            assert following is not None, "there is room behind the block"
            if not self._map(following, block_bytes - block.block_bytes):
                return None
            block = following  # which took in the block before it
        return block

    def _map(self, block: Block, wanted_bytes: int) -> bool:
        """Maps whole pages at the start of the block, unless they do not fit."""
        page_bytes = self._page_bytes(block.pool)
        mapped_bytes = -(-min(wanted_bytes, block.block_bytes) // page_bytes) * page_bytes
        if not self._reserved.take(mapped_bytes):
            return False
        block.pool.remove(block)
        if mapped_bytes < block.block_bytes:
            block.pool.add(block.split(mapped_bytes))
        block.is_mapped = True
        block.merge()
        block.pool.add(block)
        return True

    def _release_cached(self) -> None:
        for pool in (self._large, self._small):
            for block in pool.mapped():
                self._unmap(block)

    def _unmap(self, block: Block) -> None:
        """Gives back the pages that lie wholly within the free block."""
        pool, page_bytes = block.pool, self._page_bytes(block.pool)
        begin = -(-block.address // page_bytes) * page_bytes
        end = (block.address + block.block_bytes) // page_bytes * page_bytes
        if begin >= end:
            return
        pool.remove(block)
        if begin > block.address:
            whole = block.split(begin - block.address)
            pool.add(block)
            block = whole
        if end < block.address + block.block_bytes:
            pool.add(block.split(end - begin))
        self._reserved.give_back(end - begin)
        block.is_mapped = False
        block.merge()
        pool.add(block)


def _new_pool(page_bytes: int, *, is_small: bool) -> Pool:
    pool = Pool(is_small=is_small)
    pool.add(Block(0, _ADDRESSES_BYTES // page_bytes * page_bytes, pool, is_mapped=False))
    return pool


def _lowest_room(pool: Pool, block_bytes: int) -> Block:
    """The first of adjacent free blocks that are large enough together, one of them without memory."""
    for unmapped in pool.unmapped():
        first = unmapped
        if unmapped.previous is not None and unmapped.previous.is_free:
            first = unmapped.previous
        block: Block | None = first
        room_bytes = 0
        while room_bytes < block_bytes and block is not None and block.is_free:
            room_bytes += block.block_bytes
            block = block.next
        if room_bytes >= block_bytes:
            return first
    raise AssertionError("the last block has no memory and more addresses than any request")
