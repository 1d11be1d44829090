"""The coordinator: the one process that talks to Optuna and to the database while workers measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from actune.config import AUTO_SPACE, load_space, parse_space, space_for
from actune.engine import Engine, EngineFactory, target_error
from actune.engine import engine_factory as engine_of
from actune.plan import Plan, dump_plan
from actune.records import Loaded, LoadTarget, MeasurePlan, Outcome
from actune.search.advice import CONFIDENCE
from actune.search.agenda import Agenda
from actune.search.endurance import Endurance
from actune.search.forecast import Forecast
from actune.search.foresight import Foresight
from actune.search.identity import check_same_study
from actune.search.ledger import Ledger
from actune.search.reporter import Reporter
from actune.search.space import ModelSpace
from actune.search.study import PlanStudy, optuna_errors
from actune.search.trials import TrialLoop
from actune.search.verdict import Judge
from actune.statistics import clock_of
from actune.store import Store
from actune.study_records import StopReason, StudyRecord, StudySettings, Verdict
from actune.units import Budget, format_bytes


def run_search(
    store: Store,
    name: str,
    settings: StudySettings | Callable[[], StudySettings],
    *,
    log_folder: Path,
    reporter: Reporter,
    engine_factory: EngineFactory | None = None,
    while_held: Callable[[str], None] | None = None,
) -> Verdict:
    """Runs a study to its end, from wherever it is.

    Args:
        store: an open store.
        name: the study's; if there is one of that name it goes on, with these settings.
        settings: what to search for, and how long; or what says so once no other process works on the study.
        log_folder: for what workers print, and for tracebacks.
        reporter: hears about every trial.
        engine_factory: makes what runs the workers, in the place of what the settings name.
        while_held: with it, waits while another process works on the study, as in `study_lock`.

    Returns:
        How the study ended. `best_hash` is None if no plan fits the budget.

    Raises:
        UsageError: the target, device or space does not exist, or one of them or the budget is another one than the
            study's.
        TargetError: the target is at fault, whatever the plan.
        StorageError: the database can't be used, or its server gave up this process's lock on the study.
        ActuneError: another process works on the study, and `while_held` is None.
    """
    with store.locked(name, while_held=while_held):
        settings = settings if isinstance(settings, StudySettings) else settings()
        finished = _finished(store, name, settings)
        if finished is not None:
            return finished
        factory = engine_factory or engine_of(settings.engine, settings.address, cards=settings.devices)
        load = LoadTarget(settings.target, settings.device, settings.seed, settings.world_size, settings.nproc_per_node)
        with (
            optuna_errors(store.url),
            factory(
                load, workers=settings.workers, timeout_s=settings.trial_timeout_s, log_folder=log_folder
            ) as engine,
        ):
            return _Coordinator(store, name, settings, engine, log_folder, reporter).run()


def _finished(store: Store, name: str, settings: StudySettings) -> Verdict | None:
    """The verdict of a study that has nothing left to do."""
    if not store.has_study(name):
        return None
    verdict = store.verdict(name)
    if verdict is None or store.study(name).settings != settings:
        return None
    found_all = verdict.stopped in (StopReason.TOLERANCE, StopReason.EXHAUSTED)
    is_done = verdict.trials >= settings.trials or (found_all and verdict.trials == len(store.trials(name)))
    return verdict if is_done else None


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

    def run(self) -> Verdict:
        self._reporter.stage(f"loading {self._settings.target} on {self._settings.device}")
        loaded = self._engine.load()
        record = self._existing_study(loaded)
        structure = loaded.target.structure
        space = ModelSpace(parse_space(self._settings.space_yaml, name=self._settings.space), structure)
        forecast = Forecast(self._engine, structure, space)
        no_ac_runs, budgets_bytes = self._measure_without_ac(record)
        if record is None:
            # Not before: a target or a space at fault is corrected, and the same command run again.
            self._store.create_study(self._name, self._settings, loaded.target, loaded.environment)
        foresight = Foresight(self._store, self._name, forecast, space, structure, seed=self._settings.seed)
        foresight.look_ahead(self._reporter)
        if self._settings.frontier and (record is None or record.budgets_bytes is None):
            budgets_bytes = foresight.budgets_between(loaded.target.static_bytes, max(budgets_bytes))
        self._store.set_budgets(self._name, budgets_bytes)
        foresight.choose_first(budgets_bytes, self._reporter)
        record = self._store.study(self._name)
        ledger = Ledger(foresight, clock_of(loaded.environment))
        for trial in self._store.trials(self._name):
            ledger.add(trial)
        agenda = Agenda(record, space, foresight, ledger)
        study = PlanStudy(
            self._store,
            self._name,
            space,
            sampler=agenda.sampler,
            seed=self._settings.seed,
            source=agenda.source,
            objectives=min(2, len(budgets_bytes)),
        )
        endurance = Endurance(self._engine, budgets_bytes[0])
        with closing(study):
            agenda.begin(study)
            loop = TrialLoop(
                self._store,
                record,
                self._engine,
                self._reporter,
                study,
                agenda,
                foresight,
                ledger,
                endurance,
                deadline_s=self._deadline_s,
            )
            loop.recover()
            reason = loop.run()
        if (why := self._why(reason)) is not None:
            self._reporter.stage(why)
        self._reporter.stage("comparing the best plans and the presets side by side")
        judge = Judge(
            loop.record,
            ledger,
            agenda,
            endurance,
            self._engine,
            self._reporter,
            self._store.predictions(self._name),
        )
        verdict = judge.decide(no_ac_runs=no_ac_runs, stopped=reason)
        self._store.save_verdict(self._name, verdict)
        return verdict

    def _why(self, reason: StopReason) -> str | None:
        """What is said of an end that nobody asked for."""
        if reason is StopReason.TOLERANCE:
            return (
                f"with {CONFIDENCE:.0%} confidence no plan of the space is faster than the best by more than "
                f"{self._settings.tolerance:.1%}: no more trials"
            )
        if reason is StopReason.EXHAUSTED:
            return (
                "every plan of the space that may be the best has been measured, or is predicted to be over the budget"
            )
        return None

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

    def _measure_without_ac(self, record: StudyRecord | None) -> tuple[bool, tuple[int, ...]]:
        """Whether the target runs without AC at all, and the budgets in bytes, the largest first.

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
        no_ac_bytes = measurement.peak_bytes if runs else None
        budgets_bytes = None if record is None else record.budgets_bytes
        if budgets_bytes is None:
            resolved = {budget.resolve_bytes(no_ac_bytes) for budget in Budget.parse_all(self._settings.budget)}
            budgets_bytes = tuple(sorted(resolved, reverse=True))
        peak = "more than the device has" if no_ac_bytes is None else format_bytes(no_ac_bytes)
        budgets = ", ".join(format_bytes(budget_bytes) for budget_bytes in budgets_bytes)
        self._reporter.stage(f"peak without AC: {peak}; budget: {budgets}")
        return runs, budgets_bytes
