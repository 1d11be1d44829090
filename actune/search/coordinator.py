"""The coordinator: the one process that talks to Optuna and to the database while workers measure.

The life of a trial: ask → plan → a worker measures → outcome → store → tell. It is stored before it is told, so a
coordinator killed between the two finds the outcome again and only tells it.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path

from actune.config import AUTO_SPACE, load_space, parse_space, space_for
from actune.engine import Engine, EngineFactory, LocalEngine, target_error
from actune.errors import PlanError
from actune.plan import Plan, dump_plan, plan_hash
from actune.records import Loaded, LoadTarget, Measurement, MeasurePlan, Outcome
from actune.search.forecast import Forecast
from actune.search.foresight import Foresight
from actune.search.identity import check_same_study
from actune.search.reporter import Progress, Reporter
from actune.search.space import ModelSpace
from actune.search.study import PlanStudy, Proposal, optuna_errors
from actune.search.verdict import decide, fits
from actune.statistics import clock_of, relative_step_time
from actune.store import Store, environment_fingerprint, study_lock
from actune.study_records import StudyRecord, StudySettings, TrialRecord, Verdict
from actune.units import Budget, format_bytes

FRUITLESS_IN_A_ROW = 20
UNSEEN_TRIES = 500


@dataclass(frozen=True, slots=True)
class _Running:
    proposal: Proposal
    plan_hash: str
    plan_toml: str
    reference_hash: str
    started_at: str


class _Nothing(Enum):
    """Why there is no plan to run: its outcome was known or is foreseen, or the space has none left."""

    KNOWN = auto()
    LEFT = auto()


def run_search(
    store: Store,
    name: str,
    settings: StudySettings,
    *,
    log_folder: Path,
    reporter: Reporter,
    engine_factory: EngineFactory = LocalEngine,
) -> Verdict:
    """Runs a study to its end, from wherever it is.

    Args:
        store: an open store.
        name: the study's; if there is one of that name it goes on, with these settings.
        settings: what to search for, and how long.
        log_folder: for what workers print, and for tracebacks.
        reporter: hears about every trial.
        engine_factory: makes what runs the workers.

    Returns:
        How the study ended. `best_hash` is None if no plan fits the budget.

    Raises:
        UsageError: the target, device or space does not exist, or one of them or the budget is another one than the
            study's.
        TargetError: the target is at fault, whatever the plan.
        StorageError: the database can't be used.
        ActuneError: another process works on the study.
    """
    with study_lock(store.url, name):
        finished = _finished(store, name, settings)
        if finished is not None:
            return finished
        load = LoadTarget(settings.target, settings.device, settings.seed, settings.world_size)
        with (
            optuna_errors(store.url),
            engine_factory(
                load, workers=settings.workers, timeout_s=settings.trial_timeout_s, log_folder=log_folder
            ) as engine,
        ):
            return _Coordinator(store, name, settings, engine, log_folder, reporter).run()


def _finished(store: Store, name: str, settings: StudySettings) -> Verdict | None:
    """The verdict of a study that has nothing left to do."""
    if not store.has_study(name):
        return None
    verdict = store.verdict(name)
    is_done = verdict is not None and verdict.trials >= settings.trials
    return verdict if is_done and store.study(name).settings == settings else None


class _Coordinator:
    def __init__(
        self,
        store: Store,
        name: str,
        settings: StudySettings,
        engine: Engine,
        log_folder: Path,
        reporter: Reporter,
    ) -> None:
        self._store = store
        self._name = name
        self._settings = settings
        self._engine = engine
        self._log_folder = log_folder
        self._reporter = reporter
        self._deadline_s = None if settings.timeout_s is None else time.monotonic() + settings.timeout_s
        self._trials: list[TrialRecord] = []
        self._trial_of_plan: dict[str, TrialRecord] = {}
        self._relative_step_times: dict[int, float] = {}
        self._fruitless_in_a_row = 0

    def run(self) -> Verdict:
        self._reporter.stage(f"loading {self._settings.target} on {self._settings.device}")
        loaded = self._engine.load()
        record = self._existing_study(loaded)
        space = parse_space(self._settings.space_yaml, name=self._settings.space)
        self._space = ModelSpace(space, loaded.target.structure)
        self._clock = clock_of(loaded.environment)
        self._no_ac_runs, self._budget_bytes = self._measure_without_ac(record)
        if record is None:
            # Not before: a target or a space at fault is corrected, and the same command run again.
            self._store.create_study(self._name, self._settings, loaded.target, loaded.environment)
        self._store.set_budget(self._name, self._budget_bytes)
        self._record = self._store.study(self._name)
        forecast = Forecast(self._engine, loaded.target.structure, self._space)
        self._foresight = Foresight(self._store, self._name, forecast, self._space, budget_bytes=self._budget_bytes)
        first = self._foresight.look_ahead(self._reporter)
        for trial in self._store.trials(self._name):
            self._remember(trial)
        self._study = PlanStudy(
            self._store, self._name, self._space, sampler=self._settings.sampler, seed=self._settings.seed, first=first
        )
        with closing(self._study):
            self._recover()
            self._run_trials()
        self._reporter.stage("comparing the best plans and the presets side by side")
        verdict = decide(
            self._record,
            self._trials,
            self._relative_step_times,
            self._engine,
            no_ac_runs=self._no_ac_runs,
            predictions={record.plan_hash: record for record in self._store.predictions(self._name)},
        )
        self._store.save_verdict(self._name, verdict)
        return verdict

    # What the study is about

    def _existing_study(self, loaded: Loaded) -> StudyRecord | None:
        """The study if there is one that these settings go on with, and the settings completed.

        Raises:
            UsageError: there is one, of another target, environment, budget or space.
        """
        is_auto = self._settings.space == AUTO_SPACE
        if not self._store.has_study(self._name):
            if is_auto:
                space = load_space(space_for(loaded.target.structure))
                self._settings = replace(self._settings, space=space.name, space_yaml=space.yaml_text)
            return None
        record = self._store.study(self._name)
        if is_auto:
            self._settings = replace(self._settings, space=record.settings.space, space_yaml=record.settings.space_yaml)
        check_same_study(record, self._settings, loaded)
        if record.settings != self._settings:
            self._store.update_settings(self._name, self._settings)
        return record

    def _measure_without_ac(self, record: StudyRecord | None) -> tuple[bool, int]:
        """Whether the target runs without AC at all, and the budget in bytes.

        One trial-like run before the first trial: it tells a target at fault from a plan at fault.

        Raises:
            TargetError: the target fails without any plan.
            UsageError: the budget is a share of a peak that can't be measured.
        """
        self._reporter.stage("measuring the peak without AC")
        toml = dump_plan(Plan(), with_provenance=False)
        measurement = self._engine.measure(MeasurePlan(toml, None, None, timed_pairs=0))
        if measurement.outcome in (Outcome.ERROR, Outcome.TIMEOUT, Outcome.CRASHED):
            raise target_error(
                f"target '{self._settings.target}' fails without any activation checkpointing: {measurement.message}",
                measurement.detail,
                log_folder=self._log_folder,
            )
        runs = measurement.outcome is Outcome.OK
        budget = Budget.parse(self._settings.budget)
        known_bytes = None if record is None else record.budget_bytes
        budget_bytes = known_bytes or budget.resolve_bytes(measurement.peak_bytes if runs else None)
        peak = format_bytes(measurement.peak_bytes) if runs else "more than the device has"
        self._reporter.stage(f"peak without AC: {peak}; budget: {format_bytes(budget_bytes)}")
        return runs, budget_bytes

    # Trials

    def _recover(self) -> None:
        """Trials that say RUNNING are dead: told if their outcome was stored, else queued again."""
        for trial in self._trials:
            self._consider_as_reference(trial)
        stored = {trial.number: trial for trial in self._trials}
        for number in self._study.running_numbers():
            if number in stored:
                self._tell(stored[number])
            else:
                self._study.requeue(number)

    def _run_trials(self) -> None:
        running: dict[Future[Measurement], _Running] = {}
        exhausted = False
        while True:
            while not exhausted and len(running) < self._settings.workers and self._wants_more(len(running)):
                started = self._next(running)
                if started is _Nothing.KNOWN:
                    continue
                if started is _Nothing.LEFT:
                    exhausted = True
                    self._reporter.stage(
                        "every plan of the space has been measured, or is predicted to be over the budget"
                    )
                    break
                request = MeasurePlan(
                    started.plan_toml, self._reference_toml(started), self._budget_bytes, self._settings.timed_pairs
                )
                running[self._engine.submit(request)] = started
                if self._record.reference_hash is None:
                    break  # the first trial that fits is the reference, and the others wait for it
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            # Those that ended well first: one whose worker could not start ends the search, and they are to be kept.
            for future in sorted(done, key=lambda f: (f.exception() is not None, running[f].proposal.number)):
                started = running.pop(future)
                self._finish(started, _outcome_of(future), reused=False)

    def _wants_more(self, running: int) -> bool:
        if len(self._trials) + running >= self._settings.trials:
            return False
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            return False
        hopeless = self._record.target.static_bytes > self._budget_bytes
        return not hopeless or self._study.has_queued()

    def _next(self, running: dict[Future[Measurement], _Running]) -> _Running | _Nothing:
        """The next plan, if it has to be run.

        A plan of this study that comes up again is told with its known outcome and is no trial of its own; nor is one
        that is predicted to be over the budget. One that an earlier study measured on the same target and environment
        is a trial that costs nothing.
        """
        seen = self._trial_of_plan.keys() | {other.plan_hash for other in running.values()}
        if self._fruitless_in_a_row >= FRUITLESS_IN_A_ROW:
            if not self._study.enqueue_unseen(
                lambda plan: plan_hash(plan) in seen or self._foresight.excess(plan) is not None, tries=UNSEEN_TRIES
            ):
                return _Nothing.LEFT
            self._fruitless_in_a_row = 0
        proposal = self._study.ask()
        started = self._started(proposal)
        if started.plan_hash in seen:
            self._fruitless_in_a_row += 1
            same = self._trial_of_plan.get(started.plan_hash)
            if same is None:
                self._study.drop(proposal.number)
            else:
                self._tell(same, as_number=proposal.number)
            return _Nothing.KNOWN
        excess = None if proposal.is_given else self._foresight.excess(proposal.plan)
        if excess is not None:
            self._study.prune(proposal.number, excess)
            self._fruitless_in_a_row += 1
            return _Nothing.KNOWN
        self._fruitless_in_a_row = 0
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
        return _Nothing.KNOWN

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
            self._name, trial, reference_hash=started.reference_hash, budget_bytes=self._budget_bytes
        )
        self._remember(trial)
        self._consider_as_reference(trial)
        self._tell(trial)
        self._report()

    def _remember(self, trial: TrialRecord) -> None:
        self._trials.append(trial)
        self._trial_of_plan[trial.plan_hash] = trial
        self._foresight.learn(trial)
        ratio = relative_step_time(trial.measurement, self._clock)
        if ratio is not None:
            self._relative_step_times[trial.number] = ratio

    def _consider_as_reference(self, trial: TrialRecord) -> None:
        """The first trial that fits is what the others are timed against: it is sure to run beside them."""
        if self._record.reference_hash is None and fits(trial, self._budget_bytes):
            self._store.set_reference(self._name, trial.plan_hash)
            self._record = replace(self._record, reference_hash=trial.plan_hash)

    def _tell(self, trial: TrialRecord, *, as_number: int | None = None) -> None:
        self._study.tell(
            trial.number if as_number is None else as_number,
            trial.measurement,
            budget_bytes=self._budget_bytes,
            relative_step_time=self._relative_step_times.get(trial.number),
            duplicate_of=None if as_number is None else trial.number,
        )

    def _report(self) -> None:
        relative = self._relative_step_times
        fitting = [t.number for t in self._trials if t.number in relative and fits(t, self._budget_bytes)]
        left_s = None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())
        self._reporter.trial_finished(
            Progress(
                study=replace(self._record, budget_bytes=self._budget_bytes),
                trials=tuple(self._trials),
                relative_step_times=dict(relative),
                best=min(fitting, key=relative.__getitem__, default=None),
                total=self._settings.trials,
                deadline_s=left_s,
            )
        )


def _outcome_of(future: Future[Measurement]) -> Measurement:
    try:
        return future.result()
    except PlanError as error:
        return Measurement(Outcome.ERROR, message=str(error))


def _now() -> str:
    return datetime.now(UTC).isoformat()
