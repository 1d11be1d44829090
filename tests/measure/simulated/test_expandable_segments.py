"""Expandable segments against cases worked out by hand from CUDACachingAllocator.cpp."""

import random

import pytest

from actune.measure.simulated.blocks import AllocatorFullError
from actune.measure.simulated.caching_allocator import AllocatorPeaks, replay
from actune.measure.simulated.expandable_segments import PageBytes

MIB = 2**20


DEFAULT = PageBytes()


def peaks(*events, limit_bytes=None, pages=DEFAULT):
    """Events: (number, bytes) allocates, -number frees."""
    events = [(-e, 0) if isinstance(e, int) else e for e in events]
    return replay(events, expandable=pages, limit_bytes=limit_bytes)


@pytest.mark.parametrize(
    ("requested_bytes", "allocated_bytes", "reserved_bytes"),
    [
        (1, 512, 2 * MIB),  # a page of the small pool
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),  # a page of the large pool
        (11 * MIB, 11 * MIB, 20 * MIB),  # the rest is split off, unlike by default
        (20 * MIB, 20 * MIB, 20 * MIB),
        (20 * MIB + 1, 20 * MIB + 512, 40 * MIB),
        (41 * MIB, 41 * MIB, 60 * MIB),
    ],
)
def test_one_request(requested_bytes, allocated_bytes, reserved_bytes):
    assert peaks((1, requested_bytes)) == AllocatorPeaks(allocated_bytes, reserved_bytes, 0)


def test_nothing_and_what_is_unknown():
    assert peaks() == peaks(-7) == AllocatorPeaks(0, 0, 0)


def test_requests_follow_each_other_in_the_segment():
    """Six times 11 MiB are 66: four pages. Segments of their own size would be six of 12."""
    assert peaks(*((number, 11 * MIB) for number in range(6))).reserved_bytes == 80 * MIB


def test_pools_have_segments_of_their_own():
    assert peaks((1, 5 * MIB), (2, 512)).reserved_bytes == 22 * MIB


def test_the_free_end_is_extended():
    """15 MiB are free at the end, so 30 need one page more; by default they would be another segment."""
    assert peaks((1, 5 * MIB), (2, 30 * MIB)) == AllocatorPeaks(35 * MIB, 40 * MIB, 0)
    assert peaks((1, 30 * MIB), -1, (2, 31 * MIB)) == AllocatorPeaks(31 * MIB, 40 * MIB, 0)
    assert peaks((1, 40 * MIB), -1, (2, 41 * MIB)) == AllocatorPeaks(41 * MIB, 60 * MIB, 0)


def test_a_gap_that_is_too_small_stays():
    """Free are 10 MiB before the second block and 10 behind it: 11 MiB extend the end."""
    assert peaks((1, 10 * MIB), (2, 20 * MIB), -1, (3, 11 * MIB)) == AllocatorPeaks(31 * MIB, 60 * MIB, 0)


def test_the_best_fit_is_taken_and_all_of_the_rest_split_off():
    """Free: 6 MiB at the start, 4 in the middle, 8 at the end. 3 MiB go into the 4; then 1 MiB and 512 bytes are left
    of it, too little by 512 bytes for 1.5 MiB, which go into the 6."""
    blocks = ((1, 6 * MIB), (2, 2 * MIB), (3, 4 * MIB), (4, 20 * MIB), -1, -3)
    assert peaks(*blocks, (5, 3 * MIB), (6, 6 * MIB), (7, 8 * MIB)).reserved_bytes == 40 * MIB
    assert peaks(*blocks, (5, 4 * MIB), (6, 6 * MIB), (7, 8 * MIB), (8, 2 * MIB)).reserved_bytes == 60 * MIB


def test_the_end_counts_as_large_as_it_could_become():
    """Free: 9 MiB at the start and 8 at the end. 8 MiB fit the end best, but it could grow: they go to the start."""
    blocks = ((1, 9 * MIB), (2, 23 * MIB), -1, (3, 8 * MIB))
    assert peaks(*blocks, (4, 28 * MIB)).reserved_bytes == 60 * MIB
    # Had they gone to the end, 28 MiB would have needed two pages more.
    assert peaks((1, 8 * MIB), (2, 24 * MIB), (3, 8 * MIB), (4, 28 * MIB)).reserved_bytes == 80 * MIB


# Three blocks that fill four pages: 1 at 0 to 10 MiB, 2 at 10 to 60, 3 at 60 to 80. With 2 free, the pages from 20 to
# 40 and from 40 to 60 MiB are wholly free, the first one in half.
MIDDLE_IS_FREE = ((1, 10 * MIB), (2, 50 * MIB), (3, 20 * MIB), -2)


