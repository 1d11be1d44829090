"""The JSON documents of the command line, from the store alone. Names in them are fixed; what is not known is null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actune.errors import StorageError
from actune.predictions import PredictedNumbers, PredictionRecord
from actune.records import Measurement, Outcome
from actune.report.budgets import named_budgets
from actune.report.compiled import compiled_part
from actune.statistics import Timing, median_step_time_s
from actune.store import Store, StudySummary
from actune.study_records import BudgetVerdict, StudyRecord, TrialRecord, Verdict, VerdictEntry

_STATES = {Outcome.OK: "complete", Outcome.OVER_BUDGET: "pruned", Outcome.OOM: "pruned"}


def plan_entry(
    label: str,
    hash_of_plan: str,
    *,
    outcome: str | None = None,
    peak_bytes: int | None = None,
    predicted_peak_bytes: int | None = None,
    step_time_s: float | None = None,
    predicted_step_time_s: float | None = None,
    relative: float | None = None,
) -> dict[str, Any]:
    """A measured or predicted plan, as every document shows it."""
    return {
        "plan": label,
        "plan_hash": hash_of_plan,
        "outcome": outcome,
        "peak_bytes": peak_bytes,
        "predicted_peak_bytes": predicted_peak_bytes,
        "step_time_s": step_time_s,
        "predicted_step_time_s": predicted_step_time_s,
        "relative_step_time": relative,
    }


def study_document(store: Store, name: str) -> dict[str, Any]:
    """What `search`, `resume` and `show` print.

    Raises:
        UsageError: there is no such study.
        StorageError: what it refers to is not stored.
    """
    study, trials, verdict = store.study(name), store.trials(name, with_pairs=False), store.verdict(name)
    _check_complete(study, trials, verdict)
    predicted, timings = Predicted(store.predicted_numbers(name), study.reference_hash), store.timings(name)
    compared = {} if verdict is None else {entry.plan_hash: entry for entry in verdict.entries}
    entries = [_trial_entry(trial, study, timings.get(trial.number), predicted) for trial in trials]
    is_finished = verdict is not None and verdict.trials == len(trials)
    names = {size: name for name, size in named_budgets(study).items()}
    return {
        "study": study.name,
        "target": study.target.spec,
        "device": study.settings.device,
        "budget_bytes": study.budget_bytes,
        "best": _best(trials, verdict, study.budget_bytes, compared, predicted),
        "trials": entries,
        "presets": _presets(trials, entries, compared, predicted),
        "reference": None if study.reference_hash is None else _label(study.reference_hash, trials),
        "tolerance": study.settings.tolerance,
        "stopped": verdict.stopped if verdict is not None and is_finished else None,
        "certificate": _certificate(verdict, study.budget_bytes, compared),
        "budgets": [
            {
                "budget": names.get(budget_bytes),
                "budget_bytes": budget_bytes,
                "best": _best(trials, verdict, budget_bytes, compared, predicted),
                "certificate": _certificate(verdict, budget_bytes, compared),
            }
            for budget_bytes in study.budgets_bytes or ()
        ],
        "smallest_peak_bytes": None if verdict is None else verdict.smallest_peak_bytes,
        "largest_peak_error": _largest_peak_error(trials, predicted),
        "finished": is_finished,
    }


def _check_complete(study: StudyRecord, trials: Sequence[TrialRecord], verdict: Verdict | None) -> None:
    """Another program may have deleted or changed what a study refers to."""
    of_trials = {trial.plan_hash for trial in trials}
    named = {study.reference_hash} - {None}
    missing = named - of_trials
    if verdict is not None:
        best = {verdict.best_hash, *(decided.best_hash for decided in verdict.budgets)} - {None}
        compared = {entry.plan_hash for entry in verdict.entries if entry.samples}
        missing |= best - (of_trials & compared & dict(verdict.gradients).keys())
    if missing:
        raise StorageError(
            f"study '{study.name}' refers to plan {min(map(str, missing))}, whose trial or comparison is not stored. "
            "Restore the database from a copy, or start a new study with --study."
        )


class Predicted:
    """A study's predictions, by plan.

    Attributes:
        records: all of them.
    """

    def __init__(self, records: Sequence[PredictionRecord | PredictedNumbers], reference_hash: str | None) -> None:
        self.records = records
        self._of_plan = {record.plan_hash: record for record in records}
        reference = None if reference_hash is None else self._of_plan.get(reference_hash)
        self._reference_s = None if reference is None else reference.step_time_s

    def peak_bytes(self, plan_hash: str) -> int | None:
        """A plan's predicted peak."""
        record = self._of_plan.get(plan_hash)
        return None if record is None else record.peak_bytes

    def part(self, plan_hash: str) -> dict[str, Any]:
        """The predicted part of a plan's entry; what is not known is null."""
        record = self._of_plan.get(plan_hash)
        step_time_s = None if record is None else record.step_time_s
        return {
            "predicted_peak_bytes": self.peak_bytes(plan_hash),
            "predicted_step_time_s": step_time_s,
            "predicted_relative_step_time": (
                step_time_s / self._reference_s if step_time_s is not None and self._reference_s else None
            ),
        }


