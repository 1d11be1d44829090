"""The end of a study: the best plans and the presets side by side, and the winner's gradients checked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from actune import __version__
from actune.engine import Engine
from actune.errors import TargetError
from actune.plan import Plan, dump_plan, parse_plan, plan_hash
from actune.predictions import PredictionRecord
from actune.records import CompareGradients, GradientReport, MeasurePlan, MeasureRounds, Outcome
from actune.statistics import clock_of, median_step_time_s, relative_with_interval
from actune.study_records import StudyRecord, TrialRecord, Verdict, VerdictEntry

CANDIDATES = 3


def decide(
    study: StudyRecord,
    trials: list[TrialRecord],
    relative_step_times: Mapping[int, float],
    engine: Engine,
    *,
    no_ac_runs: bool,
    predictions: Mapping[str, PredictionRecord],
) -> Verdict:
    """Measures the best three plans that fit and the presets again, in interleaved rounds, and picks the winner.

    The fastest one is compared with the run without AC (with the reference plan where that does not run): loss and
    every gradient. If it fails, the next fastest is compared. A plan that fails is never the best. On a simulated
    device nothing can be compared, and the fastest is the best.

    Args:
        study: its record.
        trials: of the study, finished.
        relative_step_times: of those that were timed, by number.
        engine: measures.
        no_ac_runs: whether the target runs without AC.
        predictions: by plan hash, for the best plan's provenance.

    Raises:
        TargetError: the final comparison itself crashed or hung.
    """
    assert study.budget_bytes is not None
    fitting = sorted(
        (t for t in trials if t.number in relative_step_times and fits(t, study.budget_bytes)),
        key=lambda trial: relative_step_times[trial.number],
    )
    entries = _compare(study, trials, fitting, engine)
    smallest_peak_bytes, smallest_hash = _smallest_peak(trials, engine, study.budget_bytes)
    gradients: list[tuple[str, GradientReport]] = []
    best = None
    by_number = {trial.number: trial for trial in trials}
    for entry in sorted(entries, key=lambda entry: entry.relative_step_time):
        trial = by_number[entry.number]
        if not fits(trial, study.budget_bytes):
            continue
        report = _check_gradients(study, trials, trial, engine, no_ac_runs=no_ac_runs)
        gradients.append((trial.plan_hash, report))
        if report.equal or not report.compared:
            best = trial
            break
    return Verdict(
        reference_hash=study.reference_hash,
        entries=tuple(entries),
        best_hash=best.plan_hash if best else None,
        best_toml=_with_provenance(study, best, entries, predictions) if best else None,
        gradients=tuple(gradients),
        smallest_peak_bytes=smallest_peak_bytes,
        smallest_peak_hash=smallest_hash,
        trials=len(trials),
    )


def _smallest_peak(trials: list[TrialRecord], engine: Engine, budget_bytes: int) -> tuple[int | None, str | None]:
    """The smallest peak that a plan of the study reaches, and the plan.

    A trial over the budget stops after its first step, where the optimizer has no state yet: its peak is a lower bound.
    Where nothing fits, the most promising plans are run to their end.
    """
    peaks: dict[str, int] = {}
    promising: list[tuple[int, TrialRecord]] = []
    for trial in trials:
        peak_bytes = trial.measurement.peak_bytes
        if peak_bytes is not None and trial.measurement.outcome is Outcome.OK:
            peaks[trial.plan_hash] = peak_bytes
        elif peak_bytes is not None:
            promising.append((peak_bytes, trial))
    if min(peaks.values(), default=budget_bytes + 1) > budget_bytes:
        for lower_bound_bytes, trial in sorted(promising, key=lambda candidate: candidate[0])[:CANDIDATES]:
            if lower_bound_bytes >= min(peaks.values(), default=lower_bound_bytes + 1):
                break
            whole = engine.measure(MeasurePlan(trial.plan_toml, None, None, timed_pairs=0))
            if whole.outcome is Outcome.OK and whole.peak_bytes is not None:
                peaks[trial.plan_hash] = whole.peak_bytes
    smallest = min(peaks, key=peaks.__getitem__, default=None)
    return (None, None) if smallest is None else (peaks[smallest], smallest)


def fits(trial: TrialRecord, budget_bytes: int) -> bool:
    """Whether the trial ran well within the budget."""
    peak_bytes = trial.measurement.peak_bytes
    return trial.measurement.outcome is Outcome.OK and peak_bytes is not None and peak_bytes <= budget_bytes


def _compare(
    study: StudyRecord, trials: list[TrialRecord], fitting: list[TrialRecord], engine: Engine
) -> list[VerdictEntry]:
    reference = next((t for t in trials if t.plan_hash == study.reference_hash), None)
    if reference is None or not fitting:
        return []
    presets = [t for t in trials if t.preset is not None and _can_run(t, study)]
    compared = list({t.plan_hash: t for t in [reference, *fitting[:CANDIDATES], *presets]}.values())
    try:
        samples = _rounds(study, compared, engine)
    except TargetError:
        # A plan over the budget was only run for its first step so far: it may be what died.
        within = [t for t in compared if fits(t, study.budget_bytes or 0)]
        if len(within) == len(compared):
            raise
        compared = within
        samples = _rounds(study, compared, engine)
    clock = clock_of(study.environment)
    entries = []
    for trial, of_plan in zip(compared, samples, strict=True):
        median, low, high = relative_with_interval(of_plan, samples[0], clock)
        entries.append(VerdictEntry(trial.plan_hash, trial.number, trial.preset, tuple(of_plan), median, low, high))
    return entries


def _rounds(study: StudyRecord, compared: list[TrialRecord], engine: Engine) -> Any:
    request = MeasureRounds(tuple(t.plan_toml for t in compared), study.settings.verdict_rounds)
    return engine.measure_rounds(request).samples


def _can_run(trial: TrialRecord, study: StudyRecord) -> bool:
    """Whether the plan runs on the device at all, within the budget or not."""
    peak_bytes = trial.measurement.peak_bytes
    if trial.measurement.outcome not in (Outcome.OK, Outcome.OVER_BUDGET) or peak_bytes is None:
        return False
    total_bytes = study.environment.device_total_bytes
    return total_bytes is None or fits(trial, study.budget_bytes or 0)


def _check_gradients(
    study: StudyRecord, trials: list[TrialRecord], trial: TrialRecord, engine: Engine, *, no_ac_runs: bool
) -> GradientReport:
    if no_ac_runs:
        expected = dump_plan(Plan(), with_provenance=False)
    else:
        expected = next(t.plan_toml for t in trials if t.plan_hash == study.reference_hash)
    return engine.compare_gradients(CompareGradients(trial.plan_toml, expected))


def _with_provenance(
    study: StudyRecord,
    trial: TrialRecord,
    entries: list[VerdictEntry],
    predictions: Mapping[str, PredictionRecord],
) -> str:
    plan = parse_plan(trial.plan_toml)
    predicted = predictions.get(trial.plan_hash)
    entry = next(e for e in entries if e.plan_hash == trial.plan_hash)
    provenance: dict[str, Any] = {
        "plan_hash": plan_hash(plan),
        "target": study.target.spec,
        "target_fingerprint": study.target.fingerprint,
        "budget_bytes": study.budget_bytes,
        "peak_bytes": trial.measurement.peak_bytes,
        "step_time_s": median_step_time_s(entry.samples),
        "predicted_peak_bytes": predicted.peak_bytes if predicted else None,
        "predicted_step_time_s": predicted.step_time_s if predicted else None,
        "relative_step_time": entry.relative_step_time,
        "reference_plan_hash": study.reference_hash,
        "device": study.environment.device,
        "device_name": study.environment.device_name,
        "torch_version": study.environment.torch_version,
        "actune_version": __version__,
        "study": study.name,
        "trial": trial.number,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    known = {key: value for key, value in provenance.items() if value is not None}  # TOML has no null
    return dump_plan(Plan(plan.rules, plan.compile, known))
