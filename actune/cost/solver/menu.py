"""The options of all layers as arrays, without those that another option of the layer beats in everything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actune.cost.solver.problem import Problem, picoseconds

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """Options as arrays of one row per layer; rows are padded with the layer's first option, which `valid` tells.

    Attributes:
        number: which option of the problem's layer an entry is.
        prices_ps: picoseconds per byte at which some layer's best option changes: the slopes of the lower convex hulls
            of each layer's (kept, time). Sorted and distinct, with 0 as the first.
        kept_at_bytes: what is kept in all where each layer takes the best option at such a price, of two equally good
            ones that which keeps less.
        rows: each layer's options as plain (kept, need), for loops where arrays are too short to be worth it.
    """

    kept_bytes: Ints
    need_bytes: Ints
    time_ps: Ints
    number: Ints
    valid: Bools
    after_bytes: Ints
    prices_ps: Floats
    kept_at_bytes: Floats
    rows: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def layer_count(self) -> int:
        return len(self.after_bytes)


def menu_of(problem: Problem, allowed: Sequence[Sequence[int]] | None = None) -> Menu:
    """The menu of a problem.

    An option is dropped if another one of its layer keeps no more, needs no more and takes no longer: every choice with
    it has one without it that is at least as good in peak and in time (dominance, Sinha and Zoltners 1979, with the
    bytes needed as a third criterion).

    Args:
        allowed: option numbers that each layer may take; all without it. Ties are not looked at.
    """
    width = max((len(layer.options) for layer in problem.layers), default=1)
    shape = (len(problem.layers), width)
    kept, need, time, number = (np.zeros(shape, np.int64) for _ in range(4))
    valid = np.zeros(shape, np.bool_)
    for row, layer in enumerate(problem.layers):
        numbers = list(range(len(layer.options)) if allowed is None else allowed[row])
        padded = numbers + [numbers[0]] * (width - len(numbers))
        options = [layer.options[each] for each in padded]
        kept[row] = [option.kept_bytes for option in options]
        need[row] = [option.need_bytes for option in options]
        time[row] = [picoseconds(option.time_s) for option in options]
        number[row] = padded
        valid[row, : len(numbers)] = True
    valid &= ~_dominated(kept, need, time)
    keep = np.argsort(~valid, axis=1, kind="stable")[:, : max(1, int(valid.sum(axis=1).max(initial=1)))]
    kept, need, time, number = (np.take_along_axis(each, keep, 1) for each in (kept, need, time, number))
    valid = np.take_along_axis(valid, keep, 1)
    after = np.array([layer.after_bytes for layer in problem.layers], np.int64)
    rows = tuple(
        tuple(zip(kept[row, mask].tolist(), need[row, mask].tolist(), strict=True)) for row, mask in enumerate(valid)
    )
    return Menu(kept, need, time, number, valid, after, *_prices(kept, time, valid), rows)


def _dominated(kept: Ints, need: Ints, time: Ints) -> Bools:
    """Which entries another one of the row beats or equals in all; of equal ones, padding too, the first stays."""
    width = kept.shape[1]
    earlier = np.tri(width, k=-1, dtype=np.bool_)[None]  # [i, j]: j comes before i
    no_worse = np.ones((len(kept), width, width), np.bool_)
    equal = no_worse.copy()
    for values in (kept, need, time):
        no_worse &= values[:, None, :] <= values[:, :, None]
        equal &= values[:, None, :] == values[:, :, None]
    result: Bools = np.any(no_worse & (~equal | earlier), axis=2)
    return result


def _prices(kept: Ints, time: Ints, valid: Bools) -> tuple[Floats, Floats]:
    least_bytes = 0
    steps: dict[float, int] = {0.0: 0}
    for row in range(len(kept)):
        points = sorted(zip(kept[row, valid[row]].tolist(), time[row, valid[row]].tolist(), strict=True))
        hull: list[tuple[int, int]] = []
        for point in points:
            if hull and point[1] >= hull[-1][1]:
                continue
            while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        least_bytes += hull[0][0]
        for left, right in itertools.pairwise(hull):
            price = (left[1] - right[1]) / (right[0] - left[0])
            steps[price] = steps.get(price, 0) + right[0] - left[0]
    prices = sorted(steps)
    widths = np.array([steps[price] for price in prices], np.float64)
    return np.array(prices), least_bytes + widths.sum() - np.cumsum(widths)


def _is_above(left: tuple[int, int], middle: tuple[int, int], right: tuple[int, int]) -> bool:
    """Whether the middle of three points is on or above the line from the left to the right one."""
    return (middle[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (middle[0] - left[0])
