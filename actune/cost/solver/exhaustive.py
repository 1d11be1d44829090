"""Every choice tried: the truth that the other solvers are tested against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from actune.cost.solver.feasible import infeasible
from actune.cost.solver.problem import Problem, ProblemError, Solution, optimal

MAX_CHOICES = 2_000_000


def every_choice(problem: Problem) -> Iterator[tuple[int, ...]]:
    """All choices that give tied layers the same option, in lexicographic order of what is free.

    Raises:
        ProblemError: there are more than `MAX_CHOICES`.
    """
    leader = list(range(len(problem.layers)))
    for group in problem.ties():
        for number in group:
            leader[number] = group[0]
    free = [number for number, first in enumerate(leader) if number == first]
    count = math.prod(len(problem.layers[number].options) for number in free)
    if count > MAX_CHOICES:
        raise ProblemError(
            f"the problem has {count:.3g} choices; trying each of them expects {MAX_CHOICES} at most. Use solve_exact."
        )
    for options in itertools.product(*(range(len(problem.layers[number].options)) for number in free)):
        taken = dict(zip(free, options, strict=True))
        yield tuple(taken[first] for first in leader)


def solve_exhaustive(problem: Problem, budget_bytes: int) -> Solution:
    """The fastest choice whose peak is within the budget, by trying all; of equally fast ones that of the lowest peak.

    Raises:
        InfeasibleBudgetError: no choice is within the budget.
        ProblemError: there are more than `MAX_CHOICES` choices.
    """
    fits = (
        (problem.time_ps(choice), peak_bytes, choice)
        for choice in every_choice(problem)
        if (peak_bytes := problem.peak_bytes(choice)) <= budget_bytes
    )
    best = min(fits, default=None)
    if best is None:
        raise infeasible(problem, budget_bytes)
    return optimal(problem, best[2], "exhaustive")
