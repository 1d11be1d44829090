"""From allocated to reserved bytes: what is steadier over the profiled plans is learned, and can be undone."""

import pytest

from actune.cost.reserve import NOTHING, Reserve, ReservedPeak, reserve_of


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ([], NOTHING),
        ([(1000, 1100)], Reserve(100, 0)),  # one plan tells nothing of it
        ([(1000, 1100), (2000, 2100), (4000, 4100)], Reserve(100, 0)),
        ([(1000, 1500), (2000, 3000), (4000, 6000)], Reserve(0, 0.5)),
        ([(1000, 1100), (2000, 2190), (4000, 4190)], Reserve(190, 0)),  # 90 bytes off in all, by shares 215
        ([(1000, 900)], NOTHING),
    ],
)
def test_what_is_learned(peaks, expected):
    assert reserve_of([ReservedPeak(*peak) for peak in peaks]) == expected


@pytest.mark.parametrize("reserve", [NOTHING, Reserve(12345, 0), Reserve(0, 0.07), Reserve(0, 0.5), Reserve(0.5, 0)])
def test_there_and_back(reserve):
    for allocated_bytes in (*range(1000), 10**9, 80 * 2**30):
        reserved_bytes = reserve.reserved_bytes(allocated_bytes)
        back = reserve.allocatable_bytes(reserved_bytes)
        assert allocated_bytes <= back <= allocated_bytes + 1
        assert reserve.reserved_bytes(back) == reserved_bytes
    assert NOTHING.reserved_bytes(7) == NOTHING.allocatable_bytes(7) == 7
