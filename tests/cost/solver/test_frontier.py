"""The frontier against every choice tried."""

from __future__ import annotations

import random

import pytest

from actune.cost.solver import ProblemError, solve_exact, solve_frontier
from actune.cost.solver import frontier as frontier_module
from actune.cost.solver.exhaustive import every_choice
from actune.errors import InfeasibleBudgetError
from tests.cost.solver.problems import small_problem, stack_problem


def non_dominated(problem):
    """Peaks and times of all choices that none beats in both."""
    fastest = {}
    for choice in every_choice(problem):
        peak_bytes = problem.peak_bytes(choice)
        fastest[peak_bytes] = min(problem.time_ps(choice), fastest.get(peak_bytes, 2**63))
    points = sorted(fastest.items())
    return [(peak, time / 1e12) for peak, time in points if all(other[1] > time for other in points if other[0] < peak)]


def points_of(solutions):
    return [(solution.peak_bytes, solution.time_s) for solution in solutions]


@pytest.mark.parametrize("ties", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("seed", range(80))
def test_all_points(seed, ties):
    problem = small_problem(random.Random(seed), ties=ties)
    found = solve_frontier(problem, points=None)
    assert points_of(found) == non_dominated(problem)
    for solution in found:
        assert problem.peak_bytes(solution.choice) == solution.peak_bytes
        assert all(len({solution.choice[number] for number in group}) == 1 for group in problem.ties())


@pytest.mark.parametrize("ties", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("seed", range(40))
def test_budget_by_budget_is_the_same_as_all_at_once(seed, ties, monkeypatch):
    problem = small_problem(random.Random(seed), ties=ties)
    truth = non_dominated(problem)
    at_once = points_of(solve_frontier(problem, points=4))
    monkeypatch.setattr(frontier_module, "TRIED_LABELS", 0)
    monkeypatch.setattr(frontier_module, "TRIED_TIES", 0)
    one_by_one = points_of(solve_frontier(problem, points=4))
    assert set(one_by_one) <= set(truth)
    assert (one_by_one[0], one_by_one[-1]) == (truth[0], truth[-1])
    assert len(one_by_one) <= 4
    if len(truth) > 4:
        assert one_by_one == at_once


def test_points_of_a_stack_are_optima_of_budgets_from_end_to_end():
    problem = stack_problem(random.Random(3), 24)
    whole = points_of(solve_frontier(problem, points=None))
    found = solve_frontier(problem, points=20)
    assert len(whole) > 20 >= len(found) > 10
    assert set(points_of(found)) <= set(whole)
    assert points_of(found)[0] == whole[0]
    assert points_of(found)[-1] == whole[-1]
    assert points_of(solve_exact(problem, each.peak_bytes) for each in found) == points_of(found)


@pytest.mark.parametrize("tried_labels", [20_000, 0], ids=["at-once", "one-by-one"])
def test_between_two_budgets(tried_labels, monkeypatch):
    monkeypatch.setattr(frontier_module, "TRIED_LABELS", tried_labels)
    problem = stack_problem(random.Random(3), 16)
    whole = solve_frontier(problem, points=None)
    low, high = whole[len(whole) // 3].peak_bytes + 1, whole[len(whole) // 2].peak_bytes + 1
    found = solve_frontier(problem, points=9, lowest_bytes=low, highest_bytes=high)
    assert found[0] == solve_exact(problem, low)
    assert points_of(found[-1:]) == points_of(whole[len(whole) // 2 :][:1])
    assert set(points_of(found)) <= set(points_of(whole))


def test_what_can_not_be_had_is_said(monkeypatch):
    problem = stack_problem(random.Random(3), 16)
    with pytest.raises(ProblemError, match="a frontier of 1 points was asked for"):
        solve_frontier(problem, points=1)
    with pytest.raises(InfeasibleBudgetError):
        solve_frontier(problem, highest_bytes=10**9)
    monkeypatch.setattr(frontier_module, "MOST_LABELS", 100)
    with pytest.raises(ProblemError, match="more than 100 labels at a layer; ask for a number of points"):
        solve_frontier(problem, points=None)
