"""The optimum, proven: labels within a growing distance of a lower bound, until a choice is found there.

A choice slower than the bound by at most ε is made of options whose reduced costs are at most ε each. So with ε small
the search is among few options of few layers (the core, Pisinger 1995), and what it finds is the optimum, since nothing
was left out that is as fast. If it finds nothing, ε grows. Reduced costs and bounds are safe whatever the numbers are:
bad ones make the search longer, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actune.cost.solver.bounds import Near, bounds_for
from actune.cost.solver.feasible import infeasible, violated_tie
from actune.cost.solver.labels import label
from actune.cost.solver.menu import Menu, menu_of
from actune.cost.solver.problem import PS_PER_S, Problem, Solution, picoseconds

CORE_OPTIONS = 24  # beyond the best one of each layer, in the first attempt
WIDTH = 1024  # labels per layer, in the first attempt
# Past so many labels per layer, a choice proven to be within this of the optimum is taken as it is: that is where times
# are proportional to bytes, and what is left to gain is far below what any clock sees.
MANY_LABELS = 16 * WIDTH
NEGLIGIBLE = 1e-8
# Memory for labels ends somewhere too: past this the best choice found is taken, and its bound tells how good it is.
MOST_LABELS = 1024 * WIDTH


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest choice, and of equally fast ones that of the lowest peak; ties, floor and base time aside.

    Attributes:
        bound_ps: `time_ps` itself, or less where labels ran out.
    """

    time_ps: int
    peak_bytes: int
    choice: tuple[int, ...]
    bound_ps: int


def solve_exact(problem: Problem, budget_bytes: int) -> Solution:
    """The fastest choice whose peak is within the budget; of equally fast ones one of the lowest peak.

    128 different layers with 8 options each take milliseconds. The problem is NP-hard (it holds the knapsack), so
    numbers can be made up for which it takes long: times that are proportional to bytes. Where that needs too many
    labels, the choice is within `NEGLIGIBLE` of the optimum or the best of `MOST_LABELS`, and `bound_s` is below
    `time_s`.

    Raises:
        InfeasibleBudgetError: no choice is within the budget.
    """
    best = None if problem.floor_bytes > budget_bytes else best_choice(problem, budget_bytes, menu_of(problem))
    if best is None:
        raise infeasible(problem, budget_bytes)
    return solution_of(problem, best)


def solution_of(problem: Problem, best: Best) -> Solution:
    """The solution that a best choice is."""
    base_ps = picoseconds(problem.base_time_s)
    return Solution(
        best.choice,
        max(problem.floor_bytes, best.peak_bytes),
        (base_ps + best.time_ps) / PS_PER_S,
        (base_ps + best.bound_ps) / PS_PER_S,
        "exact",
    )


def best_choice(problem: Problem, budget_bytes: int, menu: Menu, near: Near | None = None) -> Best | None:
    """The optimum with ties; None where nothing is within the budget.

    Args:
        menu: all options of the problem.
        near: what was learnt at another budget.
    """
    best = fastest(menu, budget_bytes, near=near)
    if best is None or violated_tie(problem, best.choice) is None:
        return best
    # Branch and bound over the options of tied groups; the optimum where ties are ignored is the bound.
    found: Best | None = None
    stack: list[list[Sequence[int]]] = [[range(len(layer.options)) for layer in problem.layers]]
    while stack:
        allowed = stack.pop()
        best = fastest(menu_of(problem, allowed), budget_bytes, None if found is None else found.time_ps)
        if best is None:
            continue
        if found is not None and (best.time_ps, best.peak_bytes) >= (found.time_ps, found.peak_bytes):
            continue
        group = violated_tie(problem, best.choice)
        if group is None:
            found = best
            continue
        for number in reversed(allowed[group[0]]):
            stack.append([[number] if row in group else each for row, each in enumerate(allowed)])
    return found


def fastest(menu: Menu, budget_bytes: int, limit_ps: int | None = None, near: Near | None = None) -> Best | None:
    """The optimum of a menu, ties aside; None if there is no choice within the budget and the limit."""
    bounds = bounds_for(menu, budget_bytes, near)
    if bounds is None:
        return None
    reduced = bounds.reduced_ps
    steps_ps = np.sort(reduced[bounds.possible])[menu.layer_count :]
    most_ps = np.inf if limit_ps is None else float(limit_ps)
    core, width = CORE_OPTIONS, WIDTH
    while True:
        within_ps = bounds.bound_ps + steps_ps[core] if core < len(steps_ps) else np.inf
        within_ps = min(within_ps, most_ps)
        options = bounds.possible & (bounds.priced_ps + reduced <= within_ps + bounds.slack_ps)
        empty = not options.any(axis=1).all()
        labels = None if empty else label(menu, options, bounds, limit_ps=within_ps + bounds.slack_ps, width=width)
        complete = labels is None or labels.dropped_ps == np.inf
        if labels is not None and len(labels.time_ps) and labels.time_ps[0] <= most_ps:
            best_ps = int(labels.time_ps[0])
            proven = best_ps <= within_ps and labels.dropped_ps > best_ps + bounds.slack_ps
            bound_ps = best_ps if proven else min(best_ps, math.ceil(bounds.bound_ps - bounds.slack_ps))
            tolerated = width >= MANY_LABELS and best_ps <= bound_ps * (1 + NEGLIGIBLE)
            if proven or tolerated or width >= MOST_LABELS:
                return Best(best_ps, int(labels.peak_bytes[0]), labels.choice(0), bound_ps)
            most_ps = min(most_ps, float(best_ps))
        elif within_ps == most_ps and complete:
            return None
        if not complete:
            width *= 4
        if core < len(steps_ps):
            core = max(2 * core, int(np.searchsorted(steps_ps, steps_ps[core] + bounds.slack_ps)))
