"""Tables for people: what the best plan beats, and whether that is more than noise."""

import pytest

from actune.cli.render import render_study
from actune.plan import Plan, dump_plan


def entry(plan, relative, low, high, outcome="ok"):
    return {
        "plan": plan,
        "plan_hash": plan,
        "outcome": outcome,
        "peak_bytes": 2**20,
        "predicted_peak_bytes": None,
        "predicted_step_time_s": None,
        "predicted_relative_step_time": None,
        "step_time_s": None if relative is None else 0.1 * relative,
        "relative_step_time": relative,
        "relative_step_time_low": low,
        "relative_step_time_high": high,
    }


def study(**changes):
    document = {
        "study": "s",
        "target": "t",
        "device": "cpu",
        "budget_bytes": 2**21,
        "best": None,
        "trials": [],
        "presets": [],
        "reference": "full",
        "largest_peak_error": None,
        "finished": True,
        "budgets": [],
        "certificate": None,
        "stopped": None,
        "tolerance": 0.01,
    }
    return document | changes


@pytest.mark.parametrize(
    ("equal", "bitwise", "line"),
    [
        (True, True, "loss and gradients equal to the run without AC, bitwise"),
        (True, False, "loss and gradients equal to the run without AC, within rounding"),
        (None, None, "loss and gradients not compared: simulated"),
    ],
)
def test_what_is_known_of_gradients(equal, bitwise, line, capsys):
    known = {
        "trial": 4,
        "plan_toml": dump_plan(Plan()),
        "gradients_equal": equal,
        "gradients_bitwise": bitwise,
        "peak_steps": 8,
    }
    render_study(study(best=entry("trial 4", 0.9, 0.88, 0.93) | known))
    assert line in " ".join(capsys.readouterr().out.split())


def test_what_the_best_plan_beats(capsys):
    best = entry("trial 4", 0.9, 0.88, 0.93) | {
        "trial": 4,
        "plan_toml": dump_plan(Plan()),
        "gradients_equal": True,
        "gradients_bitwise": True,
        "peak_steps": 0,
    }
    presets = [
        entry("full", 1.0, 1.0, 1.0),
        entry("sac", 0.92, 0.9, 1.1),
        entry("none", 0.72, 0.7, 0.75, outcome="over_budget"),
        entry("split", None, None, None, outcome="crashed"),
    ]
    render_study(study(best=best, presets=presets))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "10.0% faster than full" in lines
    assert "2.2% faster than sac (the intervals overlap)" in lines
    assert "25.0% slower than none, which is over the budget" in lines
    assert not any("than split" in line for line in lines)
    assert not any("predicted" in line for line in lines)


def test_predictions_beside_measurements_and_presets_that_did_not_run(capsys):
    measured = {
        "number": 0,
        "state": "complete",
        "lost_race": False,
        "predicted_peak_bytes": 2**20,
        "predicted_relative_step_time": 0.98765,
    }
    over, no_room = ({"peak_bytes": None, "predicted_peak_bytes": peak} for peak in (2**22, None))
    presets = [
        entry("full", 1.0, None, None),
        entry("none", None, None, None, outcome=None) | over,
        entry("split", None, None, None, outcome=None) | no_room,
    ]
    trials = [entry("full", 1.0, None, None) | measured]
    render_study(study(trials=trials, presets=presets, largest_peak_error=0.00123))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "0 full complete ok 1.0 MiB 1.0 MiB 100.0 ms 1.000 0.988" in lines
    assert "largest error of a predicted peak so far: 0.123%" in lines
    assert "none not run: predicted over the budget – 4.0 MiB – – – –" in lines
    assert "split not run: a treatment of it can't be had – – – – – –" in lines


def decided(**changes):
    best = entry("trial 4", 0.9, 0.88, 0.93)
    best |= {"trial": 4, "plan_toml": dump_plan(Plan()), "gradients_equal": True, "gradients_bitwise": True}
    certificate = {"bound_relative_step_time": 0.88, "possible_gain": 0.004, "gap": 0.9 / 0.88 - 1}
    return study(best=best | {"peak_steps": 8}, certificate=certificate, stopped="tolerance") | changes


@pytest.mark.parametrize(
    ("stopped", "line"),
    [
        ("tolerance", "with 90% confidence no plan of the space is faster than the best by more than 1.0%"),
        ("exhausted", "every plan that may be the best was measured, or is predicted over the budget"),
        ("trials", "stopped after 0 trials, as many as --trials allows"),
        ("timeout", "stopped after 0 trials by --timeout"),
    ],
)
def test_why_it_stopped_and_how_far_from_the_optimum_it_may_be(stopped, line, capsys):
    render_study(decided(stopped=stopped))
    text = " ".join(capsys.readouterr().out.split())
    assert line in text
    assert "certificate: best 0.900 × full, lower bound 0.880, gap 2.3%" in text
    assert "peak 1.0 MiB, the highest of 8 steps, each on another batch" in text


def test_the_best_within_each_budget(capsys):
    document = decided()
    none = {"budget_bytes": 2**19, "best": None, "certificate": None}
    budgets = [{"budget_bytes": 2**21, "best": document["best"], "certificate": document["certificate"]}, none]
    render_study(document | {"budgets": budgets})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "study s: target t on cpu, budget 2.0 MiB, 512.0 KiB" in lines
    assert "2.0 MiB trial 4 1.0 MiB 90.0 ms 0.900 0.880 2.3%" in lines
    assert "512.0 KiB no plan fits – – – – –" in lines


def test_a_trial_that_lost_its_race_says_so(capsys):
    lost = entry("sac", 1.2, None, None) | {"number": 0, "state": "complete", "lost_race": True}
    render_study(study(trials=[lost]))
    assert "0 sac complete ok, slower" in " ".join(capsys.readouterr().out.split())
