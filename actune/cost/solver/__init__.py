"""Solvers for the best choice of treatments under a budget: exact, greedy, and two to check them with."""

from actune.cost.solver.exact import solve_exact
from actune.cost.solver.exhaustive import solve_exhaustive
from actune.cost.solver.frontier import solve_frontier
from actune.cost.solver.greedy import solve_greedy
from actune.cost.solver.ilp import solve_ilp
from actune.cost.solver.problem import LayerChoices, Option, Problem, ProblemError, Solution

__all__ = [
    "LayerChoices",
    "Option",
    "Problem",
    "ProblemError",
    "Solution",
    "solve_exact",
    "solve_exhaustive",
    "solve_frontier",
    "solve_greedy",
    "solve_ilp",
]