def _largest_peak_error(trials: Sequence[TrialRecord], predicted: Predicted) -> float | None:
    """The largest error of a predicted peak, as a share of the measured one; only whole measurements are compared."""
    errors = []
    for trial in trials:
        predicted_bytes, measurement = predicted.peak_bytes(trial.plan_hash), trial.measurement
        if predicted_bytes is not None and measurement.outcome is Outcome.OK and measurement.peak_bytes:
            errors.append(abs(predicted_bytes / measurement.peak_bytes - 1))
    return max(errors, default=None)


def outcome_under(measurement: Measurement, budget_bytes: int | None) -> Outcome:
    """The outcome against this study's budget: a measurement taken over from another study had another one."""
    peak_bytes = measurement.peak_bytes
    is_over = budget_bytes is not None and peak_bytes is not None and peak_bytes > budget_bytes
    return Outcome.OVER_BUDGET if measurement.outcome is Outcome.OK and is_over else measurement.outcome


def _trial_entry(trial: TrialRecord, study: StudyRecord, timing: Timing | None, predicted: Predicted) -> dict[str, Any]:
    measurement = trial.measurement
    outcome = outcome_under(measurement, study.budget_bytes)
    entry = plan_entry(
        trial.preset or f"trial {trial.number}",
        trial.plan_hash,
        outcome=outcome,
        peak_bytes=measurement.peak_bytes,
        step_time_s=None if timing is None else timing.step_time_s,
        relative=None if timing is None else timing.relative_step_time,
    )
    entry |= predicted.part(trial.plan_hash)
    entry |= compiled_part(measurement)
    entry |= {
        "number": trial.number,
        "state": _STATES.get(outcome, "failed"),
        "pairs": 0 if timing is None else timing.pairs,
        "lost_race": measurement.lost_race,
        "attempt": trial.attempt,
        "reused": trial.reused,
        "message": measurement.message,
        "plan_toml": trial.plan_toml,
    }
    return entry


def _final_entry(label: str, shown: Mapping[str, Any], entry: VerdictEntry | None) -> dict[str, Any]:
    """A plan with the final comparison's numbers, where it took part in it."""
    document = {key: shown[key] for key in (*plan_entry("", ""), "predicted_relative_step_time")}
    document |= {"plan": label, "relative_step_time_low": None, "relative_step_time_high": None}
    if entry is not None:
        document |= {
            "step_time_s": median_step_time_s(entry.samples),
            "relative_step_time": entry.relative_step_time,
            "relative_step_time_low": entry.relative_low,
            "relative_step_time_high": entry.relative_high,
        }
    return document


