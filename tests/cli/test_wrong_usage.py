"""Mistakes on the command line: exit code, what the message says, and nothing left behind."""

import os

import pytest

from tests.cli.conftest import SOUND

TINY = "dense-tiny?layers=2&batch=1&seq=32"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "--target", TINY, "--budget", "70XB"], "70GB (10^9 bytes each) or 64GiB"),
        (["search", "--target", TINY, "--budget", "120%"], "at most 100%"),
        (["search", "--target", TINY, "--budget", "70%,"], "budget '' is not understood"),
        (["search", "--target", TINY, "--budget", "70%, 50%,70%"], "names one of them twice"),
        (["search", "--target", TINY, "--frontier", "--budget", "50%,70%"], "Give one budget"),
        (["search", "--frontier"], "Missing option '--target'"),
        (["search", "--target", TINY, "--budget", "70%", "--trials", "0"], "--trials"),
        (["search", "--target", TINY, "--budget", "70%", "--tolerance", "100%"], "Expected 0% to less than 100%"),
        (["search", "--target", TINY, "--budget", "70%", "--tolerance", "1"], "such as 1% or 0.01"),
        (["search", "--target", TINY, "--budget", "70%", "--tolerance", "nan"], "'nan' is no share"),
        (["search", "--target", TINY, "--budget", "70%", "--timeout", "5x"], "1h30m"),
        (["search", "--target", "dense-tny", "--budget", "70%"], "Did you mean dense-tiny"),
        (["search", "--target", "missing.py:T", "--budget", "70%"], "'missing.py' does not exist"),
        (["search", "--target", TINY, "--budget", "70%", "--space", "dens"], "dense, everything, moe"),
        (["search", "--target", TINY, "--budget", "70%", "--sampler", "tp"], "thompson, tpe, random, gp, per-layer"),
        (["search", "--target", TINY, "--budget", "70%", "--study", "a/b"], "study name 'a/b'"),
        (["search"], "--target"),
        (["search", "missing.yaml"], "missing.yaml can't be read"),
        (["resume", "x"], "no studies yet"),
        (["show", "x"], "no studies yet"),
        (["studies"], "no studies yet"),
        (["export", "x"], "no studies yet"),
        (["measure", "--target", TINY, "--plan", "fulll"], "Did you mean 'full'?"),
        (["measure", "--target", TINY, "--plan", "."], "Is a directory"),
        (["estimate", "--target", TINY, "--plan", "fulll"], "Did you mean 'full'?"),
        (["nonsense"], "nonsense"),
    ],
)
def test_mistake_is_named_and_leaves_nothing_behind(actune, tmp_path, arguments, says):
    ended = actune(*arguments)
    assert ended.code == 2
    assert says in ended.err
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("schema: 1\nmenu:\n- polcy: none\n", "Did you mean 'policy'?"),
        ("schema: 1\nmenu:\n- policy: selective\n  each: {save_every_nth_mm: [x]}\n", "save_every_nth_mm"),
        ("schema: 1\nmenu: [", "is not YAML"),
        ("menu: [{policy: none}]\n", "schema"),
    ],
)
def test_space_that_is_none(actune, tmp_path, yaml, says):
    (tmp_path / "space.yaml").write_text(yaml)
    ended = actune("search", "--target", TINY, "--budget", "70%", "--space", "space.yaml")
    assert ended.code == 2
    assert "space 'space.yaml'" in ended.err
    assert says in ended.err


def test_space_whose_entry_fits_no_layer_makes_no_study(actune, tmp_path):
    (tmp_path / "space.yaml").write_text("schema: 1\nmenu:\n- {policy: none}\n- {policy: full, wrap: [nothing]}\n")
    ended = actune("search", "--target", SOUND, "--budget", "70%", "--space", "space.yaml", "--study", "s")
    assert ended.code == 2
    assert "'full wrap=nothing' for * fits no layer" in ended.err
    assert "no studies yet" in actune("show", "s").err


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("schema: 1\ntarget: dense-tiny\nbudgt: 60%\n", "Did you mean 'budget'?"),
        ("schema: 1\ntarget: dense-tiny\nbudget: 60x\n", "budget '60x' is not understood"),
        ("schema: 1\ntarget: dense-tiny\nbudget: 60%\ntrials: 0\n", "trials: 0 is not in the range"),
        ("schema: 1\ntarget: dense-tiny\nbudget: 60%\ntolerance: 2\n", "tolerance: '2' is no share"),
        ("schema: 1\ntarget: dense-tiny\nbudget: 60%,70%\nfrontier: true\n", "Give one budget"),
        ("schema: 1\ntarget: dense-tiny\n", "--budget"),
        ("schema: 1\ntarget: dense-tiny\nfrontier: false\n", "--budget"),
    ],
)
def test_study_file_that_is_none(actune, tmp_path, yaml, says):
    (tmp_path / "study.yaml").write_text(yaml)
    ended = actune("search", "study.yaml")
    assert ended.code == 2
    assert says in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("schema = 1\nrul = 3\n", "unknown key 'rul'. Did you mean 'rule'?"),
        ('schema = 1\n[[rule]]\nlayers = ["layers.9"]\npolicy = "full"\n', "The model has: layers.0-2"),
        ('schema = 1\n[[rule]]\nlayers = ["*"]\npolicy = "selective"\nfilter_fqns = ["x"]\n', "matches no Linear"),
    ],
)
def test_plan_file_that_fits_no_model_is_named(actune, tmp_path, toml, says):
    (tmp_path / "plan.toml").write_text(toml)
    ended = actune("measure", "--target", SOUND, "--plan", "none", "--plan", "plan.toml", "--json")
    assert ended.code == 2
    assert "plan.toml: " in ended.err
    assert says in ended.err
    assert ended.out == ""


def test_device_that_does_not_exist(actune):
    ended = actune("search", "--target", SOUND, "--budget", "70%", "--device", "cude")
    assert ended.code == 2
    assert "Expected cpu, cuda, cuda:N" in ended.err


@pytest.mark.parametrize("command", [["search", "--target", TINY, "--budget", "70%"], ["studies"], ["show", "s"]])
def test_storage_that_is_a_text_file(actune, tmp_path, command):
    (tmp_path / "notes.txt").write_text("notes\n")
    ended = actune(*command, "--storage", "sqlite:///notes.txt")
    assert ended.code == 5
    assert "is not a SQLite database" in ended.err
    assert (tmp_path / "notes.txt").read_text() == "notes\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_is_read_only(actune, tmp_path):
    tmp_path.chmod(0o555)
    ended = actune("search", "--target", TINY, "--budget", "70%")
    assert ended.code == 5
    assert "Check that the folder exists and that you may write to it" in ended.err