def test_whole_pages_in_the_middle_are_unmapped():
    """Of 80 reserved MiB 40 are given back for 2 of the small pool; without a limit there are 82."""
    assert peaks(*MIDDLE_IS_FREE, (4, MIB), limit_bytes=80 * MIB) == AllocatorPeaks(80 * MIB, 80 * MIB, 1)
    assert peaks(*MIDDLE_IS_FREE, (4, MIB), limit_bytes=82 * MIB) == AllocatorPeaks(80 * MIB, 82 * MIB, 0)


def test_unmapped_pages_are_mapped_again_together_with_what_is_free_before_them():
    """45 MiB fit at 10: 10 are free there, and two pages are mapped. The page of the small pool has to go for them."""
    again = (*MIDDLE_IS_FREE, (4, MIB), -4, (5, 45 * MIB))
    assert peaks(*again, limit_bytes=80 * MIB) == AllocatorPeaks(80 * MIB, 80 * MIB, 2)
    # At the end of the segment they would be three pages.
    with pytest.raises(AllocatorFullError, match="pages for 47185920 bytes do not fit beside 44040192 reserved ones"):
        peaks(*MIDDLE_IS_FREE, (4, MIB), (5, 45 * MIB), limit_bytes=80 * MIB)


def test_what_does_not_fit_into_the_gap_goes_to_the_end():
    """The gap is 50 MiB wide. For 51, three pages are mapped at the end, after the two of the gap were given back."""
    assert peaks(*MIDDLE_IS_FREE, (5, 51 * MIB), limit_bytes=100 * MIB) == AllocatorPeaks(81 * MIB, 100 * MIB, 1)


def test_gaps_are_filled_from_the_lowest_address():
    """After the middle was unmapped, 20 MiB are mapped there again, not at the end: all is one segment of 80."""
    blocks = ((1, 20 * MIB), (2, 40 * MIB), (3, 20 * MIB), -2, (4, MIB), -4)
    assert peaks(*blocks, limit_bytes=80 * MIB).retries == 1
    refilled = peaks(*blocks, (5, 40 * MIB), -3, -1, -5, (6, 80 * MIB), limit_bytes=82 * MIB)
    assert refilled.reserved_bytes == 82 * MIB


def test_pages_that_are_partly_in_use_are_not_unmapped():
    """Of the 20 MiB 15 are free, but there is no whole page of them."""
    with pytest.raises(AllocatorFullError, match="pages for 1048576 bytes do not fit beside 20971520 reserved ones"):
        peaks((1, 5 * MIB), (2, MIB), limit_bytes=21 * MIB)


def test_pages_of_other_sizes():
    pages = PageBytes(small=4096, large=MIB)
    assert peaks((1, 5000), pages=pages).reserved_bytes == 8192
    assert peaks((1, MIB + 1), pages=pages).reserved_bytes == 2 * MIB


@pytest.mark.parametrize("pages", [{"small": 0}, {"large": 1000}])
def test_wrong_pages(pages):
    with pytest.raises(ValueError, match="multiple of 512"):
        PageBytes(**pages)


def random_events(seed):
    draw = random.Random(seed)
    events, live = [], []
    for number in range(1, 2000):
        events.append((number, draw.choice([100, 5000, MIB, 3 * MIB, 12 * MIB, 40 * MIB]) + draw.randrange(5000)))
        live.append(number)
        while live and draw.random() < 0.5:
            events.append((live.pop(draw.randrange(len(live))), 0))
    return events, [(number, 0) for number in live]


def test_nothing_is_lost_whatever_happens():
    """After all is freed a request for the whole peak needs no page more, as all has become one block again."""
    events, frees = random_events(0)
    once = peaks(*events, *frees)
    assert once.allocated_bytes <= once.reserved_bytes
    small = peaks(*(event for event in events if event[1] <= MIB), *frees).reserved_bytes
    whole = (10**6, once.reserved_bytes - small)
    assert replay([*events, *frees, whole], expandable=PageBytes()).reserved_bytes == once.reserved_bytes


def test_under_pressure_pages_move_and_nothing_is_lost():
    """With less room than it would take, pages are unmapped again and again; what is given out still fits."""
    events, frees = random_events(1)
    free = replay(events + frees, expandable=PageBytes())
    tight = replay(events + frees, expandable=PageBytes(), limit_bytes=free.reserved_bytes - 20 * MIB)
    assert tight.retries > 0
    assert tight.allocated_bytes == free.allocated_bytes <= tight.reserved_bytes