def _presets(
    trials: Sequence[TrialRecord],
    entries: Sequence[dict[str, Any]],
    compared: Mapping[str, VerdictEntry],
    predicted: Predicted,
) -> list[dict[str, Any]]:
    """The presets that ran, then those that did not: measured under another name, or only predicted."""
    shown = [
        _final_entry(trial.preset, entry, compared.get(trial.plan_hash))
        for trial, entry in zip(trials, entries, strict=True)
        if trial.preset is not None
    ]
    named = {entry["plan"] for entry in shown}
    of_plan = dict(zip((trial.plan_hash for trial in trials), entries, strict=True))
    # Measured plans first: a study that went on with another profile may have another greedy plan.
    for record in sorted(predicted.records, key=lambda record: record.plan_hash not in of_plan):
        if record.preset is not None and record.preset not in named:
            named.add(record.preset)
            unmeasured = plan_entry(record.preset, record.plan_hash) | predicted.part(record.plan_hash)
            entry = of_plan.get(record.plan_hash, unmeasured)
            shown.append(_final_entry(record.preset, entry, compared.get(record.plan_hash)))
    return shown


def _decided(verdict: Verdict | None, budget_bytes: int | None) -> BudgetVerdict | None:
    """The part of a verdict that speaks of a budget; what there is of one from before there could be several."""
    if verdict is None or budget_bytes is None:
        return None
    if not verdict.budgets:
        return BudgetVerdict(budget_bytes, verdict.best_hash, verdict.best_toml, None, 0, None)
    return next((decided for decided in verdict.budgets if decided.budget_bytes == budget_bytes), None)


def _certificate(
    verdict: Verdict | None, budget_bytes: int | None, compared: Mapping[str, VerdictEntry]
) -> dict[str, Any] | None:
    decided = _decided(verdict, budget_bytes)
    if decided is None or decided.certificate is None:
        return None
    bound = decided.certificate.bound_relative_step_time
    best = None if decided.best_hash is None else compared[decided.best_hash].relative_step_time
    return {
        "bound_relative_step_time": bound,
        "possible_gain": decided.certificate.possible_gain,
        "gap": None if best is None or bound <= 0 else max(0.0, best / bound - 1),
    }


def _best(
    trials: Sequence[TrialRecord],
    verdict: Verdict | None,
    budget_bytes: int | None,
    compared: Mapping[str, VerdictEntry],
    predicted: Predicted,
) -> dict[str, Any] | None:
    decided = _decided(verdict, budget_bytes)
    if verdict is None or decided is None or decided.best_hash is None:
        return None
    trial = next(t for t in trials if t.plan_hash == decided.best_hash)
    entry = compared[decided.best_hash]
    report = dict(verdict.gradients)[decided.best_hash]
    return plan_entry(
        _label(trial.plan_hash, trials),
        trial.plan_hash,
        outcome=Outcome.OK,
        peak_bytes=decided.peak_bytes or trial.measurement.peak_bytes,
        step_time_s=median_step_time_s(entry.samples),
        relative=entry.relative_step_time,
    ) | {
        **predicted.part(trial.plan_hash),
        "relative_step_time_low": entry.relative_low,
        "relative_step_time_high": entry.relative_high,
        "trial": trial.number,
        "plan_toml": decided.best_toml,
        "peak_steps": decided.peak_steps,
        "gradients_equal": report.equal if report.compared else None,
        "gradients_bitwise": report.bitwise if report.compared else None,
    }


def _label(hash_of_plan: str, trials: Sequence[TrialRecord]) -> str:
    trial = next(t for t in trials if t.plan_hash == hash_of_plan)
    return trial.preset or f"trial {trial.number}"


def studies_document(summaries: Sequence[StudySummary]) -> dict[str, Any]:
    """What `studies` prints."""
    return {
        "studies": [
            {
                "study": summary.study.name,
                "target": summary.study.target.spec,
                "device": summary.study.settings.device,
                "budget_bytes": summary.study.budget_bytes,
                "budgets_bytes": list(summary.study.budgets_bytes or ()),
                "trials": summary.finished_trials,
                "trials_wanted": summary.study.settings.trials,
                "finished": summary.judged_trials == summary.finished_trials,
                "best_plan_hash": summary.best_hash,
                "best_relative_step_time": summary.best_relative_step_time,
                "best_peak_bytes": summary.best_peak_bytes,
                "created_at": summary.study.created_at,
            }
            for summary in summaries
        ]
    }
