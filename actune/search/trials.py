"""The trials of a study: ask → plan → a worker measures → outcome → store → tell.

An outcome is stored before it is told, so a coordinator killed between the two finds it again and only tells it.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from actune.engine import Engine
from actune.errors import PlanError
from actune.plan import Plan, dump_plan, parse_plan, plan_hash
from actune.records import Measurement, MeasurePlan, Outcome
from actune.search.agenda import Agenda
from actune.search.endurance import Endurance, failure
from actune.search.foresight import Foresight
from actune.search.ledger import Ledger
from actune.search.reporter import Progress, Reporter
from actune.search.study import PlanStudy, Proposal
from actune.store import Store, environment_fingerprint
from actune.study_records import StopReason, StudyRecord, TrialRecord


@dataclass(frozen=True, slots=True)
class _Running:
    proposal: Proposal
    plan_hash: str
    plan_toml: str
    reference_hash: str
    started_at: str


class TrialLoop:
    """Runs the trials of one study, from wherever it is."""

    def __init__(
        self,
        store: Store,
        record: StudyRecord,
        engine: Engine,
        reporter: Reporter,
        study: PlanStudy,
        agenda: Agenda,
        foresight: Foresight,
        ledger: Ledger,
        endurance: Endurance,
        *,
        deadline_s: float | None,
    ) -> None:
        """Runs nothing yet.

        Args:
            store: keeps the trials.
            record: of the study, its budgets known.
            engine: measures.
            reporter: hears about every trial.
            study: Optuna's.
            agenda: what comes next.
            foresight: what is predicted.
            ledger: the study's trials so far.
            endurance: runs what may be the best for longer.
            deadline_s: on the monotonic clock; no trial but the first starts after it.
        """
        assert record.budget_bytes is not None, "budgets are known before the first trial"
        self._store = store
        self._record = record
        self._settings = record.settings
        self._budget_bytes = record.budget_bytes
        self._engine = engine
        self._reporter = reporter
        self._study = study
        self._agenda = agenda
        self._foresight = foresight
        self._ledger = ledger
        self._endurance = endurance
        self._deadline_s = deadline_s
        self._running: dict[Future[Measurement], _Running] = {}

    @property
    def record(self) -> StudyRecord:
        """Of the study, with its reference once there is one."""
        return self._record

    def recover(self) -> None:
        """Trials that say RUNNING are dead: told if their outcome was stored, else queued again."""
        if self._record.reference_hash is not None:
            self._ledger.set_reference(parse_plan(self._store.plan_toml(self._record.reference_hash)))
        for trial in self._ledger.trials:
            self._consider_as_reference(trial)
        stored = {trial.number: trial for trial in self._ledger.trials}
        for number in self._study.running_numbers():
            if number in stored:
                self._tell(stored[number])
            else:
                self._study.requeue(number)

    def run(self) -> StopReason:
        """Runs trials until there is a reason to stop."""
        reason: StopReason | None = None
        while True:
            while reason is None and len(self._running) < self._settings.workers:
                reason = self._start_next()
                if self._record.reference_hash is None and self._running:
                    break  # the first trial that fits is the reference, and the others wait for it
            if not self._running:
                assert reason is not None
                if reason not in (StopReason.TOLERANCE, StopReason.EXHAUSTED) or not self._disproves_a_best():
                    return reason
                reason = None
                continue
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            # Those that ended well first: one whose worker could not start ends the search, and they are to be kept.
            for future in sorted(done, key=lambda f: (_ends_the_search(f), self._running[f].proposal.number)):
                started = self._running.pop(future)
                self._finish(started, _outcome_of(future), reused=False)
            if reason in (StopReason.TOLERANCE, StopReason.EXHAUSTED):
                reason = None  # what has just ended may have taught otherwise
            self._disproves_a_best(surprising=True)

    def _disproves_a_best(self, *, surprising: bool = False) -> bool:
        """Whether a best plan so far turned out to be over its budget in the long run. That is stored and learned.

        Args:
            surprising: only look at plans whose like had other peaks than predicted: what a step holds then depends on
                more than the plan, and the trials to come would aim too high.
        """
        assert self._record.budgets_bytes, "budgets are known before the first trial"
        for budget_bytes in self._record.budgets_bytes:
            for best in self._ledger.fitting(budget_bytes)[:1]:
                if surprising and self._foresight.margins.is_exact(parse_plan(best.plan_toml).compile):
                    continue
                seen = self._endurance.seen(best)
                if not seen.fits(budget_bytes):
                    self._reporter.stage(f"{failure(seen)}; it counts as over the budget")
                    self._store.amend_trial(
                        self._record.name,
                        seen,
                        reference_hash=self._record.reference_hash,
                        budget_bytes=self._budget_bytes,
                    )
                    self._ledger.amend(seen)
                    return True
        return False

    def _start_next(self) -> StopReason | None:
        """Starts a trial, or tells Optuna of one that needs no run; says why if there are no more."""
        left = self._settings.trials - len(self._ledger.trials) - len(self._running)
        if left <= 0:
            return StopReason.TRIALS
        # Without a trial there would be nothing to say, however long loading and profiling took.
        has_begun = self._ledger.trials or self._running
        if has_begun and self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            return StopReason.TIMEOUT
        is_hopeless = self._record.target.static_bytes > self._budget_bytes
        if is_hopeless and not self._study.has_queued():
            return StopReason.EXHAUSTED
        reason = self._agenda.prepare(self._needs_no_trial, trials_left=left)
        if reason is not None:
            return reason
        started = self._next()
        if started is not None:
            request = MeasurePlan(
                started.plan_toml,
                self._reference_toml(started),
                self._budget_bytes,
                self._settings.timed_pairs,
                race=self._ledger.race(
                    self._foresight.smallest_budget_of(started.proposal.plan), timed_pairs=self._settings.timed_pairs
                ),
            )
            self._running[self._engine.submit(request)] = started
        return None

    def _needs_no_trial(self, plan: Plan) -> bool:
        return self._is_seen(plan_hash(plan)) or self._foresight.excess(plan) is not None

    def _is_seen(self, hash_of_plan: str) -> bool:
        running = {started.plan_hash for started in self._running.values()}
        return self._ledger.of_plan(hash_of_plan) is not None or hash_of_plan in running

    def _next(self) -> _Running | None:
        """The next plan, if it has to be run.

        A plan of this study that comes up again is told with its known outcome and is no trial of its own; nor is one
        that is predicted to be over the budget. One that an earlier study measured on the same target and environment
        is a trial that costs nothing.
        """
        proposal = self._study.ask()
        started = self._started(proposal)
        if self._is_seen(started.plan_hash):
            self._agenda.fruitless_in_a_row += 1
            same = self._ledger.of_plan(started.plan_hash)
            if same is None:
                self._study.drop(proposal.number)
            else:
                self._tell(same, as_number=proposal.number)
            return None
        excess = None if proposal.is_given else self._foresight.excess(proposal.plan)
        if excess is not None:
            self._study.prune(proposal.number, excess)
            self._agenda.fruitless_in_a_row += 1
            return None
        self._agenda.fruitless_in_a_row = 0
        self._foresight.note(proposal.plan)
        known = self._store.find_measurement(
            self._record.target.fingerprint,
            environment_fingerprint(self._record.environment),
            started.plan_hash,
            started.reference_hash,
            budget_bytes=self._budget_bytes,
        )
        if known is None:
            return started
        self._finish(started, known, reused=True)
        return None

    def _started(self, proposal: Proposal) -> _Running:
        hash_of_plan = plan_hash(proposal.plan)
        return _Running(
            proposal,
            hash_of_plan,
            dump_plan(proposal.plan, with_provenance=False),
            self._record.reference_hash or hash_of_plan,
            _now(),
        )

    def _reference_toml(self, started: _Running) -> str:
        if started.reference_hash == started.plan_hash:
            return started.plan_toml
        return self._store.plan_toml(started.reference_hash)

    def _finish(self, started: _Running, measurement: Measurement, *, reused: bool) -> None:
        trial = TrialRecord(
            number=started.proposal.number,
            plan_hash=started.plan_hash,
            plan_toml=started.plan_toml,
            preset=started.proposal.preset,
            attempt=started.proposal.attempt,
            reused=reused,
            measurement=measurement,
            started_at=started.started_at,
            finished_at=_now(),
        )
        self._store.record_trial(
            self._record.name, trial, reference_hash=started.reference_hash, budget_bytes=self._budget_bytes
        )
        self._ledger.add(trial)
        self._consider_as_reference(trial)
        self._tell(trial)
        self._report()

    def _consider_as_reference(self, trial: TrialRecord) -> None:
        """The first trial that fits is what the others are timed against: it is sure to run beside them."""
        if self._record.reference_hash is None and trial.fits(self._budget_bytes):
            self._store.set_reference(self._record.name, trial.plan_hash)
            self._record = replace(self._record, reference_hash=trial.plan_hash)
            self._ledger.set_reference(parse_plan(trial.plan_toml))

    def _tell(self, trial: TrialRecord, *, as_number: int | None = None) -> None:
        self._study.tell(
            trial.number if as_number is None else as_number,
            trial.measurement,
            budget_bytes=self._budget_bytes,
            relative_step_time=self._ledger.relative_step_times.get(trial.number),
            duplicate_of=None if as_number is None else trial.number,
        )

    def _report(self) -> None:
        fitting = self._ledger.fitting(self._budget_bytes)
        self._reporter.trial_finished(
            Progress(
                study=self._record,
                trials=tuple(self._ledger.trials),
                relative_step_times=dict(self._ledger.relative_step_times),
                best=fitting[0].number if fitting else None,
                total=self._settings.trials,
                deadline_s=None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic()),
            )
        )


def _ends_the_search(future: Future[Measurement]) -> bool:
    return not isinstance(future.exception(), PlanError | None)


def _outcome_of(future: Future[Measurement]) -> Measurement:
    try:
        return future.result()
    except PlanError as error:
        return Measurement(Outcome.ERROR, message=str(error))


def _now() -> str:
    return datetime.now(UTC).isoformat()
