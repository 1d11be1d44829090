"""`actune frontier`: predicted of a target, predicted and measured of a study; as a document, a table and a picture."""

import sys

import pytest

from actune.cli.plot import draw_frontier
from actune.cli.render_predictions import ROWS, render_frontier
from tests.cli.conftest import SOUND
from tests.cli.test_search import PLAN_KEYS


def test_frontier_of_a_target(actune, tmp_path):
    ended = actune(
        *("frontier", "--target", SOUND, "--points", 20, "--budget", "70%", "--json"),
        *("--plot", "frontier.svg", "-o", "plan.toml"),
    )
    assert ended.code == 0, ended.err
    document = ended.document
    assert {"target", "device", "space", "reference", "budgets", "points"} <= document.keys()
    assert (document["target"], document["device"], document["space"], document["reference"]) == (
        *(SOUND, "cpu", "dense"),
        "full",
    )
    points = document["points"]
    assert all(point.keys() >= PLAN_KEYS | {"on_frontier", "preset", "plan_toml"} for point in points)
    presets = {point["preset"]: point for point in points if point["preset"] is not None}
    assert {"full", "none", "sac"} <= presets.keys()
    frontier = [point for point in points if point["on_frontier"] == "predicted"]
    peaks = [point["predicted_peak_bytes"] for point in frontier]
    times = [point["predicted_step_time_s"] for point in frontier]
    assert peaks == sorted(peaks)
    assert times == sorted(times, reverse=True)
    (found,) = document["budgets"]
    assert found["budget_bytes"] == int(presets["none"]["predicted_peak_bytes"] * 0.7)
    assert found["best"]["predicted_peak_bytes"] <= found["budget_bytes"]
    assert (tmp_path / "plan.toml").read_text() == found["best"]["plan_toml"]
    assert "</svg>" in (tmp_path / "frontier.svg").read_text()


def test_budget_that_no_plan_is_predicted_to_fit(actune, tmp_path):
    (tmp_path / "space.yaml").write_text("schema: 1\npresets: [full]\nmenu:\n- policy: none\n- policy: full\n")
    options = ("--space", "space.yaml", "--points", 2, "--budget", "1KB", "-o", "plan.toml", "--json")
    ended = actune("frontier", "--target", SOUND, *options)
    assert ended.code == 3
    (found,) = ended.document["budgets"]
    assert found["best"] is None
    assert found["smallest_peak_bytes"] > 1000
    assert f"smallest predicted peak is {found['smallest_peak_bytes']} bytes" in ended.err
    assert not (tmp_path / "plan.toml").exists()


def test_frontier_of_a_study_reads_the_store_alone(study, tmp_path):
    ended = study("frontier", "sound", "--json", "--plot", "sound.png")
    assert ended.code == 0, ended.err
    assert "loading" not in ended.err
    shown = study("show", "sound", "--json").document
    document = ended.document
    assert (document["study"], document["budget_bytes"]) == ("sound", shown["budget_bytes"])
    measured = {point["plan_hash"] for point in document["points"] if point["outcome"] is not None}
    assert measured == {trial["plan_hash"] for trial in shown["trials"]}
    assert any(point["on_frontier"] in ("measured", "both") for point in document["points"])
    assert (tmp_path / "sound.png").read_bytes().startswith(b"\x89PNG")
    assert "full" in study("frontier", "sound").out


def point(number, **changes):
    plan_toml = "schema = 1\n" if number % 2 else 'schema = 1\ncompile = "layer"\n'
    values = {
        "plan": f"plan-{number}",
        "plan_hash": f"{number:016x}",
        "outcome": None,
        "peak_bytes": None,
        "predicted_peak_bytes": (number + 1) * 2**20,
        "step_time_s": None,
        "predicted_step_time_s": 1.0 - number / 100,
        "relative_step_time": None,
        "predicted_relative_step_time": 1.0 - number / 100,
        "preset": None,
        "plan_toml": plan_toml,
        "on_frontier": "predicted",
        "layers": {"full": 3, "none": 1},
    }
    return values | changes


