"""The points of a frontier: predictions and measurements of the same plans beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actune.errors import UsageError
from actune.plan import Plan, Treatment, dump_plan, plan_hash
from actune.predictions import PredictionRecord
from actune.records import Measurement, Outcome, SamplePair, StepSample
from actune.report import frontier_points, study_frontier_document
from actune.store import Store
from actune.study_records import TrialRecord
from tests.report.test_documents import PLAN
from tests.store.examples import ENVIRONMENT, SETTINGS, TARGET

FQNS = TARGET.structure.layer_fqns
NONE = Plan()
FULL = Plan.from_treatments(dict.fromkeys(FQNS, Treatment("full")))
SAC = Plan.from_treatments(dict.fromkeys(FQNS, Treatment("selective")))
FIRST = Plan.from_treatments({FQNS[0]: Treatment("full")})
LAST = Plan.from_treatments({FQNS[1]: Treatment("full")})


def predicted(
    plan: Plan, peak_bytes: int | None, step_time_s: float | None, *, preset: str | None = None, on: bool = False
) -> PredictionRecord:
    return PredictionRecord.of(plan, peak_bytes=peak_bytes, step_time_s=step_time_s, preset=preset, on_frontier=on)


PREDICTIONS = (
    predicted(NONE, None, None, preset="none"),
    predicted(FULL, 100, 2.0, preset="full", on=True),
    predicted(SAC, 150, 2.5, preset="sac"),
    predicted(FIRST, 140, 1.5, on=True),
    predicted(LAST, 145, 1.6, on=True),  # as of an earlier forecast, where it was faster
)


def by_plan(points: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {point["plan_hash"]: point for point in points}


def test_predicted_points() -> None:
    points = frontier_points(PREDICTIONS, FQNS, reference_hash=plan_hash(FULL))
    assert all(
        point.keys() == PLAN | {"predicted_relative_step_time", "preset", "plan_toml", "on_frontier", "layers"}
        for point in points
    )
    assert [(point["preset"], point["on_frontier"], point["predicted_peak_bytes"]) for point in points] == [
        ("full", "predicted", 100),
        (None, "predicted", 140),
        (None, None, 145),
        ("sac", None, 150),
        ("none", None, None),
    ]
    assert [point["predicted_relative_step_time"] for point in points] == [1.0, 0.75, 0.8, 1.25, None]
    assert (points[0]["plan"], points[1]["plan"]) == ("full", plan_hash(FIRST))
    assert (points[0]["layers"], points[1]["layers"]) == ({"full": 2}, {"full": 1, "none": 1})
    assert points[1]["plan_toml"] == dump_plan(FIRST)
    assert all(point["outcome"] is None for point in points)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/actune.db", create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        yield store


def run(store: Store, number: int, plan: Plan, peak_bytes: int, ratio: float, *, preset: str | None = None) -> None:
    pair = SamplePair(StepSample(2.0 * ratio, 9.0), StepSample(2.0, 9.0))
    outcome = Outcome.OK if peak_bytes <= 148 else Outcome.OVER_BUDGET
    measurement = Measurement(outcome, peak_bytes, pairs=(pair,) * 3 if outcome is Outcome.OK else ())
    now = "2025-01-02T03:04:05.678+00:00"
    toml = dump_plan(plan, with_provenance=False)
    trial = TrialRecord(number, plan_hash(plan), toml, preset, 1, False, measurement, now, now)
    store.record_trial("a", trial, reference_hash=plan_hash(FULL), budget_bytes=148)


def test_points_of_a_study(store: Store) -> None:
    store.set_budgets("a", (148, 140))
    store.set_reference("a", plan_hash(FULL))
    store.save_predictions("a", PREDICTIONS)
    run(store, 0, FULL, 100, 1.0, preset="full")
    run(store, 1, FIRST, 141, 0.9)
    run(store, 2, LAST, 144, 0.7)
    run(store, 3, SAC, 150, 0.1, preset="sac")
    document = json.loads(json.dumps(study_frontier_document(store, "a"), allow_nan=False))
    assert {
        key: document[key] for key in ("study", "target", "device", "budget_bytes", "budgets_bytes", "reference")
    } == {
        "study": "a",
        "target": "dense-tiny",
        "device": "cpu",
        "budget_bytes": 148,
        "budgets_bytes": [148, 140],
        "reference": "full",
    }
    points = by_plan(document["points"])
    assert len(points) == 5
    names = ("plan", "preset", "on_frontier", "peak_bytes", "outcome")
    assert [tuple(map(points[plan_hash(plan)].get, names)) for plan in (FULL, FIRST, LAST, SAC, NONE)] == [
        ("full", "full", "both", 100, "ok"),
        ("trial 1", None, "both", 141, "ok"),
        ("trial 2", None, "measured", 144, "ok"),
        ("sac", "sac", None, 150, "over_budget"),
        ("none", "none", None, None, None),
    ]
    assert points[plan_hash(LAST)]["predicted_peak_bytes"] == 145
    assert points[plan_hash(LAST)]["relative_step_time"] == 0.7


def test_study_without_predictions(store: Store) -> None:
    assert study_frontier_document(store, "a")["points"] == []
    run(store, 0, FULL, 100, 1.0, preset="full")
    (point,) = study_frontier_document(store, "a")["points"]
    assert (point["preset"], point["on_frontier"], point["predicted_peak_bytes"]) == ("full", "measured", None)
    with pytest.raises(UsageError, match="no study 'b'"):
        study_frontier_document(store, "b")
