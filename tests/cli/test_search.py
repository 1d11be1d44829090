"""A search from the command line, and the commands that read what it stored."""

import subprocess
import sys
from dataclasses import replace

import pytest

from actune.store import Store
from tests.cli.conftest import FAULTY, SOUND, actune_process, ended, is_whole

PLAN_KEYS = {
    "plan",
    "plan_hash",
    "outcome",
    "peak_bytes",
    "predicted_peak_bytes",
    "step_time_s",
    "predicted_step_time_s",
    "relative_step_time",
}


def test_document_has_its_fixed_names(study, tmp_path):
    document = study("show", "sound", "--json").document
    assert {"study", "target", "device", "budget_bytes", "best", "trials", "presets"} <= document.keys()
    assert document["best"].keys() >= PLAN_KEYS | {"trial", "plan_toml", "gradients_equal"}
    assert document["best"]["peak_bytes"] <= document["budget_bytes"]
    assert document["best"]["gradients_equal"] is True
    assert len(document["trials"]) == 10
    assert all(trial.keys() >= PLAN_KEYS | {"number", "state"} for trial in document["trials"])
    assert all(preset.keys() >= PLAN_KEYS for preset in document["presets"])


def test_search_resume_and_show_print_the_same_and_resume_changes_nothing(study, tmp_path):
    shown = study("show", "sound", "--json").out
    assert shown == (tmp_path / "search.json").read_text()
    resumed = study("resume", "sound", "--json")
    assert (resumed.code, resumed.out) == (0, shown)
    assert "loading" not in resumed.err
    assert study("show", "sound", "--json").out == shown


def test_tables_for_people(study):
    shown = study("show", "sound")
    assert shown.code == 0
    assert "best: " in shown.out
    assert "actune export sound" in shown.out
    assert "sound" in study("studies").out


def test_studies_document(study):
    (listed,) = study("studies", "--json").document["studies"]
    assert (listed["study"], listed["trials"], listed["trials_wanted"], listed["finished"]) == ("sound", 10, 10, True)


@pytest.mark.parametrize("command", ["resume", "show", "export"])
def test_mistyped_study_is_met_with_the_near_one(study, command):
    result = study(command, "sond")
    assert result.code == 2
    assert "Did you mean 'sound'?" in result.err


@pytest.mark.parametrize(
    ("option", "value", "before"),
    [
        ("--budget", "50%", "70%"),
        ("--seed", "3", "0"),
        ("--target", "dense-tiny", SOUND),
        ("--space", "moe", "dense"),
        ("--world-size", "2", "1"),
    ],
)
def test_what_a_study_was_started_with_stays(study, option, value, before):
    result = study("search", "--study", "sound", option, value)
    assert result.code == 2
    assert f"was started with {option} {before}, not {value}" in result.err


def test_a_study_does_not_become_a_frontier(study):
    result = study("search", "--study", "sound", "--frontier")
    assert result.code == 2
    assert "was started without --frontier." in result.err


def test_the_same_command_again_is_no_conflict(study, tmp_path):
    same = ("--target", SOUND, "--budget", "70%", "--space", "auto", "--trials", 10, "--study", "sound", "--json")
    result = study("search", *same)
    assert (result.code, result.out) == (0, (tmp_path / "search.json").read_text())


def test_later_study_reuses_what_was_measured(study):
    before = {trial["plan_hash"] for trial in study("show", "sound", "--json").document["trials"]}
    again = ("--trials", 10, "--tolerance", 0, "--study", "again", "--json")
    result = study("search", "--target", SOUND, "--budget", "70%", *again)
    assert result.code == 0, result.err
    document = result.document
    # What else it tries depends on its own profile, whose times are other ones.
    assert {trial["plan_hash"] for trial in document["trials"] if trial["reused"]} <= before
    assert sum(trial["reused"] for trial in document["trials"]) >= 2
    assert document["best"]["relative_step_time"] <= min(
        preset["relative_step_time"] for preset in document["presets"] if preset["outcome"] == "ok"
    )


def test_budget_that_no_plan_fits(actune, tmp_path):
    result = actune("search", "--target", SOUND, "--budget", "1KB", "--trials", 3, "--study", "s", "--json")
    assert result.code == 3
    document = result.document
    assert document["best"] is None
    assert f"smallest peak that a plan reaches is {document['smallest_peak_bytes']} bytes" in result.err
    assert document["smallest_peak_bytes"] > 1000
    (number,) = [t["number"] for t in document["trials"] if t["plan_hash"] in result.err]
    assert actune("export", "s", "--trial", number).out.startswith("schema = 1")
    assert is_whole(tmp_path / "studies" / "actune.db")


def test_plans_that_fit_in_their_trials_alone(study):
    """Their peak over more steps was over the budget, so none of them is the best."""
    with Store.open("sqlite:///studies/actune.db", create=False) as store:
        verdict = store.verdict("sound")
        nothing = {"best_hash": None, "best_toml": None}
        budgets = tuple(replace(budget, **nothing, peak_bytes=None) for budget in verdict.budgets)
        store.save_verdict("sound", replace(verdict, **nothing, budgets=budgets, gradients=()))
    result = study("resume", "sound", "--json")
    assert result.code == 3
    assert result.document["best"] is None
    assert "over it in more steps on other batches" in result.err
    assert "no plan that fits" in study("export", "sound").err


