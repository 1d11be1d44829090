"""Tables for people: what the best plan beats, and whether that is more than noise."""

from actune.cli.render import render_study
from actune.plan import Plan, dump_plan


def entry(plan, relative, low, high, outcome="ok"):
    return {
        "plan": plan,
        "plan_hash": plan,
        "outcome": outcome,
        "peak_bytes": 2**20,
        "step_time_s": None if relative is None else 0.1 * relative,
        "relative_step_time": relative,
        "relative_step_time_low": low,
        "relative_step_time_high": high,
    }


def test_what_the_best_plan_beats(capsys):
    best = entry("trial 4", 0.9, 0.88, 0.93) | {
        "trial": 4,
        "plan_toml": dump_plan(Plan()),
        "gradients_equal": True,
        "gradients_bitwise": True,
    }
    document = {
        "study": "s",
        "target": "t",
        "device": "cpu",
        "budget_bytes": 2**21,
        "best": best,
        "trials": [],
        "presets": [
            entry("full", 1.0, 1.0, 1.0),
            entry("sac", 0.92, 0.9, 1.1),
            entry("none", 0.72, 0.7, 0.75, outcome="over_budget"),
            entry("split", None, None, None, outcome="crashed"),
        ],
        "reference": "full",
        "finished": True,
    }
    render_study(document)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "10.0% faster than full" in lines
    assert "2.2% faster than sac (the intervals overlap)" in lines
    assert "25.0% slower than none, which is over the budget" in lines
    assert not any("than split" in line for line in lines)
