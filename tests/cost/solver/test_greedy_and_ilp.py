"""The greedy solver never lies about its gap; an integer program agrees with the exact solver."""

from __future__ import annotations

import builtins
import random

import pytest

from actune.cost.solver import ProblemError, solve_exact, solve_exhaustive, solve_greedy, solve_ilp
from actune.cost.solver.exhaustive import every_choice
from actune.cost.solver.feasible import smallest_peak
from actune.errors import ActuneError, InfeasibleBudgetError
from tests.cost.solver.problems import budget_between, small_problem, stack_problem


@pytest.mark.parametrize("ties", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("seed", range(60))
def test_the_optimum_is_between_the_greedy_choice_and_its_bound(seed, ties):
    problem = small_problem(random.Random(seed), ties=ties)
    for budget_bytes in sorted({problem.peak_bytes(choice) for choice in every_choice(problem)}):
        optimum = solve_exhaustive(problem, budget_bytes)
        found = solve_greedy(problem, budget_bytes)
        assert found.bound_s <= optimum.time_s <= found.time_s
        assert found.peak_bytes == problem.peak_bytes(found.choice) <= budget_bytes
        assert round(found.time_s * 1e12) == problem.time_ps(found.choice)
        assert all(len({found.choice[number] for number in group}) == 1 for group in problem.ties())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_greedy_is_close_on_a_deep_stack(share):
    problem = stack_problem(random.Random(0), 64)
    budget_bytes = budget_between(problem, share, smallest_peak(problem)[0])
    optimum, found = solve_exact(problem, budget_bytes), solve_greedy(problem, budget_bytes)
    assert found.bound_s <= optimum.time_s <= found.time_s < optimum.time_s * 1.01


def test_greedy_takes_what_is_faster_at_no_cost_first():
    problem = stack_problem(random.Random(0), 8)
    assert solve_greedy(problem, 10**13).time_s == solve_exact(problem, 10**13).time_s


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("kind", [{}, {"after_bytes": [0] * 20}, {"need_spread": 8.0}, {"classes": 2}])
def test_an_integer_program_agrees(kind, share):
    problem = stack_problem(random.Random(5), 20, **kind)
    budget_bytes = budget_between(problem, share, smallest_peak(problem)[0])
    found = solve_ilp(problem, budget_bytes)
    assert found.time_s == pytest.approx(solve_exact(problem, budget_bytes).time_s, rel=1e-6)
    assert found.peak_bytes == problem.peak_bytes(found.choice) <= budget_bytes


@pytest.mark.parametrize("seed", range(12))
def test_an_integer_program_agrees_about_ties(seed):
    problem = small_problem(random.Random(seed), ties=True)
    for budget_bytes in sorted({problem.peak_bytes(choice) for choice in every_choice(problem)})[::2]:
        found = solve_ilp(problem, budget_bytes)
        assert found.time_s == pytest.approx(solve_exhaustive(problem, budget_bytes).time_s, rel=1e-6)
        assert all(len({found.choice[number] for number in group}) == 1 for group in problem.ties())


@pytest.mark.parametrize("solver", [solve_greedy, solve_ilp])
def test_below_the_smallest_peak_there_is_nothing(solver):
    problem = stack_problem(random.Random(0), 8)
    with pytest.raises(InfeasibleBudgetError):
        solver(problem, smallest_peak(problem)[0] - 1)


def test_what_an_integer_program_needs_is_said(monkeypatch):
    problem = stack_problem(random.Random(0), 8)
    with pytest.raises(ProblemError, match="the problem has no layers"):
        solve_ilp(type(problem)((), 0, 0.0), 1)
    imported = builtins.__import__

    def without_scipy(name, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(ActuneError, match="solve_ilp needs scipy, which is not installed: pip install scipy"):
        solve_ilp(problem, 10**13)
