"""What makes a problem, and what a choice costs in it."""

from __future__ import annotations

import math

import pytest

from actune.cost.solver import LayerChoices, Option, Problem, ProblemError, Solution

KEEP, DROP = Option(10, 30, 1.0), Option(2, 35, 1.5)
PROBLEM = Problem((LayerChoices((KEEP, DROP), 1), LayerChoices((KEEP, DROP), 40)), 20, 0.25)


@pytest.mark.parametrize(
    ("choice", "peak_bytes"),
    [
        ((0, 0), 60),  # both kept, and what the loss holds
        ((0, 1), 52),
        ((1, 0), 52),
        ((1, 1), 44),
    ],
)
def test_peak_by_hand(choice, peak_bytes):
    assert PROBLEM.peak_bytes(choice) == peak_bytes


def test_the_need_of_a_layer_is_over_what_the_layers_before_it_keep():
    problem = Problem((LayerChoices((KEEP,), 0), LayerChoices((KEEP, DROP), 0)), 0, 0.0)
    assert problem.peak_bytes((0, 0)) == 10 + 30
    assert problem.peak_bytes((0, 1)) == 10 + 35


def test_no_choice_is_below_the_floor():
    assert Problem((LayerChoices((KEEP,), 0),), 1000, 0.0).peak_bytes((0,)) == 1000


def test_times_add_up_to_the_picosecond_in_any_order():
    times_s = [0.1, 1e-12, 123.456, 0.2]
    options = [LayerChoices((Option(0, 0, time_s),), 0) for time_s in times_s]
    assert Problem(tuple(options), 0, 0.3).time_ps((0,) * 4) == 124_056_000_000_001
    assert Problem(tuple(reversed(options)), 0, 0.3).time_ps((0,) * 4) == 124_056_000_000_001


def test_the_gap_is_relative_to_the_bound():
    assert Solution((0,), 1, 1.1, 1.0, "greedy").gap == pytest.approx(0.1)
    assert Solution((0,), 1, 1.0, 1.0, "exact").gap == 0
    assert Solution((0,), 1, 1.0, 0.0, "greedy").gap == math.inf


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Option(0, 0, -1.0), "time_s of an option is -1.0"),
        (lambda: Option(0, 0, math.nan), "time_s of an option is nan"),
        (lambda: Option(0, 0, math.inf), "time_s of an option is inf"),
        (lambda: Option(2**50, 0, 0.0), "kept_bytes of an option is 1125899906842624"),
        (lambda: Option(0, -(2**50), 0.0), "need_bytes of an option is -1125899906842624"),
        (lambda: LayerChoices((), 0), "a layer has no options"),
        (lambda: LayerChoices((KEEP,), 2**50), "after_bytes of a layer"),
        (lambda: Problem((), 0, -1.0), "base_time_s is -1.0"),
        (lambda: Problem((), 2**63, 0.0), "floor_bytes is 9223372036854775808"),
        (lambda: Problem((LayerChoices((Option(2**49, 0, 0.0),), 0),) * 2, 0, 0.0), "may keep 1125899906842624 bytes"),
        (
            lambda: Problem((LayerChoices((KEEP,), 0, "a"), LayerChoices((KEEP, DROP), 0, "a")), 0, 0.0),
            "layer 1 is tied to 'a' and has 2 options where another one of that tie has 1",
        ),
    ],
)
def test_what_makes_no_problem_is_said(make, said):
    with pytest.raises(ProblemError, match=said):
        make()
