"""Bounds and reduced costs hold for every choice within the budget."""

from __future__ import annotations

import random

import numpy as np
import pytest

from actune.cost.solver.bounds import bounds_for
from actune.cost.solver.exhaustive import every_choice
from actune.cost.solver.menu import menu_of
from actune.cost.solver.problem import picoseconds
from tests.cost.solver.problems import small_problem, stack_problem


def problems():
    for seed in range(40):
        yield small_problem(random.Random(seed))
    for seed, spread in enumerate((1.3, 1.3, 6.0, 6.0)):
        yield stack_problem(random.Random(seed), 3, need_spread=spread)
        yield stack_problem(random.Random(seed), 3, need_spread=spread, after_bytes=[0, 3_000_000_000, 0])


@pytest.mark.parametrize("problem", list(problems()), ids=lambda problem: f"{len(problem.layers)}-layers")
def test_no_choice_is_faster_than_they_say(problem):
    menu = menu_of(problem)
    entry = [
        {menu.number[row, column]: column for column in np.flatnonzero(menu.valid[row])}
        for row in range(len(menu.valid))
    ]
    on_menu = [set(menu.number[row, menu.valid[row]].tolist()) for row in range(len(menu.number))]
    choices = [c for c in every_choice(problem) if all(n in numbers for n, numbers in zip(c, on_menu, strict=True))]
    peaks = sorted({problem.peak_bytes(choice) for choice in choices})
    base_ps = picoseconds(problem.base_time_s)
    for budget_bytes in peaks[:: max(1, len(peaks) // 6)]:
        bounds = bounds_for(menu, budget_bytes)
        assert bounds is not None
        for choice in choices:
            if problem.peak_bytes(choice) > budget_bytes:
                continue
            time_ps = problem.time_ps(choice) - base_ps
            assert time_ps >= bounds.bound_ps - bounds.slack_ps
            kept_bytes, before_ps = 0, 0
            for row, number in enumerate(choice):
                column = entry[row][number]
                assert bounds.possible[row, column]
                assert time_ps >= bounds.priced_ps + bounds.reduced_ps[row, column] - bounds.slack_ps
                assert before_ps >= bounds.before(row, np.array([kept_bytes]))[0] - bounds.slack_ps
                kept_bytes += problem.layers[row].options[number].kept_bytes
                before_ps += picoseconds(problem.layers[row].options[number].time_s)


def test_an_option_that_needs_less_stays_on_the_menu():
    problem = stack_problem(random.Random(0), 1)
    options = problem.layers[0].options
    menu = menu_of(problem)
    for number, option in enumerate(options):
        beaten = any(
            other.kept_bytes <= option.kept_bytes
            and other.need_bytes <= option.need_bytes
            and other.time_s <= option.time_s
            for other in options
            if other is not option
        )
        assert (number in menu.number[0, menu.valid[0]]) is not beaten
