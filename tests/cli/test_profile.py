"""`actune profile`: one document with fixed names, and the same as tables."""

import contextlib
import io

import pytest

from actune.cli import run
from actune.cli.render_profile import render_profile
from tests.cli.conftest import FAULTY, SOUND, Ended

ENTRY = "layer_class layers traced_layer batches parameter_bytes input_bytes spread presets modules ops save_sets"
COSTS = "forward_time_s backward_time_s forward_flops backward_flops output_bytes kept_bytes kept_by_sac_bytes"
OP = (
    "phase module op occurrence time_s flops output_bytes kept_bytes kept_by_sac writes_in_place random chooses "
    "depends_on_batch"
)
HIDDEN_BYTES, WIDTH_BYTES = 1024 * 64 * 4, 1024 * 16 * 4


@pytest.fixture(scope="module")
def document():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(["profile", "--target", SOUND, "--json", "--batches", "2"]) == 0
    return Ended(0, out.getvalue(), "").document


def test_the_document(document):
    assert list(document) == ["target", "device", "sac_op_time_s", "layer_classes", "compiled"]
    assert document["compiled"] is None
    (entry,) = document["layer_classes"]
    assert " ".join(entry) == ENTRY
    assert entry["layers"] == ["layers.0", "layers.1", "layers.2"]
    assert entry["traced_layer"] == "layers.1"
    assert entry["input_bytes"] == WIDTH_BYTES
    assert entry["parameter_bytes"] == 2 * (2 * 16 * 64 + 16 + 64) * 4
    assert entry["spread"] is None
    assert [preset["plan"] for preset in entry["presets"]] == ["none", "full", "sac"]
    assert all(" ".join(op) == OP for op in entry["ops"])


def test_modules_add_up(document):
    (entry,) = document["layer_classes"]
    assert [m["module"] for m in entry["modules"]] == [
        *(".", "first", "first.up", "first.down"),
        *("second", "second.up", "second.down"),
    ]
    assert all(" ".join(module) == f"module {COSTS}" for module in entry["modules"])
    whole, first, up, *_ = entry["modules"]
    # relu keeps its result, which is also what `down` keeps; nobody needs what `up` and `down` themselves make.
    assert first["kept_bytes"] == HIDDEN_BYTES
    assert up["output_bytes"] == HIDDEN_BYTES
    # The second part keeps its input too.
    assert whole["kept_bytes"] == 2 * HIDDEN_BYTES + WIDTH_BYTES == entry["presets"][0]["kept_bytes"]
    assert up["forward_flops"] == 2 * 1024 * 16 * 64
    assert up["backward_flops"] == 2 * up["forward_flops"]
    assert whole["forward_flops"] == sum(op["flops"] or 0 for op in entry["ops"] if op["phase"] == "forward")


def test_save_sets_are_plans(document, actune, tmp_path):
    """Names as a plan takes them."""
    (entry,) = document["layer_classes"]
    for number, save_set in enumerate(entry["save_sets"]):
        path = tmp_path / f"plan-{number}.toml"
        save = ", ".join(f'"{name}"' for name in save_set["save"])
        path.write_text(
            'schema = 1\n[[rule]]\nlayers = ["layers.*"]\npolicy = "selective"\nsave_every_nth_mm = 0\n'
            f"save_ops = []\nsave = [{save}]\n"
        )
    plans = [part for path in sorted(tmp_path.glob("plan-*.toml")) for part in ("--plan", path)]
    ended = actune("measure", "--target", SOUND, "--plan", "full", *plans, "--rounds", 1, "--json")
    assert ended.code == 0, ended.err
    assert {plan["outcome"] for plan in ended.document["plans"]} == {"ok"}


def test_the_tables(document, capsys):
    render_profile(document, with_ops=False)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("Layer: 3 layers as layers.1, input 64.0 KiB")
    assert [line.split()[0] for line in lines[3:10]] == ["the", "first", "up", "down", "second", "up", "down"]
    assert any(line.endswith("nothing: full AC") for line in lines)
    assert not any(line.startswith("first.up::addmm") for line in lines)


def test_every_op_where_asked_for(document, capsys):
    render_profile(document, with_ops=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["first.up::addmm#1", "forward"] in [line[:2] for line in lines]
    assert ["first.up::mm", "backward"] in [line[:2] for line in lines]


def test_a_layer_that_depends_on_the_batch_says_so(document, capsys):
    (entry,) = document["layer_classes"]
    spread = {"same_ops": True, "kept_bytes": [1024, 2048], "forward_time_s": [0, 1], "backward_time_s": [0, 1]}
    render_profile({"layer_classes": [entry | {"spread": spread}]}, with_ops=False)
    assert "its sizes depend on the batch: over 2 batches autograd keeps 1.0 KiB to 2.0 KiB" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "code"), [("ForwardRaises", 4), ("NoSuchTarget", 2)])
def test_exit_codes(actune, name, code):
    ended = actune("profile", "--target", f"{FAULTY}:{name}", "--batches", 1)
    assert ended.code == code
    assert not ended.out


def test_a_wrapper_that_makes_a_region_eager_is_shown_with_a_warning(document, capsys):
    entry = {"plan": "full", "outcome": "ok", "peak_bytes": 2048, "compile_s": 1.5, "graph_breaks": 2}
    entry |= {"eager_fqns": ["layers.0", "layers.1"], "flex_attention": "eager", "warnings": ["wrap them apart"]}
    render_profile(document | {"compiled": [entry]}, with_ops=False)
    out = capsys.readouterr().out
    assert "layers.0-1, FlexAttention" in out
    assert "warning: full: wrap them apart" in out
