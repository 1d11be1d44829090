"""Tables for people: what the best plan beats, and whether that is more than noise."""

import pytest

from actune.cli.render import render_study
from actune.plan import Plan, dump_plan
from actune.search.advice import CONFIDENCE

CLAIM = f"{CONFIDENCE:.0%} confidence no plan of the space is faster than the best"


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
        ("tolerance", f"stopped after 0 trials: with {CLAIM} by more than 1%"),
        (
            "exhausted",
            f"every plan that may be the best was measured, or is predicted to be over the budget; with {CLAIM}",
        ),
        ("trials", f"stopped after 0 trials, as many as --trials allows; with {CLAIM} by more than 0.4%"),
        ("timeout", f"stopped after 0 trials, as --timeout had passed; with {CLAIM} by more than 0.4%"),
    ],
)
def test_why_it_stopped_and_how_far_from_the_optimum_it_may_be(stopped, line, capsys):
    render_study(decided(stopped=stopped))
    text = " ".join(capsys.readouterr().out.split())
    assert line in text
    assert (
        "the best takes 0.900 × full's step time, and by the corrected model no plan that fits takes less than "
        "0.880 ×: a gap of 2.3%" in text
    )
    assert "peak 1.0 MiB, the highest of 8 steps, each on another batch" in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"finished": False, "best": None}, "no verdict yet: the study has not ended; `actune resume s` goes on"),
        ({"finished": False}, "there are trials since this comparison, and the study has not ended"),
        (
            {"best": None, "stopped": "exhausted"},
            "no best plan stopped after 0 trials: every plan that may be the best",
        ),
        ({"certificate": None, "stopped": "exhausted"}, "or is predicted to be over the budget best: trial 4"),
    ],
)
def test_what_is_said_where_something_is_missing(changes, line, capsys):
    render_study(decided(**changes))
    text = " ".join(capsys.readouterr().out.split())
    assert line in text
    assert ("a gap of" in text) == (not changes.keys() & {"finished", "best", "certificate"})


def test_verdict_of_a_study_from_before_there_was_a_reason(capsys):
    render_study(decided(stopped=None, certificate=None))
    text = capsys.readouterr().out
    assert "stopped" not in text
    assert "not ended" not in text


def test_the_best_within_each_budget(capsys):
    document = decided()
    certificate = document["certificate"]
    smaller = document["best"] | {"plan": "trial 2", "plan_hash": "two", "relative_step_time": 0.95}
    budgets = [
        {"budget": "70%", "budget_bytes": 2**21, "best": document["best"], "certificate": certificate},
        {"budget": None, "budget_bytes": 2**20, "best": smaller, "certificate": None},
        {"budget": "20%", "budget_bytes": 2**19, "best": None, "certificate": certificate | {"gap": None}},
    ]
    trials = [entry(f"trial {n}", 0.9, None, None) | {"number": n, "state": "complete"} for n in (1, 2, 4)]
    trials = [trial | {"lost_race": False} for trial in trials]
    trials[1]["plan_hash"] = "two"
    presets = [entry("sac", 0.95, None, None) | {"plan_hash": "two"}]
    render_study(document | {"budgets": budgets, "trials": trials, "presets": presets})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "study s: target t on cpu, budgets 2.0 MiB, 1.0 MiB, 512.0 KiB" in lines
    assert "70% (2.0 MiB) trial 4 1.0 MiB 90.0 ms 0.900 0.880 2.3%" in lines
    assert "1.0 MiB trial 2 (sac) 1.0 MiB 90.0 ms 0.950 – –" in lines
    assert "20% (512.0 KiB) no plan fits – – – 0.880 –" in lines
    rows = [line.split(" complete ")[0] for line in lines if " complete " in line]
    assert rows == ["1 trial 1", "2 * two (sac)", "4 * trial 4"]
    assert "trial 2 (sac) ok 1.0 MiB 90.0 ms 0.950 0.880–0.930" in lines  # compared too
    assert "no plan of the space is faster than the best of its budget by more than 1%" in " ".join(lines)
    assert any("actune export s --budget 70% -o plan.toml" in line for line in lines)


def test_a_trial_that_lost_its_race_says_so(capsys):
    lost = entry("sac", 1.2, None, None) | {"number": 0, "state": "complete", "lost_race": True}
    render_study(study(trials=[lost]))
    text = " ".join(capsys.readouterr().out.split())
    assert "0 sac complete ok, slower" in text
    assert "slower: clearly slower than the best, so timing stopped after a few pairs" in text


def test_a_preset_that_is_the_best_plan_under_another_name(capsys):
    document = decided()
    greedy = entry("greedy", 0.9, 0.88, 0.93) | {"plan_hash": document["best"]["plan_hash"]}
    render_study(document | {"presets": [entry("full", 1.0, 1.0, 1.0), greedy]})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "the same plan as greedy" in lines
    assert any(line.startswith("trial 4 (greedy)") for line in lines)
    assert "10.0% faster than full" in lines
