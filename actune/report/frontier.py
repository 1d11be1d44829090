"""The frontier of a target or a study: plans that no other beats in both peak and step time, predicted and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actune.predictions import PredictionRecord
from actune.report.documents import Predicted, plan_entry, study_document
from actune.store import Store, stored_plan


def frontier_points(
    predictions: Sequence[PredictionRecord],
    layer_fqns: Sequence[str],
    *,
    reference_hash: str | None,
    trials: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Plans as entries, from the smallest peak up, each with `on_frontier`, `preset`, `layers` and `plan_toml`.

    `on_frontier` is `predicted`, `measured`, `both` or null; `layers` says how many layers get each policy. A plan
    without a name is called by its hash.

    Args:
        predictions: of the frontier's plans, the presets and what else was predicted.
        layer_fqns: of the model.
        reference_hash: the plan whose predicted step time is 1.
        trials: what was measured, as a study's document has it.
    """
    predicted = Predicted(predictions, reference_hash)
    points: dict[str, dict[str, Any]] = {}
    for record in predictions:
        entry = plan_entry(record.preset or record.plan_hash, record.plan_hash) | predicted.part(record.plan_hash)
        points[record.plan_hash] = entry | {"preset": record.preset, "plan_toml": record.plan_toml}
    names = ("predicted_relative_step_time", "plan_toml")
    for trial in trials:
        point = {name: trial[name] for name in (*plan_entry("", ""), *names)}
        known = points.get(trial["plan_hash"], {"preset": None})
        preset = known["preset"] or (trial["plan"] if not trial["plan"].startswith("trial ") else None)
        points[trial["plan_hash"]] = point | {"preset": preset}
    on_predicted = _not_beaten(
        (record.peak_bytes, record.step_time_s, record.plan_hash) for record in predictions if record.on_frontier
    )
    on_measured = _not_beaten(
        (trial["peak_bytes"], trial["relative_step_time"], trial["plan_hash"])
        for trial in trials
        if trial["outcome"] == "ok"
    )
    for plan_hash, point in points.items():
        point["on_frontier"] = _which(plan_hash in on_predicted, plan_hash in on_measured)
        treatments = stored_plan(point["plan_toml"]).resolve(layer_fqns).values()
        point["layers"] = dict(Counter(treatment.policy for treatment in treatments).most_common())
    return sorted(points.values(), key=_by_peak)


def study_frontier_document(store: Store, name: str) -> dict[str, Any]:
    """What `frontier NAME` prints.

    Raises:
        UsageError: there is no such study.
    """
    study, shown = store.study(name), study_document(store, name)
    return {
        "study": study.name,
        "target": shown["target"],
        "device": shown["device"],
        "budget_bytes": shown["budget_bytes"],
        "budgets_bytes": list(study.budgets_bytes or ()),
        "reference": shown["reference"],
        "points": frontier_points(
            store.predictions(name),
            study.target.structure.layer_fqns,
            reference_hash=study.reference_hash,
            trials=shown["trials"],
        ),
    }


def _not_beaten(plans: Iterable[tuple[int | None, float | None, str]]) -> set[str]:
    """The hashes of those that none is better than in both; what has no peak or no time beats nothing."""
    known = sorted((peak, time, plan) for peak, time, plan in plans if peak is not None and time is not None)
    frontier: set[str] = set()
    fastest = float("inf")
    for _, step_time, plan_hash in known:
        if step_time < fastest:
            fastest = step_time
            frontier.add(plan_hash)
    return frontier


def _which(is_predicted: bool, is_measured: bool) -> str | None:
    if is_predicted and is_measured:
        return "both"
    return "predicted" if is_predicted else "measured" if is_measured else None


def _by_peak(point: Mapping[str, Any]) -> tuple[float, float, str]:
    peaks = (point["predicted_peak_bytes"], point["peak_bytes"])
    peak = next((peak for peak in peaks if peak is not None), float("inf"))
    return (peak, point["predicted_step_time_s"] or 0.0, point["plan_hash"])
