"""The exact solver against the truth: every choice tried, and larger problems against a solver of another kind."""

from __future__ import annotations

import random

import pytest

from actune.cost.solver import LayerChoices, Option, Problem, ProblemError, solve_exact, solve_exhaustive
from actune.cost.solver import exact as exact_module
from actune.cost.solver.exhaustive import every_choice
from actune.cost.solver.feasible import smallest_peak
from actune.errors import InfeasibleBudgetError
from tests.cost.solver.problems import budget_between, small_problem, stack_problem


def peaks_of(problem):
    return sorted({problem.peak_bytes(choice) for choice in every_choice(problem)})


@pytest.mark.parametrize("ties", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("seed", range(120))
def test_the_optimum_at_every_budget_that_makes_a_difference(seed, ties):
    problem = small_problem(random.Random(seed), ties=ties)
    for budget_bytes in peaks_of(problem):
        truth = solve_exhaustive(problem, budget_bytes)
        found = solve_exact(problem, budget_bytes)
        assert (found.time_s, found.peak_bytes) == (truth.time_s, truth.peak_bytes)
        assert found.bound_s == found.time_s
        assert problem.peak_bytes(found.choice) == found.peak_bytes
        assert problem.time_ps(found.choice) == problem.time_ps(truth.choice)
        for group in problem.ties():
            assert len({found.choice[number] for number in group}) == 1


@pytest.mark.parametrize("ties", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("seed", range(60))
def test_below_the_smallest_peak_there_is_nothing(seed, ties):
    problem = small_problem(random.Random(seed), ties=ties)
    lowest_bytes = peaks_of(problem)[0]
    for solver in (solve_exact, solve_exhaustive):
        with pytest.raises(InfeasibleBudgetError) as raised:
            solver(problem, lowest_bytes - 1)
        assert raised.value.smallest_peak_bytes == lowest_bytes
        assert problem.peak_bytes(raised.value.choice) == lowest_bytes
        assert raised.value.exit_code == 3


def test_the_smallest_peak_is_not_that_of_keeping_least():
    little, more = Option(0, 100, 1.0), Option(10, 50, 1.0)
    problem = Problem((LayerChoices((little, more), 0), LayerChoices((more,), 0)), 0, 0.0)
    assert smallest_peak(problem) == (60, (1, 0))


def test_the_message_gives_sizes_for_people():
    problem = Problem((LayerChoices((Option(0, 3 * 2**20, 1.0),), 0),), 0, 0.0)
    with pytest.raises(InfeasibleBudgetError, match=r"no plan fits 1\.0 MiB .* is 3\.0 MiB \(3145728 bytes\)"):
        solve_exact(problem, 2**20)


def test_no_layers():
    assert solve_exact(Problem((), 5, 0.5), 5).choice == ()
    with pytest.raises(InfeasibleBudgetError):
        solve_exact(Problem((), 5, 0.5), 4)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.7])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"after_bytes": [0] * 12},  # the needs of the last layers bind
        {"after_bytes": [0] * 5 + [20_000_000_000] + [0] * 6},  # the middle binds
        {"need_spread": 15.0},  # needs bind in many places
        {"classes": 1},
        {"classes": 3},
    ],
    ids=["loss", "needs", "middle", "spread-needs", "one-class", "three-classes"],
)
def test_twelve_layers_against_all_labels(kind, share):
    """The whole frontier is found without budgets, bounds and prices, so it can tell what they got wrong."""
    from actune.cost.solver import solve_frontier

    problem = stack_problem(random.Random(1), 12, **kind)
    frontier = solve_frontier(problem, points=None)
    budget_bytes = budget_between(problem, share, frontier[0].peak_bytes)
    truth = [solution for solution in frontier if solution.peak_bytes <= budget_bytes][-1]
    found = solve_exact(problem, budget_bytes)
    assert (found.time_s, found.peak_bytes) == (truth.time_s, truth.peak_bytes)


@pytest.mark.parametrize("seed", range(3))
def test_many_layers_come_close_to_their_bound(seed):
    """With 96 different layers the LP is nearly tight, so a solver that stops early shows here."""
    problem = stack_problem(random.Random(seed), 96)
    budget_bytes = budget_between(problem, 0.4, smallest_peak(problem)[0])
    found = solve_exact(problem, budget_bytes)
    assert found.bound_s == found.time_s
    assert found.peak_bytes <= budget_bytes == budget_between(problem, 0.4, smallest_peak(problem)[0])
    lp_s = exact_module.bounds_for(exact_module.menu_of(problem), budget_bytes).bound_ps / 1e12 + problem.base_time_s
    assert lp_s <= found.time_s < lp_s * 1.0005


def test_running_out_of_labels_is_told_by_the_bound(monkeypatch):
    """Times proportional to bytes: all choices that keep as much are equally good, and no bound tells them apart."""
    monkeypatch.setattr(exact_module, "WIDTH", 4)
    monkeypatch.setattr(exact_module, "MANY_LABELS", 16)
    monkeypatch.setattr(exact_module, "MOST_LABELS", 64)
    rng = random.Random(0)
    layers = []
    for _ in range(40):
        sizes = [rng.randint(10**8, 10**9) for _ in range(4)]
        layers.append(LayerChoices(tuple(Option(size, size, (10**9 - size) * 1e-12) for size in sizes), 0))
    problem = Problem(tuple(layers), 0, 0.0)
    budget_bytes = budget_between(problem, 0.5, smallest_peak(problem)[0])
    found = solve_exact(problem, budget_bytes)
    assert found.bound_s < found.time_s
    assert 0 < found.gap < 1e-3
    assert problem.peak_bytes(found.choice) == found.peak_bytes <= budget_bytes


def test_too_many_choices_to_try():
    problem = stack_problem(random.Random(0), 12)
    with pytest.raises(ProblemError, match=r"6\.87e\+10 choices; trying each of them expects 2000000 at most"):
        solve_exhaustive(problem, 10**12)
