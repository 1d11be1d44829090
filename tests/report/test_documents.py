"""The documents of the command line: their names are fixed, and what is not known is null."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actune.boundary import from_json
from actune.errors import UsageError
from actune.predictions import PredictionRecord
from actune.records import GradientReport, Measurement, Outcome, SamplePair, StepSample
from actune.report import outcome_under, plan_entry, studies_document, study_document
from actune.store import Store
from actune.study_records import BudgetVerdict, Certificate, StopReason, TrialRecord, Verdict, VerdictEntry
from tests.store.examples import ENVIRONMENT, SETTINGS, TARGET

PLAN = {
    "plan",
    "plan_hash",
    "outcome",
    "peak_bytes",
    "predicted_peak_bytes",
    "step_time_s",
    "predicted_step_time_s",
    "relative_step_time",
}
STUDY = {"study", "target", "device", "budget_bytes", "best", "trials", "presets"}
FULL, NONE, SAMPLED, BROKEN = (letter * 16 for letter in "abcd")


def timed(peak_bytes: int, ratio: float) -> Measurement:
    pair = SamplePair(StepSample(2.0 * ratio, 9.0), StepSample(2.0, 9.0))
    return Measurement(Outcome.OK, peak_bytes, pairs=(pair,) * 3)


def trial(number: int, plan_hash: str, preset: str | None, measurement: Measurement) -> TrialRecord:
    now = "2025-01-02T03:04:05.678+00:00"
    return TrialRecord(number, plan_hash, f"schema = 1 # {plan_hash}\n", preset, 1, False, measurement, now, now)


TRIALS = (
    trial(0, FULL, "full", timed(600, 1.0)),
    trial(1, NONE, "none", Measurement(Outcome.OVER_BUDGET, 1200, message="over")),
    trial(4, SAMPLED, None, timed(900, 0.75)),
    trial(5, BROKEN, None, Measurement(Outcome.CRASHED, message="killed", detail="…")),
)
ENTRIES = (
    VerdictEntry(FULL, 0, "full", (StepSample(4.0, 1.0),) * 3, 1.0, 1.0, 1.0),
    VerdictEntry(SAMPLED, 4, None, (StepSample(3.2, 1.0),) * 3, 0.8, 0.7, 0.9),
)
VERDICT = Verdict(
    reference_hash=FULL,
    entries=ENTRIES,
    best_hash=SAMPLED,
    best_toml="schema = 1\n[provenance]\n",
    gradients=((SAMPLED, GradientReport(True, True, 0.0, 0.0, "loss")),),
    smallest_peak_bytes=600,
    smallest_peak_hash=FULL,
    trials=4,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/actune.db", create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        yield store


def fill(store: Store, *, verdict: Verdict | None = VERDICT) -> dict[str, Any]:
    store.set_budgets("a", (1000,))
    store.set_reference("a", FULL)
    for record in TRIALS:
        store.record_trial("a", record, reference_hash=FULL, budget_bytes=1000)
    if verdict is not None:
        store.save_verdict("a", verdict)
    return written(study_document(store, "a"))


def written(document: dict[str, Any]) -> dict[str, Any]:
    """As another program reads it."""
    again: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return again


def test_names_of_a_finished_study(store: Store) -> None:
    document = fill(store)
    assert document.keys() >= STUDY
    assert document["best"].keys() >= PLAN | {"trial", "plan_toml", "gradients_equal"}
    assert all(entry.keys() >= PLAN | {"number", "state"} for entry in document["trials"])
    assert all(entry.keys() >= PLAN for entry in document["presets"])
    assert (document["study"], document["target"], document["device"]) == ("a", "dense-tiny", "cpu")
    assert document["budget_bytes"] == 1000
    assert document["reference"] == "full"
    assert document["finished"] is True


def test_trials_as_measured(store: Store) -> None:
    shown = {entry["number"]: entry for entry in fill(store)["trials"]}
    assert {number: (e["plan"], e["outcome"], e["state"]) for number, e in shown.items()} == {
        0: ("full", "ok", "complete"),
        1: ("none", "over_budget", "pruned"),
        4: ("trial 4", "ok", "complete"),
        5: ("trial 5", "crashed", "failed"),
    }
    assert (shown[4]["peak_bytes"], shown[4]["step_time_s"], shown[4]["relative_step_time"]) == (900, 1.5, 0.75)
    for name in ("step_time_s", "relative_step_time", "predicted_peak_bytes", "predicted_step_time_s"):
        assert shown[1][name] is None
    assert shown[5]["peak_bytes"] is None
    assert shown[5]["message"] == "killed"


def test_budgets_with_the_best_plan_and_the_certificate_of_each(store: Store) -> None:
    budgets = (
        BudgetVerdict(1000, SAMPLED, "schema = 1 # a\n", 950, 8, Certificate(0.64, 0.03)),
        BudgetVerdict(700, FULL, "schema = 1 # b\n", 610, 8, None),
        BudgetVerdict(500, None, None, None, 8, Certificate(0.9, 1.0)),
    )
    equal = GradientReport(True, True, 0.0, 0.0, "loss")
    verdict = replace(
        VERDICT, budgets=budgets, stopped=StopReason.TOLERANCE, gradients=((SAMPLED, equal), (FULL, equal))
    )
    fill(store, verdict=verdict)
    store.set_budgets("a", (1000, 700, 500))
    document = written(study_document(store, "a"))
    assert (document["stopped"], document["tolerance"]) == ("tolerance", 0.01)
    assert document["certificate"] == {
        "bound_relative_step_time": 0.64,
        "possible_gain": 0.03,
        "gap": pytest.approx(0.25),
    }
    largest, middle, smallest = document["budgets"]
    assert [(b["budget"], b["budget_bytes"]) for b in document["budgets"]] == [(None, 1000), (None, 700), (None, 500)]
    assert (largest["best"], largest["certificate"]) == (document["best"], document["certificate"])
    assert (document["best"]["peak_bytes"], document["best"]["peak_steps"]) == (950, 8)
    assert (middle["best"]["plan"], middle["best"]["peak_bytes"], middle["certificate"]) == ("full", 610, None)
    assert middle["best"].keys() == largest["best"].keys()
    assert smallest["best"] is None
    assert smallest["certificate"] == {"bound_relative_step_time": 0.9, "possible_gain": 1.0, "gap": None}


def test_one_budget_by_its_name(store: Store) -> None:
    (budget,) = fill(store)["budgets"]
    assert (budget["budget"], budget["budget_bytes"], budget["best"]["plan"]) == ("60%", 1000, "trial 4")


def test_verdict_from_before_there_were_several_budgets(store: Store) -> None:
    document = fill(store)
    assert (document["stopped"], document["certificate"]) == (None, None)
    assert (document["best"]["peak_bytes"], document["best"]["peak_steps"]) == (900, 0)


def test_a_best_plan_that_beats_the_bound_has_no_gap(store: Store) -> None:
    budgets = (BudgetVerdict(1000, SAMPLED, "schema = 1\n", 950, 8, Certificate(0.85, 0.0)),)
    assert fill(store, verdict=replace(VERDICT, budgets=budgets))["certificate"]["gap"] == 0.0


def test_a_study_that_went_on_has_not_stopped(store: Store) -> None:
    assert fill(store, verdict=replace(VERDICT, stopped=StopReason.TRIALS, trials=3))["stopped"] is None


def test_trial_that_lost_its_race(store: Store) -> None:
    lost = replace(timed(900, 1.5), lost_race=True)
    store.record_trial("a", trial(9, "9" * 16, None, lost), reference_hash=FULL, budget_bytes=1000)
    shown = {entry["number"]: (entry["lost_race"], entry["pairs"]) for entry in fill(store)["trials"]}
    assert shown == {0: (False, 3), 1: (False, 0), 4: (False, 3), 5: (False, 0), 9: (True, 3)}


def test_preset_that_was_measured_under_another_name(store: Store) -> None:
    fill(store)
    other = "e" * 16
    store.save_predictions("a", [predicted(SAMPLED, "greedy", 900), predicted(other, "greedy", 800)])
    presets = {entry["plan"]: entry for entry in written(study_document(store, "a"))["presets"]}
    assert list(presets) == ["full", "none", "greedy"]
    greedy = presets["greedy"]
    assert (greedy["plan_hash"], greedy["outcome"], greedy["peak_bytes"]) == (SAMPLED, "ok", 900)
    assert (greedy["relative_step_time"], greedy["relative_step_time_high"]) == (0.8, 0.9)
    assert greedy.keys() == presets["full"].keys()


def test_gradients_that_were_not_compared_are_not_known(store: Store) -> None:
    report = GradientReport(False, False, 0.0, 0.0, "loss", compared=False)
    best = fill(store, verdict=replace(VERDICT, gradients=((SAMPLED, report),)))["best"]
    assert (best["gradients_equal"], best["gradients_bitwise"]) == (None, None)


def test_reports_from_before_there_were_simulated_devices_were_compared() -> None:
    line = (
        '{"equal":true,"bitwise":true,"tolerance":0.0,"largest_error":0.0,"worst":"loss","kind":"gradients_compared"}'
    )
    assert from_json(GradientReport, line).compared


def test_best_and_presets_with_the_numbers_of_the_final_comparison(store: Store) -> None:
    document = fill(store)
    best = document["best"]
    assert (best["plan"], best["trial"], best["plan_hash"], best["outcome"]) == ("trial 4", 4, SAMPLED, "ok")
    assert (best["peak_bytes"], best["step_time_s"], best["relative_step_time"]) == (900, 3.2, 0.8)
    assert (best["relative_step_time_low"], best["relative_step_time_high"]) == (0.7, 0.9)
    assert (best["gradients_equal"], best["plan_toml"]) == (True, VERDICT.best_toml)
    full, none = document["presets"]
    assert (full["plan"], full["step_time_s"], full["relative_step_time"]) == ("full", 4.0, 1.0)
    # Not compared: no interval, and the trial's own numbers, of which there are none.
    assert (none["plan"], none["outcome"], none["peak_bytes"], none["step_time_s"]) == (
        "none",
        "over_budget",
        1200,
        None,
    )
    assert (none["relative_step_time_low"], none["relative_step_time_high"]) == (None, None)
    assert full.keys() == none.keys()


def predicted(plan_hash: str, preset: str | None, peak_bytes: int | None) -> PredictionRecord:
    step_time_s = None if peak_bytes is None else 0.5
    return PredictionRecord(plan_hash, f"schema = 1 # {plan_hash}\n", preset, peak_bytes, step_time_s, False)


def test_predictions_beside_what_was_measured(store: Store) -> None:
    assert fill(store)["largest_peak_error"] is None
    sac, split = "e" * 16, "f" * 16
    store.save_predictions(
        "a",
        [
            predicted(FULL, "full", 606),
            predicted(SAMPLED, None, 900),
            predicted(NONE, "none", 5000),  # stopped over the budget: its measured peak is a lower bound
            predicted(sac, "sac", 1100),
            predicted(split, "split", None),
            predicted("0" * 16, None, 700),  # on the frontier, not run
        ],
    )
    document = written(study_document(store, "a"))
    assert document["largest_peak_error"] == pytest.approx(0.01)
    shown = {entry["number"]: entry["predicted_peak_bytes"] for entry in document["trials"]}
    assert shown == {0: 606, 1: 5000, 4: 900, 5: None}
    assert (document["best"]["predicted_peak_bytes"], document["best"]["predicted_step_time_s"]) == (900, 0.5)
    presets = {entry["plan"]: entry for entry in document["presets"]}
    assert list(presets) == ["full", "none", "sac", "split"]
    assert (presets["full"]["predicted_peak_bytes"], presets["full"]["peak_bytes"]) == (606, 600)
    assert (presets["sac"]["outcome"], presets["sac"]["peak_bytes"]) == (None, None)
    assert (presets["sac"]["predicted_peak_bytes"], presets["sac"]["predicted_step_time_s"]) == (1100, 0.5)
    assert [entry["predicted_relative_step_time"] for entry in presets.values()] == [1.0, 1.0, 1.0, None]
    assert (presets["split"]["outcome"], presets["split"]["predicted_peak_bytes"]) == (None, None)
    assert all(entry.keys() == presets["full"].keys() for entry in presets.values())


def test_study_without_a_trial(store: Store) -> None:
    document = written(study_document(store, "a"))
    assert document.keys() >= STUDY
    assert (document["best"], document["trials"], document["presets"]) == (None, [], [])
    assert (document["budget_bytes"], document["reference"], document["smallest_peak_bytes"]) == (None, None, None)
    assert document["finished"] is False


def test_study_without_a_verdict(store: Store) -> None:
    document = fill(store, verdict=None)
    assert (document["best"], document["smallest_peak_bytes"], document["finished"]) == (None, None, False)
    assert document["presets"][0]["step_time_s"] == 2.0


def test_study_without_a_best_plan(store: Store) -> None:
    document = fill(store, verdict=replace(VERDICT, best_hash=None, best_toml=None, entries=()))
    assert document["best"] is None
    assert document["smallest_peak_bytes"] == 600
    assert document["finished"] is True


def test_verdict_of_fewer_trials_is_not_the_end(store: Store) -> None:
    assert fill(store, verdict=replace(VERDICT, trials=3))["finished"] is False


def test_no_study_of_the_name(store: Store) -> None:
    with pytest.raises(UsageError, match="no study 'b'"):
        study_document(store, "b")


def test_studies(store: Store) -> None:
    store.create_study("b", SETTINGS, TARGET, ENVIRONMENT)
    fill(store)
    first, second = written(studies_document(store.studies()))["studies"]
    assert (first["study"], first["trials"], first["trials_wanted"], first["finished"]) == ("a", 4, 30, True)
    assert (first["best_plan_hash"], first["best_relative_step_time"], first["best_peak_bytes"]) == (SAMPLED, 0.8, 900)
    assert (second["study"], second["trials"], second["finished"]) == ("b", 0, False)
    assert (first["budgets_bytes"], second["budgets_bytes"]) == ([1000], [])
    assert (second["budget_bytes"], second["best_plan_hash"], second["best_peak_bytes"]) == (None, None, None)
    assert first.keys() == second.keys()
    (summary,) = [s for s in store.studies() if s.study.name == "a"]
    more = replace(summary, finished_trials=summary.finished_trials + 1)  # went on after its verdict
    assert studies_document([more])["studies"][0]["finished"] is False
    assert studies_document([]) == {"studies": []}


def test_plan_entry_has_the_fixed_names_only() -> None:
    entry = plan_entry("p", FULL)
    assert entry.keys() == PLAN
    assert {name for name, value in entry.items() if value is not None} == {"plan", "plan_hash"}


@pytest.mark.parametrize(
    ("measurement", "budget_bytes", "outcome"),
    [
        (Measurement(Outcome.OK, 900), 1000, Outcome.OK),
        (Measurement(Outcome.OK, 1000), 1000, Outcome.OK),
        (Measurement(Outcome.OK, 1001), 1000, Outcome.OVER_BUDGET),
        (Measurement(Outcome.OK, 1001), None, Outcome.OK),
        (Measurement(Outcome.OK), 1000, Outcome.OK),
        (Measurement(Outcome.OVER_BUDGET, 1200), 1000, Outcome.OVER_BUDGET),
        (Measurement(Outcome.OOM, 1200), 1000, Outcome.OOM),
        (Measurement(Outcome.CRASHED), 1000, Outcome.CRASHED),
        (Measurement(Outcome.ERROR, 1200), 1000, Outcome.ERROR),
    ],
)
def test_outcome_under_a_budget(measurement: Measurement, budget_bytes: int | None, outcome: Outcome) -> None:
    assert outcome_under(measurement, budget_bytes) is outcome
