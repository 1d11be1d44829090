"""A good choice without a proof: the change that saves most time per byte first, as long as one fits."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from actune.cost.solver.bounds import bounds_for
from actune.cost.solver.feasible import infeasible, smallest_peak
from actune.cost.solver.menu import menu_of
from actune.cost.solver.problem import PS_PER_S, Problem, Solution, picoseconds


def solve_greedy(problem: Problem, budget_bytes: int) -> Solution:
    """A choice within the budget, and the LP relaxation's bound on how much faster the optimum can be.

    From the choice of the smallest peak on: of all changes of one layer, or of one tied group, that make the step
    faster and fit, the one that saves most per byte kept (the greedy rule for the knapsack, Dantzig 1957), until none
    fits.

    Raises:
        InfeasibleBudgetError: no choice is within the budget.
    """
    lowest_bytes, start = smallest_peak(problem)
    if lowest_bytes > budget_bytes:
        raise infeasible(problem, budget_bytes)
    choice = _improved(problem, start, budget_bytes)
    bounds = bounds_for(menu_of(problem), budget_bytes)
    assert bounds is not None, "the smallest peak is within the budget"
    time_ps = problem.time_ps(choice)
    bound_ps = picoseconds(problem.base_time_s) + max(0, int(bounds.bound_ps - bounds.slack_ps))
    return Solution(choice, problem.peak_bytes(choice), time_ps / PS_PER_S, min(time_ps, bound_ps) / PS_PER_S, "greedy")


def _improved(problem: Problem, start: Sequence[int], budget_bytes: int) -> tuple[int, ...]:
    groups = list(problem.ties())
    tied = {row for group in groups for row in group}
    groups += [(row,) for row in range(len(problem.layers)) if row not in tied]
    state = _State(problem, start)
    waiting = [change for group in groups for change in state.changes(group)]
    moved = True
    while moved:
        # What did not fit may fit now: another layer may have moved to an option that is faster and keeps less.
        moved = False
        heap, waiting = [change for change in waiting if state.choice[change[1][0]] == change[2]], []
        heapq.heapify(heap)
        while heap:
            change = heapq.heappop(heap)
            _, group, before, number = change
            if state.choice[group[0]] != before:
                continue
            if state.peak_with(group, number) > budget_bytes:
                waiting.append(change)
                continue
            state.move(group, number)
            moved = True
            for following in state.changes(group):
                heapq.heappush(heap, following)
    return tuple(state.choice)


class _State:
    """A choice, with what tells the peak after a change of one layer without going through all."""

    def __init__(self, problem: Problem, choice: Sequence[int]) -> None:
        self._layers, self._problem = problem.layers, problem
        self.choice = list(choice)
        self._sum_up()

    def _sum_up(self) -> None:
        options = [layer.options[number] for layer, number in zip(self._layers, self.choice, strict=True)]
        self._kept, self._highest_before = [0], [self._problem.floor_bytes]
        for layer, option in zip(self._layers, options, strict=True):
            kept = self._kept[-1] + option.kept_bytes
            highest = max(self._highest_before[-1], self._kept[-1] + option.need_bytes, kept + layer.after_bytes)
            self._kept.append(kept)
            self._highest_before.append(highest)
        # Of the layers from i on, over what the layers before i keep; below everything at the end.
        self._over_kept: list[float] = [-float("inf")]
        for layer, option in zip(reversed(self._layers), reversed(options), strict=True):
            rest = max(layer.after_bytes, self._over_kept[-1])
            self._over_kept.append(max(option.need_bytes, option.kept_bytes + rest))
        self._over_kept.reverse()

    def peak_with(self, group: Sequence[int], number: int) -> float:
        """The peak if these layers take that option."""
        if len(group) > 1:
            changed = list(self.choice)
            for row in group:
                changed[row] = number
            return self._problem.peak_bytes(changed)
        (row,) = group
        layer, option = self._layers[row], self._layers[row].options[number]
        rest = option.kept_bytes + max(layer.after_bytes, self._over_kept[row + 1])
        return max(self._highest_before[row], self._kept[row] + max(option.need_bytes, rest))

    def move(self, group: Sequence[int], number: int) -> None:
        for row in group:
            self.choice[row] = number
        self._sum_up()

    def changes(self, group: tuple[int, ...]) -> Iterator[tuple[float, tuple[int, ...], int, int]]:
        """Bytes kept per second saved, the group, its option now and the one it would take: all that are faster."""
        now = self.choice[group[0]]
        for number in range(len(self._layers[group[0]].options)):
            more_bytes, saved_s = 0, 0.0
            for row in group:
                option, other = self._layers[row].options[now], self._layers[row].options[number]
                more_bytes += other.kept_bytes - option.kept_bytes
                saved_s += option.time_s - other.time_s
            if saved_s > 0:
                yield more_bytes / saved_s, group, now, number
