"""Labels: the non-dominated (peak so far, time so far) of the last layers, pruned by bounds on the layers before.

Nemhauser and Ullmann's dynamic programming for the knapsack (1969), from the last layer to the first. A label of the
layers i to L is the peak R that they reach over what is kept before them, and their time. An option of layer i−1 turns
(R, T) into (max(need, kept + max(after, R)), T + time). That grows with R and with T, so a label that another one beats
or equals in both is never needed; and the labels of all layers are the whole frontier of (peak, time).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actune.cost.solver.bounds import Bounds
from actune.cost.solver.menu import Bools, Ints, Menu

NOTHING_BYTES = -(2**60)  # the peak of no layers: below all others, with room to add to


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The labels of all layers, sorted by time, peaks falling.

    Attributes:
        dropped_ps: the least lower bound of what was dropped for want of room; infinite if nothing was.
    """

    peak_bytes: Ints
    time_ps: Ints
    dropped_ps: float
    steps: tuple[tuple[int, Ints, Ints], ...]
    numbers: Ints

    def choice(self, label: int) -> tuple[int, ...]:
        """Option numbers of the problem, layer by layer."""
        choice = self.numbers.copy()
        for row, numbers, parents in reversed(self.steps):
            choice[row] = numbers[label]
            label = int(parents[label])
        return tuple(choice.tolist())


def label(menu: Menu, options: Bools, bounds: Bounds | None = None, *, limit_ps: float = np.inf, width: int) -> Labels:
    """The labels of all layers.

    Args:
        options: which options of the menu are tried: at least one in each layer.
        bounds: drop what cannot end within the budget, or not by `limit_ps`.
        width: keep only so many labels per layer, those of the lowest bounds; without bounds, stop where there are
            more: there are no labels in the end then, and `dropped_ps` is finite.
    """
    peaks, times = np.full(1, NOTHING_BYTES, np.int64), np.zeros(1, np.int64)
    dropped_ps = np.inf
    steps: list[tuple[int, Ints, Ints]] = []
    run = _Run()
    single = options.sum(axis=1) == 1
    first = options.argmax(axis=1)
    entries = np.arange(menu.layer_count), first
    kept_list, need_list = menu.kept_bytes[entries].tolist(), menu.need_bytes[entries].tolist()
    time_list, after_list = menu.time_ps[entries].tolist(), menu.after_bytes.tolist()
    for row in reversed(range(menu.layer_count)):
        if single[row]:
            run.extend(kept_list[row], need_list[row], time_list[row], after_list[row])
            continue
        peaks, times = run.applied(peaks, times)
        run = _Run()
        columns = np.flatnonzero(options[row])
        kept, need, time = (each[row, columns, None] for each in (menu.kept_bytes, menu.need_bytes, menu.time_ps))
        count = len(peaks)
        peaks = np.maximum(need, kept + np.maximum(peaks, after_list[row])).ravel()
        times = (time + times).ravel()
        index = np.arange(len(peaks))
        if bounds is not None:
            bound = times + bounds.before(row, bounds.budget_bytes - peaks)
            index = np.flatnonzero(bound <= limit_ps)
            peaks, times, bound = peaks[index], times[index], bound[index]
        order = _non_dominated(peaks, times)
        if not len(order):
            return Labels(peaks, times, dropped_ps, (), menu.number[entries])
        if len(order) > width:
            if bounds is None:
                return Labels(peaks[:0], times[:0], 0.0, (), menu.number[entries])
            by_bound = np.argpartition(bound[order], width)
            dropped_ps = min(dropped_ps, float(bound[order[by_bound[width]]]))
            order = order[np.sort(by_bound[:width])]
        peaks, times, index = peaks[order], times[order], index[order]
        steps.append((row, menu.number[row, columns[index // count]], index % count))
    peaks, times = run.applied(peaks, times)
    if bounds is not None:
        within = np.flatnonzero((peaks <= bounds.budget_bytes) & (times <= limit_ps))
        peaks, times = peaks[within], times[within]
        if steps:
            row, numbers, parents = steps[-1]
            steps[-1] = (row, numbers[within], parents[within])
    return Labels(peaks, times, dropped_ps, tuple(steps), menu.number[entries])


class _Run:
    """Layers with one option each, one after another: R becomes max(lowest, R + kept)."""

    def __init__(self) -> None:
        self.lowest_bytes, self.kept_bytes, self.time_ps = NOTHING_BYTES, 0, 0

    def extend(self, kept_bytes: int, need_bytes: int, time_ps: int, after_bytes: int) -> None:
        self.lowest_bytes = max(need_bytes, kept_bytes + after_bytes, kept_bytes + self.lowest_bytes)
        self.kept_bytes += kept_bytes
        self.time_ps += time_ps

    def applied(self, peaks: Ints, times: Ints) -> tuple[Ints, Ints]:
        return np.maximum(peaks + self.kept_bytes, self.lowest_bytes), times + self.time_ps


def _non_dominated(peaks: Ints, times: Ints) -> Ints:
    """The labels that no other one beats or equals, sorted by time."""
    order = np.argsort(times, kind="stable")
    in_time = times[order]
    if (in_time[1:] == in_time[:-1]).any():
        order = np.lexsort((peaks, times))
    in_order = peaks[order]
    keep = np.ones(len(order), np.bool_)
    keep[1:] = in_order[1:] < np.minimum.accumulate(in_order)[:-1]
    result: Ints = order[keep]
    return result
