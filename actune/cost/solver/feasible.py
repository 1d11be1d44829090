"""The smallest peak that any choice reaches, and what is said where the budget is below it."""

from __future__ import annotations

from collections.abc import Sequence

from actune.cost.solver.problem import Problem
from actune.errors import InfeasibleBudgetError
from actune.units import format_bytes


def smallest_peak(problem: Problem) -> tuple[int, tuple[int, ...]]:
    """The smallest reachable peak in bytes, exactly, and a choice that reaches it.

    From the last layer to the first: R_i, the smallest peak of the layers from i on over what is kept before them,
    follows from R_{i+1}, since it only grows with it: an option adds its kept bytes to it or puts its own need in its
    place. Keeping least everywhere is not enough: an option that keeps little may need much.
    """
    best = _smallest_relaxed(problem, [range(len(layer.options)) for layer in problem.layers])
    if violated_tie(problem, best[1]) is None:
        return best
    # Ties: depth first over the options of a tied group that took different ones; what ignores ties is a lower bound.
    found: tuple[int, tuple[int, ...]] | None = None
    stack: list[list[Sequence[int]]] = [[range(len(layer.options)) for layer in problem.layers]]
    while stack:
        allowed = stack.pop()
        relaxed = _smallest_relaxed(problem, allowed)
        if found is not None and relaxed[0] >= found[0]:
            continue
        group = violated_tie(problem, relaxed[1])
        if group is None:
            found = relaxed
            continue
        for number in reversed(allowed[group[0]]):
            stack.append([[number] if row in group else each for row, each in enumerate(allowed)])
    assert found is not None, "each group of ties has a common option"
    return found


def violated_tie(problem: Problem, choice: Sequence[int]) -> tuple[int, ...] | None:
    """The first group of tied layers that do not take the same option."""
    return next((group for group in problem.ties() if len({choice[number] for number in group}) > 1), None)


def _smallest_relaxed(problem: Problem, allowed: Sequence[Sequence[int]]) -> tuple[int, tuple[int, ...]]:
    """The smallest peak where each layer may take the options allowed to it, ties aside."""
    rest_bytes: int | None = None
    choice = []
    for layer, numbers in zip(reversed(problem.layers), reversed(allowed), strict=True):
        over_bytes = layer.after_bytes if rest_bytes is None else max(layer.after_bytes, rest_bytes)
        options = ((number, layer.options[number]) for number in numbers)
        reached = [
            (max(option.need_bytes, option.kept_bytes + over_bytes), option.time_s, number)
            for number, option in options
        ]
        rest_bytes, _, number = min(reached)
        choice.append(number)
    peak_bytes = problem.floor_bytes if rest_bytes is None else max(problem.floor_bytes, rest_bytes)
    return peak_bytes, tuple(reversed(choice))


def infeasible(problem: Problem, budget_bytes: int) -> InfeasibleBudgetError:
    """The error for a budget below the smallest reachable peak."""
    peak_bytes, choice = smallest_peak(problem)
    return InfeasibleBudgetError(
        f"no plan fits {format_bytes(budget_bytes)} ({budget_bytes} bytes): the smallest peak that any plan is "
        f"predicted to reach is {format_bytes(peak_bytes)} ({peak_bytes} bytes). Raise the budget to that at least, or "
        "offer treatments that keep or need less.",
        smallest_peak_bytes=peak_bytes,
        choice=choice,
    )
