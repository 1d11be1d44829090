"""What both of the caching allocator's models are made of: blocks, the pools of free ones, and what is reserved."""

from __future__ import annotations

from bisect import bisect_left, insort

MIB = 2**20
ROUNDING_BYTES = 512
SMALL_BYTES = MIB


class AllocatorFullError(Exception):
    """A request does not fit, even after all that is cached was given back."""


class Reserved:
    """What the allocator has from the device.

    Attributes:
        reserved_bytes: right now.
        peak_bytes: the most so far.
        limit_bytes: what may be reserved at most; None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.reserved_bytes = self.peak_bytes = 0
        self.limit_bytes = limit_bytes

    def take(self, size_bytes: int) -> bool:
        """Reserves so much more, unless it does not fit."""
        if self.limit_bytes is not None and self.reserved_bytes + size_bytes > self.limit_bytes:
            return False
        self.reserved_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)
        return True

    def give_back(self, size_bytes: int) -> None:
        """The device has it again."""
        self.reserved_bytes -= size_bytes


class Block:
    """A range of addresses in a segment, between its neighbours there.

    Attributes:
        address: where it begins.
        block_bytes: how long it is.
        pool: it is free in, or comes back to.
        is_free: whether it is not given out.
        is_mapped: whether there is memory behind the addresses; False only in expandable segments.
    """

    __slots__ = ("address", "block_bytes", "is_free", "is_mapped", "next", "pool", "previous")

    def __init__(self, address: int, block_bytes: int, pool: Pool, *, is_mapped: bool = True) -> None:
        self.address = address
        self.block_bytes = block_bytes
        self.pool = pool
        self.is_free = False
        self.is_mapped = is_mapped
        self.previous: Block | None = None
        self.next: Block | None = None

    @property
    def room_bytes(self) -> int:
        """Its own bytes and the addresses without memory right behind it."""
        if self.next is None or self.next.is_mapped:
            return self.block_bytes
        return self.block_bytes + self.next.block_bytes

    def split(self, block_bytes: int) -> Block:
        """Keeps so much and returns the rest, in no pool yet."""
        rest = Block(self.address + block_bytes, self.block_bytes - block_bytes, self.pool, is_mapped=self.is_mapped)
        rest.previous, rest.next = self, self.next
        if rest.next is not None:
            rest.next.previous = rest
        self.next, self.block_bytes = rest, block_bytes
        return rest

    def merge(self) -> None:
        """Takes in the neighbours that are free and as much mapped as it is."""
        before, after = self.previous, self.next
        if before is not None and before.is_free and before.is_mapped == self.is_mapped:
            self.pool.remove(before)
            self.address, self.block_bytes = before.address, before.block_bytes + self.block_bytes
            self.previous = before.previous
            if self.previous is not None:
                self.previous.next = self
        if after is not None and after.is_free and after.is_mapped == self.is_mapped:
            self.pool.remove(after)
            self.block_bytes += after.block_bytes
            self.next = after.next
            if self.next is not None:
                self.next.previous = self


class Pool:
    """The blocks that are not given out: those with memory by size, then by address; those without by address.

    Attributes:
        is_small: whether it serves requests of up to 1 MiB.
    """

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self._mapped: list[tuple[int, int]] = []
        self._unmapped: list[int] = []
        self._blocks: dict[int, Block] = {}

    def add(self, block: Block) -> None:
        """From here on the block is free."""
        block.is_free = True
        if block.is_mapped:
            insort(self._mapped, (block.block_bytes, block.address))
        else:
            insort(self._unmapped, block.address)
        self._blocks[block.address] = block

    def remove(self, block: Block) -> None:
        """From here on the block is not free."""
        block.is_free = False
        if block.is_mapped:
            del self._mapped[bisect_left(self._mapped, (block.block_bytes, block.address))]
        else:
            del self._unmapped[bisect_left(self._unmapped, block.address)]
        del self._blocks[block.address]

    def best_fit(self, block_bytes: int) -> Block | None:
        """The smallest free block that is large enough; None if none is.

        As long as the next larger one could grow to less than this one could, it is taken instead.
        """
        best: Block | None = None
        for place in range(bisect_left(self._mapped, (block_bytes, 0)), len(self._mapped)):
            block = self._blocks[self._mapped[place][1]]
            if best is not None and block.room_bytes >= best.room_bytes:
                break
            best = block
        return best

    def mapped(self) -> list[Block]:
        """The free blocks with memory, the smallest first."""
        return [self._blocks[address] for _, address in self._mapped]

    def unmapped(self) -> list[Block]:
        """The blocks without memory, the lowest first."""
        return [self._blocks[address] for address in self._unmapped]
