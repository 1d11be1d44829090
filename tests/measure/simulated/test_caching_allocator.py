"""The allocator's model against cases worked out by hand from CUDACachingAllocator.cpp."""

import random

import pytest

from actune.measure.simulated.blocks import AllocatorFullError
from actune.measure.simulated.caching_allocator import AllocatorPeaks, replay

MIB = 2**20


def peaks(*events, limit_bytes=None):
    """Events: (number, bytes) allocates, -number frees."""
    return replay([(-e, 0) if isinstance(e, int) else e for e in events], limit_bytes=limit_bytes)


@pytest.mark.parametrize(
    ("requested_bytes", "allocated_bytes", "reserved_bytes"),
    [
        (1, 512, 2 * MIB),  # rounded to 512 bytes, in a small segment
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small one
        (MIB + 1, MIB + 512, 20 * MIB),  # the smallest large one; more than 1 MiB remains, so it is split
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # a segment of its own
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # almost 2 MiB remain: split
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB remains, which is not split off, and counts as allocated
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
    ],
)
def test_one_request(requested_bytes, allocated_bytes, reserved_bytes):
    assert peaks((1, requested_bytes)) == AllocatorPeaks(allocated_bytes, reserved_bytes, 0)


def test_nothing_and_what_is_unknown():
    assert peaks() == peaks(-7) == AllocatorPeaks(0, 0, 0)


def test_small_ones_share_a_segment():
    assert peaks((1, MIB), (2, MIB)) == AllocatorPeaks(2 * MIB, 2 * MIB, 0)
    assert peaks((1, MIB), (2, MIB), (3, 512)) == AllocatorPeaks(2 * MIB + 512, 4 * MIB, 0)


def test_the_rest_of_a_small_segment_is_split_off_to_the_last_512_bytes():
    assert peaks((1, MIB), (2, MIB - 512), (3, 512)) == AllocatorPeaks(2 * MIB, 2 * MIB, 0)


def test_pools_are_apart():
    """A large segment has 15 MiB free, but small requests get one of their own."""
    assert peaks((1, 5 * MIB), (2, 512)).reserved_bytes == 22 * MIB


def test_what_was_freed_is_used_again():
    assert peaks((1, 30 * MIB), -1, (2, 30 * MIB)) == AllocatorPeaks(30 * MIB, 30 * MIB, 0)
    assert peaks((1, 30 * MIB), -1, (2, 31 * MIB)).reserved_bytes == 62 * MIB


def test_a_number_may_come_again():
    assert peaks((1, 512), -1, (1, 1024)) == AllocatorPeaks(1024, 2 * MIB, 0)


def test_neighbours_merge():
    """6 + 6 + 6 MiB fill a segment of 20 but for 2. With the first two free, 12 MiB fit where they were."""
    three = ((1, 6 * MIB), (2, 6 * MIB), (3, 6 * MIB))
    assert peaks(*three, -1, -2, (4, 12 * MIB)).reserved_bytes == 20 * MIB
    assert peaks(*three, -2, -1, (4, 12 * MIB)).reserved_bytes == 20 * MIB
    # The last one merges with the 2 MiB behind it: 8 MiB, and 14 with the one before.
    assert peaks(*three, -3, (4, 8 * MIB)).reserved_bytes == 20 * MIB
    assert peaks(*three, -3, -2, (4, 14 * MIB)).reserved_bytes == 20 * MIB
    assert peaks(*three, -1, -3, (4, 12 * MIB)).reserved_bytes == 32 * MIB


def test_the_best_fit_is_taken():
    """Free: 24 and 16 MiB. 15 MiB go into the 16, where 1 MiB is not split off; 24 MiB then fit into the other."""
    two = ((1, 24 * MIB), (2, 16 * MIB), -1, -2)
    assert peaks(*two, (3, 15 * MIB), (4, 24 * MIB)) == AllocatorPeaks(40 * MIB, 40 * MIB, 0)
    # Had 15 MiB been cut from the 24, they would not.
    assert peaks(*two, (3, 17 * MIB), (4, 24 * MIB)).reserved_bytes == 64 * MIB


def test_fragments_count():
    """Half of the blocks of a segment are free, but none is large enough."""
    blocks = [(number, 2 * MIB) for number in range(1, 11)]
    assert peaks(*blocks).reserved_bytes == 20 * MIB
    assert peaks(*blocks, *(-number for number in (2, 4, 6, 8)), (11, 4 * MIB)).reserved_bytes == 40 * MIB


def test_cached_segments_are_given_back_before_there_is_no_room():
    assert peaks((1, 20 * MIB), -1, (2, 30 * MIB), limit_bytes=40 * MIB) == AllocatorPeaks(30 * MIB, 30 * MIB, 1)


def test_a_segment_in_use_is_not_given_back():
    """Of the 20 MiB, 15 are free, but a part is in use: 30 MiB do not fit into 40."""
    with pytest.raises(AllocatorFullError, match="31457280 bytes does not fit beside 20971520"):
        peaks((1, 5 * MIB), (2, 30 * MIB), limit_bytes=40 * MIB)


def test_nothing_is_lost_whatever_happens():
    """After all is freed, one block per segment is left: all of it can be had again."""
    draw = random.Random(0)
    events, live = [], []
    for number in range(1, 2000):
        events.append((number, draw.choice([100, 5000, MIB, 3 * MIB, 12 * MIB, 40 * MIB]) + draw.randrange(5000)))
        live.append(number)
        while live and draw.random() < 0.5:
            events.append((live.pop(draw.randrange(len(live))), 0))
    events += [(number, 0) for number in live]
    once, twice = replay(events), replay(events * 2)
    assert once.allocated_bytes <= once.reserved_bytes
    assert twice.allocated_bytes >= once.allocated_bytes
    # What all segments hold could be given back: with no more than the peak as a limit, it runs again.
    assert replay(events * 2, limit_bytes=twice.reserved_bytes) == twice
