"""`actune export` from a finished study."""

from dataclasses import replace

import pytest

import actune as package
from actune.records import GradientReport
from actune.store import Store
from actune.study_records import BudgetVerdict, StopReason, Verdict
from tests.store.examples import ENVIRONMENT, SETTINGS, TARGET


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


def test_best_plan_within_a_budget(study):
    document = study("show", "sound", "--json").document
    for budget in ("70%", document["budget_bytes"], f"{document['budget_bytes']}B"):
        assert study("export", "sound", "--budget", budget).out == document["best"]["plan_toml"]
    for budget in ("60%", "700", "50GB", "seventy"):
        result = study("export", "sound", "--budget", budget)
        assert result.code == 2
        assert f"has no budget '{budget}'. It has: 70% ({document['budget_bytes']} bytes)." in result.err
    assert "Give one of them" in study("export", "sound", "--budget", "70%", "--trial", 0).err


@pytest.fixture
def several(actune, tmp_path):
    """`actune`, beside a study of two budgets, the smaller of which no plan fits, and one without a verdict."""
    (tmp_path / "studies").mkdir()
    settings = replace(SETTINGS, budget="1KB,60%,50%")
    equal = GradientReport(True, True, 0.0, 0.0, "loss")
    tomls = {size: f"schema = 1\n[provenance]\nbudget_bytes = {size}\n" for size in (1000, 600)}
    budgets = (
        BudgetVerdict(1000, "a" * 16, tomls[1000], 900, 8, None),
        BudgetVerdict(600, "b" * 16, tomls[600], 550, 8, None),
        BudgetVerdict(500, None, None, None, 8, None),
    )
    gradients = (("a" * 16, equal), ("b" * 16, equal))
    with Store.open("sqlite:///studies/actune.db", create=True) as store:
        for name in ("several", "open"):
            store.create_study(name, settings, TARGET, ENVIRONMENT)
            store.set_budgets(name, (1000, 600, 500))
        verdict = Verdict(None, (), "a" * 16, tomls[1000], gradients, None, None, 0, budgets, StopReason.TRIALS)
        store.save_verdict("several", verdict)
    return actune


def test_budgets_of_a_study_with_several(several):
    assert several("export", "several").out == several("export", "several", "--budget", "1KB").out
    for budget, size in (("1KB", 1000), ("60%", 600), ("600", 600)):
        assert f"budget_bytes = {size}" in several("export", "several", "--budget", budget).out
    result = several("export", "several", "--budget", "50%")
    assert result.code == 2
    assert "no plan that fits 50%" in result.err
    result = several("export", "several", "--budget", "70%")
    assert "has no budget '70%'. It has: 1KB (1000 bytes), 60% (600 bytes), 50% (500 bytes)." in result.err
    assert "has no best plan yet" in several("export", "open", "--budget", "60%").err
