"""`actune export` from a finished study."""

import pytest

import actune as package


def test_best_plan_to_stdout_is_the_one_that_show_names(study, tmp_path):
    best = study("show", "sound", "--json").document["best"]
    result = study("export", "sound")
    assert result.code == 0
    assert result.out == best["plan_toml"]


def test_into_a_folder_and_to_a_path(study, tmp_path):
    (tmp_path / "plans").mkdir()
    assert study("export", "sound", "-o", "plans").code == 0
    assert study("export", "sound", "-o", "plans/mine.toml").code == 0
    written = sorted(path.name for path in (tmp_path / "plans").iterdir())
    assert written == ["mine.toml", "sound.toml"]
    assert package.load_plan(tmp_path / "plans" / "mine.toml")


def test_missing_folder_is_named_and_not_made(study, tmp_path):
    result = study("export", "sound", "-o", "missing/plan.toml")
    assert result.code == 2
    assert "the folder missing does not exist" in result.err
    assert not (tmp_path / "missing").exists()


def test_plan_of_a_trial(study):
    trials = study("show", "sound", "--json").document["trials"]
    assert study("export", "sound", "--trial", trials[3]["number"]).out == trials[3]["plan_toml"]
    result = study("export", "sound", "--trial", 999)
    assert result.code == 2
    assert "no finished trial 999. It has: 0, " in result.err


def test_unknown_format(study):
    result = study("export", "sound", "--format", "toml")
    assert result.code == 2
    assert "Expected one of: actune, torchtitan-toml, torchtitan" in result.err


def test_into_a_config_keeps_its_comments(study, tmp_path):
    full = next(t["number"] for t in study("show", "sound", "--json").document["trials"] if t["plan"] == "full")
    (tmp_path / "train.toml").write_text("# mine\n[training]\nsteps = 3 # few\n")
    result = study("export", "sound", "--trial", full, "--format", "torchtitan-toml", "--into", "train.toml")
    assert result.code == 0, result.err
    text = (tmp_path / "train.toml").read_text()
    assert text.startswith("# mine\n[training]\nsteps = 3 # few\n")
    assert "[activation_checkpoint]" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--format", "torchtitan-toml", "--into", "missing.toml"), "config missing.toml can't be read"),
        (("--into", "train.toml"), "--format actune makes a file of its own"),
        (("--version", "9"), "--format actune has one version only"),
        (("--base", "llama3:llama3_8b"), "--format actune extends no config function"),
    ],
)
def test_options_that_do_not_go_together(study, tmp_path, arguments, says):
    (tmp_path / "train.toml").write_text("")
    result = study("export", "sound", *arguments)
    assert result.code == 2
    assert says in result.err


def test_document(study, tmp_path):
    document = study("export", "sound", "-o", "plan.toml", "--json").document
    assert document["written"] == [str(tmp_path / "plan.toml")]
    assert document["files"] == [{"name": "sound.toml", "text": (tmp_path / "plan.toml").read_text()}]
    assert study("export", "sound", "--json").document["written"] == []
