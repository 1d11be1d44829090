"""`actune estimate`: as `measure`'s document, with predictions in place of measurements."""

from actune.cli.render_predictions import render_estimated
from tests.cli.conftest import FAULTY, SOUND
from tests.cli.test_search import PLAN_KEYS

TINY = "dense-tiny?layers=3&batch=1&seq=64"


def test_peaks_are_those_that_measure_finds_to_the_byte(actune, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'schema = 1\n[[rule]]\nlayers = ["layers.1"]\npolicy = "full"\n[[rule]]\nlayers = ["layers.2"]\n'
        'policy = "selective"\n'
    )
    names = ("none", "full", "sac", "split", "full-first-50%", "plan.toml")
    plans = [part for name in names for part in ("--plan", name)]
    estimated = actune("estimate", "--target", TINY, *plans, "--json")
    assert estimated.code == 0, estimated.err
    measured = actune("measure", "--target", TINY, *plans, "--rounds", 1, "--json").document
    document = estimated.document
    assert document.keys() == {"target", "device", "device_total_bytes", "static_bytes", "plans"}
    assert (document["target"], document["device"]) == (TINY, "cpu")
    for before, after in zip(document["plans"], measured["plans"], strict=True):
        assert before.keys() == PLAN_KEYS | {"predicted_relative_step_time"}
        assert (before["plan"], before["plan_hash"]) == (after["plan"], after["plan_hash"])
        assert before["predicted_peak_bytes"] == after["peak_bytes"]
        assert before["predicted_step_time_s"] > 0
        assert (before["outcome"], before["peak_bytes"], before["step_time_s"]) == (None, None, None)
    assert document["plans"][0]["predicted_relative_step_time"] == 1.0
    assert all(entry["predicted_peak_bytes"] > document["static_bytes"] for entry in document["plans"])


def test_the_table(capsys):
    entry = {"plan": "full", "predicted_peak_bytes": 2**20, "predicted_step_time_s": 0.5}
    document = {
        "device": "sim:tiny",
        "device_total_bytes": 2**19,
        "static_bytes": 2**10,
        "plans": [
            entry | {"predicted_relative_step_time": 1.0},
            {"plan": "none", "predicted_peak_bytes": None, "predicted_step_time_s": None}
            | {"predicted_relative_step_time": None},
        ],
    }
    render_estimated(document)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["full", "1.0", "MiB", "500.0", "ms", "1.000"]
    assert lines[2] == ["none", "can't", "run", "–", "–"]
    assert "single layer" in " ".join(lines[-2])
    assert " ".join(lines[-1]).startswith("sim:tiny has 512.0 KiB: plans with a larger peak")


def test_plan_that_does_not_fit_is_named(actune, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'schema = 1\n[[rule]]\nlayers = ["*"]\npolicy = "selective"\nfilter_fqns = ["x"]\n'
    )
    ended = actune("estimate", "--target", SOUND, "--plan", "none", "--plan", "plan.toml", "--json")
    assert ended.code == 2
    assert "plan.toml: " in ended.err
    assert "matches no Linear" in ended.err
    assert ended.out == ""


def test_target_at_fault(actune):
    ended = actune("estimate", "--target", f"{FAULTY}:ForwardRaises", "--plan", "none")
    assert ended.code == 4
    assert "shapes do not fit" in ended.err