def test_layers_without_parts_need_no_space_of_their_own(actune):
    target = f"{FAULTY}:OnePartLayers"
    result = actune("search", "--target", target, "--budget", "100%", "--trials", 2, "--study", "s", "--json")
    assert result.code == 0, result.err


def test_plan_that_kills_its_worker_costs_one_trial(actune, tmp_path):
    """Full AC on the second layer kills; no AC, and AC on the first layer alone, run."""
    (tmp_path / "space.yaml").write_text(
        "schema: 1\npresets: [full, none]\nsegments: 2\nmenu:\n- policy: none\n- {policy: full, layers: [layers.0]}\n"
    )
    target = f"{FAULTY}:KilledUnderAPlan"
    options = ("--budget", "100%", "--trials", 3, "--workers", 2, "--space", "space.yaml", "--study", "s", "--json")
    result = actune("search", "--target", target, *options)
    outcomes = {trial["plan"]: trial["outcome"] for trial in result.document["trials"]}
    assert outcomes["full"] == "crashed"
    assert outcomes["none"] == "ok"
    assert result.code == 0, result.err
    assert is_whole(tmp_path / "studies" / "actune.db")


def test_measure_document(actune):
    result = actune("measure", "--target", SOUND, "--plan", "none", "--plan", "full", "--rounds", 2, "--json")
    assert result.code == 0
    none, full = result.document["plans"]
    assert (none["plan"], none["relative_step_time"]) == ("none", 1.0)
    assert full["peak_bytes"] < none["peak_bytes"]
    assert none.keys() >= PLAN_KEYS


@pytest.mark.parametrize(("command", "key"), [("targets", "targets"), ("spaces", "spaces"), ("doctor", "checks")])
def test_surroundings(actune, command, key):
    result = actune(command, "--json")
    assert result.code == 0, result.err
    assert result.document[key]


@pytest.mark.parametrize("arguments", [("show", "sound", "--json"), ("show", "sound"), ("studies",)])
def test_reader_that_has_gone_is_no_error(finished_folder, arguments):
    process = actune_process(*arguments, folder=finished_folder)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (0, "")
    process.stderr.close()


def test_full_disk_under_stdout_is_no_internal_error(finished_folder):
    code = "from actune.cli import main; main()"
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code, "show", "sound", "--json"],
            cwd=finished_folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert result.returncode == 1
    assert "the disk or your quota is full" in result.stderr


def test_two_studies_at_once_in_one_database(tmp_path):
    common = ("--target", SOUND, "--budget", "90%", "--trials", 3, "--json")
    both = [actune_process("search", *common, "--study", name, folder=tmp_path) for name in ("one", "two")]
    results = [ended(process) for process in both]
    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    assert [len(result.document["trials"]) for result in results] == [3, 3]
    assert is_whole(tmp_path / "studies" / "actune.db")


def test_several_budgets_in_one_study(actune, tmp_path):
    """The smallest one fits no plan, which is no error."""
    options = ("--budget", "1KB, 80%,100%", "--trials", 4, "--tolerance", "5%", "--json")
    result = actune("search", "--target", SOUND, *options)
    assert result.code == 0, result.err
    document = result.document
    assert document["study"] == "faulty-py-Sound-1KB-80pct-100pct"
    assert document["tolerance"] == 0.05
    assert [budget["budget"] for budget in document["budgets"]] == ["100%", "80%", "1KB"]
    sizes = [budget["budget_bytes"] for budget in document["budgets"]]
    assert sizes == sorted(sizes, reverse=True)
    assert document["budget_bytes"] == sizes[0]
    assert document["best"] == document["budgets"][0]["best"]
    assert document["budgets"][1]["best"]["peak_bytes"] <= sizes[1]
    assert document["budgets"][2]["best"] is None
    assert "no plan fits" in actune("show", document["study"]).out
    assert " and 2 smaller " in actune("studies").out
    assert f"budget_bytes = {sizes[1]}" in actune("export", document["study"], "--budget", "80%").out
    again = actune(
        "search", "--target", SOUND, *options[:1], "100%,80%,1KB", *options[2:], "--study", document["study"]
    )
    assert again.document == document


def test_frontier_in_one_study(actune, tmp_path):
    result = actune("search", "--target", SOUND, "--frontier", "--trials", 3, "--json")
    assert result.code == 0, result.err
    document = result.document
    assert document["study"] == "faulty-py-Sound-frontier"
    assert len(document["budgets"]) == 8
    assert document["budgets"][0]["budget"] == "100%"
    shown = actune("frontier", document["study"], "--json", "--plot", "frontier.svg").document
    assert shown["budgets_bytes"] == [budget["budget_bytes"] for budget in document["budgets"]]
    assert any(point["on_frontier"] in ("measured", "both") for point in shown["points"])
    assert "</svg>" in (tmp_path / "frontier.svg").read_text()
    assert "budgets of the study: " in actune("frontier", document["study"]).out
    assert actune("search", "--target", SOUND, "--frontier", "--json").document["stopped"] is not None
