"""The end of a study: the best plans and the presets side by side, and the winner put to the test."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from actune import __version__
from actune.engine import Engine
from actune.errors import TargetError
from actune.plan import Plan, dump_plan, parse_plan, plan_hash
from actune.predictions import PredictionRecord
from actune.records import CompareGradients, GradientReport, MeasurePlan, MeasureRounds, Outcome
from actune.search.agenda import Agenda
from actune.search.endurance import ENDURANCE_STEPS, Endurance, failure
from actune.search.ledger import Ledger
from actune.search.reporter import Reporter
from actune.statistics import clock_of, median_step_time_s, relative_with_interval
from actune.study_records import (
    BudgetVerdict,
    Certificate,
    StopReason,
    StudyRecord,
    TrialRecord,
    Verdict,
    VerdictEntry,
)

CANDIDATES = 3
"""How many of the fastest plans within a budget are compared; of several budgets' fewer each."""
CANDIDATES_OF_MANY = 2


class Judge:
    """Decides which of a study's trials is the best."""

    def __init__(
        self,
        study: StudyRecord,
        ledger: Ledger,
        agenda: Agenda,
        endurance: Endurance,
        engine: Engine,
        reporter: Reporter,
        predictions: Iterable[PredictionRecord],
    ) -> None:
        """Measures nothing yet.

        Args:
            study: its record.
            ledger: its finished trials.
            agenda: knows what could still be found.
            endurance: runs what may be called the best for longer.
            engine: measures.
            reporter: hears of plans that fail the last tests.
            predictions: of the study.
        """
        assert study.budgets_bytes, "budgets are known before the first trial"
        self._study = study
        self._budgets_bytes = study.budgets_bytes
        self._ledger = ledger
        self._agenda = agenda
        self._endurance = endurance
        self._engine = engine
        self._reporter = reporter
        self._predictions = {record.plan_hash: record for record in predictions}
        self._named = {record.plan_hash for record in self._predictions.values() if record.preset is not None}
        self._trials = {trial.number: trial for trial in ledger.trials}
        self._gradients: dict[str, GradientReport] = {}

    def decide(self, *, no_ac_runs: bool, stopped: StopReason) -> Verdict:
        """Measures the best plans that fit and the presets again, in interleaved rounds, and picks the winner.

        The fastest one is run for more steps on other batches, and compared with the run without AC (with the reference
        plan where that does not run): loss and every gradient. If it fails, the next fastest is put to the test. A plan
        that fails is never the best. On a simulated device nothing can be compared, and the fastest is the best.

        Args:
            no_ac_runs: whether the target runs without AC.
            stopped: why there are no more trials.

        Raises:
            TargetError: the final comparison itself crashed or hung.
        """
        entries = self._compare()
        smallest_peak_bytes, smallest_hash = self._smallest_peak()
        by_time = sorted(entries, key=lambda entry: entry.relative_step_time)
        budgets = tuple(
            self._decide_within(budget_bytes, by_time, no_ac_runs=no_ac_runs) for budget_bytes in self._budgets_bytes
        )
        return Verdict(
            reference_hash=self._study.reference_hash,
            entries=tuple(entries),
            best_hash=budgets[0].best_hash,
            best_toml=budgets[0].best_toml,
            gradients=tuple(self._gradients.items()),
            smallest_peak_bytes=smallest_peak_bytes,
            smallest_peak_hash=smallest_hash,
            trials=len(self._trials),
            budgets=budgets,
            stopped=stopped,
        )

    def _decide_within(self, budget_bytes: int, by_time: list[VerdictEntry], *, no_ac_runs: bool) -> BudgetVerdict:
        bound = self._agenda.bound(budget_bytes)
        certificate = None if bound is None else Certificate(bound.relative_step_time, bound.possible_gain)
        for entry in by_time:
            trial = self._trials[entry.number]
            if not trial.fits(budget_bytes):
                continue
            peak_bytes = self._peak_over_many_steps(trial, budget_bytes)
            if peak_bytes is None:
                continue
            report = self._compare_gradients(trial, no_ac_runs=no_ac_runs)
            if report.equal or not report.compared:
                toml = self._with_provenance(trial, entry, budget_bytes, peak_bytes)
                return BudgetVerdict(budget_bytes, trial.plan_hash, toml, peak_bytes, ENDURANCE_STEPS, certificate)
            self._reporter.stage(
                f"{trial.preset or f'trial {trial.number}'} computes other gradients than it should: {report.worst} is "
                f"off by {report.largest_error:.2g} (relative)"
                f"{'' if report.explanation is None else f'; {report.explanation}'}; trying the next fastest"
            )
        return BudgetVerdict(budget_bytes, None, None, None, ENDURANCE_STEPS, certificate)

    def _compare(self) -> list[VerdictEntry]:
        cap_bytes = self._budgets_bytes[0]
        reference = next((t for t in self._trials.values() if t.plan_hash == self._study.reference_hash), None)
        if reference is None:
            return []
        count = CANDIDATES if len(self._budgets_bytes) == 1 else CANDIDATES_OF_MANY
        best = [t for budget_bytes in self._budgets_bytes for t in self._ledger.fitting(budget_bytes)[:count]]
        peers = [t for t in self._trials.values() if t.preset is not None or t.plan_hash in self._named]
        compared = list({t.plan_hash: t for t in [reference, *best, *filter(self._can_run, peers)]}.values())
        try:
            samples = self._rounds(compared)
        except TargetError:
            # A plan over the budget was only run for its first step so far: it may be what died. The reference, by
            # whose step time all are told, has run beside every trial.
            within = [t for t in compared if t is reference or t.fits(cap_bytes)]
            if len(within) == len(compared):
                raise
            compared = within
            samples = self._rounds(compared)
        clock = clock_of(self._study.environment)
        return [
            VerdictEntry(
                trial.plan_hash,
                trial.number,
                trial.preset,
                tuple(of_plan),
                *relative_with_interval(of_plan, samples[0], clock),
            )
            for trial, of_plan in zip(compared, samples, strict=True)
        ]

    def _rounds(self, compared: list[TrialRecord]) -> Any:
        request = MeasureRounds(tuple(t.plan_toml for t in compared), self._study.settings.verdict_rounds)
        return self._engine.measure_rounds(request).samples

    def _can_run(self, trial: TrialRecord) -> bool:
        """Whether the plan runs on the device at all, within the budget or not."""
        peak_bytes = trial.measurement.peak_bytes
        if trial.measurement.outcome not in (Outcome.OK, Outcome.OVER_BUDGET) or peak_bytes is None:
            return False
        total_bytes = self._study.environment.device_total_bytes
        return total_bytes is None or trial.fits(self._budgets_bytes[0])

    def _smallest_peak(self) -> tuple[int | None, str | None]:
        """The smallest peak that a plan of the study reaches, and the plan.

        A trial over the budget stops after its first step, where the optimizer has no state yet: its peak is a lower
        bound. One that a card's cap ended has none, and its predicted peak stands for it. Where nothing fits, the most
        promising plans are run to their end.
        """
        peaks: dict[str, int] = {}
        promising: list[tuple[int, TrialRecord]] = []
        for trial in self._trials.values():
            peak_bytes = trial.measurement.peak_bytes
            if peak_bytes is not None and trial.measurement.outcome is Outcome.OK:
                peaks[trial.plan_hash] = peak_bytes
                continue
            foreseen = self._predictions.get(trial.plan_hash)
            if peak_bytes is None and trial.measurement.outcome is Outcome.OVER_BUDGET and foreseen is not None:
                peak_bytes = foreseen.peak_bytes
            if peak_bytes is not None:
                promising.append((peak_bytes, trial))
        budget_bytes = self._budgets_bytes[0]
        if min(peaks.values(), default=budget_bytes + 1) > budget_bytes:
            for lower_bound_bytes, trial in sorted(promising, key=lambda candidate: candidate[0])[:CANDIDATES]:
                if lower_bound_bytes >= min(peaks.values(), default=lower_bound_bytes + 1):
                    break
                whole = self._engine.measure(MeasurePlan(trial.plan_toml, None, None, timed_pairs=0))
                if whole.outcome is Outcome.OK and whole.peak_bytes is not None:
                    peaks[trial.plan_hash] = whole.peak_bytes
        smallest = min(peaks, key=peaks.__getitem__, default=None)
        return (None, None) if smallest is None else (peaks[smallest], smallest)

    def _peak_over_many_steps(self, trial: TrialRecord, budget_bytes: int) -> int | None:
        """The highest peak of the trial and of more steps on other batches; None if that is over the budget."""
        seen = self._endurance.seen(trial)
        if seen.fits(budget_bytes):
            return seen.measurement.peak_bytes
        self._reporter.stage(f"{failure(seen)}; trying the next fastest")
        return None

    def _compare_gradients(self, trial: TrialRecord, *, no_ac_runs: bool) -> GradientReport:
        if trial.plan_hash not in self._gradients:
            if no_ac_runs:
                expected = dump_plan(Plan(), with_provenance=False)
            else:
                reference = self._study.reference_hash
                expected = next(t.plan_toml for t in self._trials.values() if t.plan_hash == reference)
            self._gradients[trial.plan_hash] = self._engine.compare_gradients(
                CompareGradients(trial.plan_toml, expected)
            )
        return self._gradients[trial.plan_hash]

    def _with_provenance(self, trial: TrialRecord, entry: VerdictEntry, budget_bytes: int, peak_bytes: int) -> str:
        study, plan = self._study, parse_plan(trial.plan_toml)
        predicted = self._predictions.get(trial.plan_hash)
        provenance: dict[str, Any] = {
            "plan_hash": plan_hash(plan),
            "target": study.target.spec,
            "target_fingerprint": study.target.fingerprint,
            "budget_bytes": budget_bytes,
            "peak_bytes": peak_bytes,
            "step_time_s": median_step_time_s(entry.samples),
            "predicted_peak_bytes": predicted.peak_bytes if predicted else None,
            "predicted_step_time_s": predicted.step_time_s if predicted else None,
            "relative_step_time": entry.relative_step_time,
            "reference_plan_hash": study.reference_hash,
            "device": study.environment.device,
            "device_name": study.environment.device_name,
            "allocator": study.environment.allocator,
            "torch_version": study.environment.torch_version,
            "actune_version": __version__,
            "study": study.name,
            "trial": trial.number,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        known = {key: value for key, value in provenance.items() if value is not None}  # TOML has no null
        return dump_plan(Plan(plan.rules, plan.compile, known))