def test_table_has_all_presets_and_a_readable_number_of_others(capsys):
    points = [point(number) for number in range(50)]
    points[17] |= {"plan": "sac", "preset": "sac", "on_frontier": None}
    best = point(3) | {"plan_hash": "feed", "plan_toml": 'schema = 1\n[[rule]]\nlayers = ["*"]\npolicy = "full"\n'}
    found = {"budget": "60%", "budget_bytes": 2**22, "best": best, "smallest_peak_bytes": None}
    document = {
        "target": "t",
        "device": "sim:tiny",
        "device_total_bytes": 2**25,
        "reference": "full",
        "budgets": [found],
        "points": points,
    }
    render_frontier(document)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line.startswith(("plan-", "sac "))]
    assert len(rows) == ROWS
    assert rows[0] == "plan-0 predicted 1.0 MiB 1.00 s 1.000 3 full, 1 none; compile=layer"
    assert rows[-1] == "plan-49 predicted 50.0 MiB 510.0 ms 0.510 3 full, 1 none"
    assert "sac – 18.0 MiB 830.0 ms 0.830 3 full, 1 none" in rows
    assert f"{ROWS} of 50 plans; --json has all of them" in lines
    assert "sim:tiny has 32.0 MiB: plans with a larger peak don't run on it" in lines
    assert "best within 60% (4.0 MiB): feed, peak 4.0 MiB, step time 970.0 ms" in lines


def test_table_of_a_study_tells_what_has_no_room_from_what_was_not_predicted(capsys):
    unknown = {"predicted_peak_bytes": None, "predicted_step_time_s": None, "predicted_relative_step_time": None}
    measured = {"outcome": "over_budget", "peak_bytes": 2**20, "on_frontier": None}
    points = [point(1, **unknown, **measured), point(2, **unknown, preset="none", on_frontier=None)]
    points.append(point(3, plan="trial 7", preset="greedy"))
    budgets = {"budget_bytes": 2**19, "budgets_bytes": [2**19, 2**18]}
    render_frontier({"study": "s", **budgets, "reference": "full", "points": points})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "plan-1 – – – – ≥ 1.0 MiB – 3 full, 1 none"
    assert lines[2] == "plan-2 (none) – can't run – – – – 3 full, 1 none; compile=layer"
    assert lines[3].startswith("trial 7 (greedy) predicted 4.0 MiB")
    assert lines[-1] == "budgets of the study: 512.0 KiB, 256.0 KiB"


def test_table_of_a_study_without_anything(capsys):
    render_frontier({"study": "s", "budget_bytes": None, "budgets_bytes": [], "reference": None, "points": []})
    assert capsys.readouterr().out == "nothing was predicted or measured yet\n"


def test_the_same_points_make_the_same_picture(tmp_path):
    measured = {"outcome": "ok", "peak_bytes": 2**21, "relative_step_time": 0.9, "on_frontier": "both"}
    no_room = {"preset": "none", "predicted_peak_bytes": None, "predicted_relative_step_time": None}
    points = [point(0, preset="full"), point(1, **measured), point(2, **no_room)]
    pictures = []
    for name in ("a.svg", "b.svg"):
        options = {"title": "t", "reference": "full", "budgets_bytes": [2**21], "device_bytes": 2**21}
        draw_frontier(points, tmp_path / name, **options)
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either the NAME of a study or a --target"),
        (["s", "--target", SOUND], "either the NAME of a study or a --target"),
        (["s"], "no studies yet"),
        (["s", "--space", "moe"], "--space does not go with this"),
        (["s", "--seed", "0"], "--seed does not go with this"),
        (["--target", SOUND, "--storage", "sqlite:///x.db"], "--storage does not go with this"),
        (["--target", SOUND, "-o", "plan.toml"], "one --budget"),
        (["--target", SOUND, "--plot", "a.gif"], "'.gif' is not drawn"),
        (["--target", SOUND, "--plot", "missing/a.png"], "the folder missing does not exist"),
        (["--target", SOUND, "--budget", "70XB"], "70GB"),
        (["--target", SOUND, "--space", "dens"], "dense, everything, moe"),
    ],
)
def test_mistakes(actune, tmp_path, arguments, says):
    ended = actune("frontier", *arguments)
    assert ended.code == 2
    assert says in ended.err
    assert (ended.out, list(tmp_path.iterdir())) == ("", [])


def test_matplotlib_is_asked_for_only_by_plot(actune, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = actune("frontier", "--target", SOUND, "--plot", "a.png")
    assert ended.code == 2
    assert "pip install 'actune[plot]'" in ended.err
