"""The frontier: the choices that no other one beats in both peak and time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from actune.cost.solver.bounds import Near
from actune.cost.solver.exact import Best, best_choice, solution_of
from actune.cost.solver.feasible import infeasible, smallest_peak
from actune.cost.solver.labels import label
from actune.cost.solver.menu import Menu, menu_of
from actune.cost.solver.problem import Problem, ProblemError, Solution

# Up to so many labels per layer, and ways to settle ties, the whole frontier is worth a try before budgets are solved.
TRIED_LABELS = 20_000
TRIED_TIES = 64
MOST_LABELS = 1_000_000
MOST_TIES = 100_000


def solve_frontier(
    problem: Problem,
    points: int | None = 200,
    *,
    lowest_bytes: int | None = None,
    highest_bytes: int | None = None,
) -> tuple[Solution, ...]:
    """The exact frontier from the smallest reachable peak to the fastest choice, peaks rising.

    Each solution is the optimum within its own peak. If the frontier has more than `points`, it is the optima of so
    many budgets, evenly spread in bytes from the lowest to the highest, of which several may be the same.

    Args:
        points: how many at most, two or more; None for all, where the problem is small enough.
        lowest_bytes: the lowest budget; the smallest reachable peak, if that is higher.
        highest_bytes: the highest budget; the peak of the fastest choice, if that is lower.

    Raises:
        InfeasibleBudgetError: no choice is within `highest_bytes`.
        ProblemError: `points` is less than two, or all points are asked for and there are too many labels.
    """
    if points is not None and points < 2:
        raise ProblemError(f"a frontier of {points} points was asked for; expected two at least, or None for all.")
    least_bytes = smallest_peak(problem)[0]
    if highest_bytes is not None and highest_bytes < least_bytes:
        raise infeasible(problem, highest_bytes)
    lowest = max(least_bytes, least_bytes if lowest_bytes is None else lowest_bytes)
    # Any choice is within this, so the optimum there is the fastest choice.
    highest = _any_peak(problem) if highest_bytes is None else highest_bytes
    lowest = min(lowest, highest)
    menu = menu_of(problem)
    found = _whole(problem, menu, points)
    if found is None:
        assert points is not None
        return tuple(_at_budgets(problem, menu, lowest, highest, points))
    start = bisect_right(found, lowest, key=lambda best: best.peak_bytes) - 1
    found = found[start : bisect_right(found, highest, key=lambda best: best.peak_bytes)]
    if points is not None and len(found) > points:
        budgets = _spread(lowest, found[-1].peak_bytes, points)
        numbers = {bisect_right(found, budget_bytes, key=lambda best: best.peak_bytes) - 1 for budget_bytes in budgets}
        found = [found[number] for number in sorted(numbers)]
    return tuple(solution_of(problem, best) for best in found)


def _any_peak(problem: Problem) -> int:
    kept_bytes = sum(max(0, *(option.kept_bytes for option in layer.options)) for layer in problem.layers)
    over_bytes = [layer.after_bytes for layer in problem.layers]
    over_bytes += [option.need_bytes for layer in problem.layers for option in layer.options]
    return max(problem.floor_bytes, kept_bytes + max(over_bytes, default=0))


def _spread(lowest_bytes: int, highest_bytes: int, points: int) -> list[int]:
    return [lowest_bytes + (highest_bytes - lowest_bytes) * number // (points - 1) for number in range(points)]


def _at_budgets(problem: Problem, menu: Menu, lowest: int, highest: int, points: int) -> Iterator[Solution]:
    near = Near()
    best = best_choice(problem, highest, menu, near)
    assert best is not None, "the highest budget is at least the smallest peak"
    found = [best]
    for budget_bytes in reversed(_spread(lowest, max(lowest, best.peak_bytes), points)):
        if found[-1].peak_bytes > budget_bytes:
            best = best_choice(problem, budget_bytes, menu, near)
            assert best is not None, "the lowest budget is at least the smallest peak"
            found.append(best)
    return (solution_of(problem, best) for best in reversed(found))


def _whole(problem: Problem, menu: Menu, points: int | None) -> list[Best] | None:
    """All points, peaks rising: the labels of all layers without a budget. None where there may be too many to try."""
    groups = problem.ties()
    ways = math.prod(len(problem.layers[group[0]].options) for group in groups)
    if ways > (MOST_TIES if points is None else TRIED_TIES):
        if points is None:
            raise _too_many(f"{ways} ways to settle ties")
        return None
    found: list[Best] = []
    for settled in _menus(problem, menu, groups):
        labels = label(settled, settled.valid, width=MOST_LABELS if points is None else TRIED_LABELS)
        if labels.dropped_ps < np.inf:
            if points is None:
                raise _too_many(f"more than {MOST_LABELS} labels at a layer")
            return None
        for number, (peak, time) in enumerate(zip(labels.peak_bytes.tolist(), labels.time_ps.tolist(), strict=True)):
            found.append(Best(time, max(peak, problem.floor_bytes), labels.choice(number), time))
    return list(_non_dominated(found))


def _too_many(what: str) -> ProblemError:
    return ProblemError(f"the whole frontier takes {what}; ask for a number of points instead of all.")


def _menus(problem: Problem, menu: Menu, groups: Sequence[tuple[int, ...]]) -> Iterator[Menu]:
    """The menus that are left once all tied groups have taken an option, one after another."""
    if not groups:
        yield menu
        return
    for numbers in itertools.product(*(range(len(problem.layers[group[0]].options)) for group in groups)):
        taken = {row: number for group, number in zip(groups, numbers, strict=True) for row in group}
        yield menu_of(
            problem,
            [[taken[row]] if row in taken else range(len(layer.options)) for row, layer in enumerate(problem.layers)],
        )


def _non_dominated(found: Iterable[Best]) -> Iterator[Best]:
    fastest_ps: float = math.inf
    for best in sorted(found, key=lambda best: (best.peak_bytes, best.time_ps)):
        if best.time_ps < fastest_ps:
            fastest_ps = best.time_ps
            yield best
