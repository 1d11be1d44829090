"""The problem as a mixed-integer program for HiGHS: a check of the exact solver by one that knows nothing of it."""

from __future__ import annotations

import itertools
from collections import defaultdict

from actune.cost.solver.feasible import infeasible, smallest_peak
from actune.cost.solver.problem import PS_PER_S, Problem, ProblemError, Solution
from actune.errors import ActuneError

# HiGHS takes a row as met that is missed by 1e-6: in units of this many bytes that is less than a byte.
BYTES_PER_UNIT = 2**18


def solve_ilp(problem: Problem, budget_bytes: int, *, limit_s: float | None = None) -> Solution:
    """The fastest choice within the budget, to the tolerances of HiGHS (a microsecond, some bytes).

    One variable for each option, one for the sum kept up to each layer.

    Args:
        limit_s: stop after so long, with the best choice so far and its bound.

    Raises:
        ActuneError: scipy is not installed, or HiGHS found no choice.
        InfeasibleBudgetError: no choice is within the budget.
    """
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError as error:
        raise ActuneError("solve_ilp needs scipy, which is not installed: pip install scipy.") from error
    if not problem.layers:
        raise ProblemError("the problem has no layers; solve_ilp expects one at least.")
    if smallest_peak(problem)[0] > budget_bytes:
        raise infeasible(problem, budget_bytes)

    starts = [0, *itertools.accumulate(len(layer.options) for layer in problem.layers)]
    count, layer_count = starts[-1], len(problem.layers)
    rows: defaultdict[int, dict[int, float]] = defaultdict(dict)
    lower: list[float] = []
    upper: list[float] = []

    def add_row(entries: dict[int, float], low: float, high: float) -> None:
        rows[len(lower)] = entries
        lower.append(low)
        upper.append(high)

    def kept_before(number: int) -> dict[int, float]:
        return {count + number - 1: 1.0} if number else {}

    budget = budget_bytes / BYTES_PER_UNIT
    for number, layer in enumerate(problem.layers):
        variables = range(starts[number], starts[number + 1])
        options = list(zip(variables, layer.options, strict=True))
        add_row(dict.fromkeys(variables, 1.0), 1, 1)
        kept = {variable: option.kept_bytes / BYTES_PER_UNIT for variable, option in options}
        add_row({**kept, **kept_before(number), count + number: -1.0}, 0, 0)
        need = {variable: option.need_bytes / BYTES_PER_UNIT for variable, option in options}
        add_row({**need, **kept_before(number)}, -np.inf, budget)
        add_row({count + number: 1.0}, -np.inf, budget - layer.after_bytes / BYTES_PER_UNIT)
    for group in problem.ties():
        for one, other in itertools.pairwise(group):
            for option in range(len(problem.layers[one].options)):
                add_row({starts[one] + option: 1.0, starts[other] + option: -1.0}, 0, 0)

    entries = [(row, column, value) for row, columns in rows.items() for column, value in columns.items()]
    row_numbers, columns, values = zip(*entries, strict=True)
    matrix = coo_array((values, (row_numbers, columns)), shape=(len(lower), count + layer_count)).tocsr()
    times_s = [option.time_s for layer in problem.layers for option in layer.options]
    result = milp(
        np.array(times_s + [0.0] * layer_count),
        integrality=[1] * count + [0] * layer_count,
        bounds=Bounds([0.0] * count + [-np.inf] * layer_count, [1.0] * count + [np.inf] * layer_count),
        constraints=LinearConstraint(matrix, lower, upper),
        options={"mip_rel_gap": 0.0, **({} if limit_s is None else {"time_limit": limit_s})},
    )
    if result.x is None:
        raise ActuneError(f"HiGHS found no choice: {result.message}")
    choice = tuple(int(np.argmax(result.x[start:end])) for start, end in itertools.pairwise(starts))
    time_s = problem.time_ps(choice) / PS_PER_S
    bound_s = min(time_s, problem.base_time_s + float(result.mip_dual_bound))
    return Solution(choice, problem.peak_bytes(choice), time_s, bound_s, "ilp")
