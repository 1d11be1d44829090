"""The Optuna study: ask, tell, and what a coordinator that died left behind.

Plans that are given, such as presets, are enqueued. One that has parameters in the space that is sampled is a trial
with these, so that the sampler learns from it; any other is a trial without.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from actune.errors import StorageError, describe_error
from actune.plan import Plan, dump_plan
from actune.records import Measurement, Outcome
from actune.search.proposers import PlanSource, make_sampler, suggest
from actune.search.space import ModelSpace
from actune.store import Store, stored_plan
from actune.store.failures import storage_errors
from actune.store.location import parse_location
from actune.store.lock import setup_lock

PEAK_CONSTRAINT = "peak_over_budget"
"""The share by which the peak is over the budget; feasible at 0 and below."""

_PRESET, _ATTEMPT, _DUPLICATE_OF, _PLAN = "actune:preset", "actune:attempt", "actune:duplicate_of", "actune:plan"
MAX_ATTEMPTS = 3


@contextmanager
def optuna_errors(store_url: str) -> Iterator[None]:
    """Within it, errors of the database that Optuna ran into are StorageErrors.

    Raises:
        StorageError: names the database, says what is wrong with it and what to do.
    """
    try:
        yield
    except StorageInternalError as error:
        with storage_errors(parse_location(store_url)):
            raise error.__cause__ or error from None


def open_optuna_storage(store: Store) -> optuna.storages.RDBStorage:
    """Optuna's view of the store's database, with its tables made if they were not there.

    Raises:
        StorageError: the database can't be used.
    """
    with setup_lock(store.url), storage_errors(parse_location(store.url)):
        storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
    store.guard(storage.engine)
    return storage


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Within it, what Optuna raises where its own tables hold what it never wrote is a StorageError."""
    try:
        yield
    except (LookupError, ArithmeticError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise StorageError(
            f"Optuna's tables of study '{name}' hold what it can't read: {describe_error(error)}. Restore the database "
            "from a copy, or start a new study with --study."
        ) from error


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan to measure, as Optuna's trial `number`; `is_given` if it was to be tried first."""

    number: int
    plan: Plan
    preset: str | None
    attempt: int
    is_given: bool


class PlanStudy:
    """Optuna's study of a name, which proposes plans and learns their outcomes."""

    def __init__(
        self,
        store: Store,
        name: str,
        space: ModelSpace,
        *,
        sampler: str,
        seed: int,
        source: PlanSource | None = None,
        objectives: int = 1,
    ) -> None:
        """Opens the study, or creates it.

        Args:
            store: an open store.
            name: the study's.
            space: has the presets.
            sampler: one of SAMPLERS.
            seed: of the sampler.
            source: what is sampled; the space without it.
            objectives: 1 minimizes step time, 2 step time and peak.

        Raises:
            StorageError: the database can't be used.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._source = source or space
        self._objectives = objectives
        with _readable(name):
            self._storage = open_optuna_storage(store)
        with storage_errors(parse_location(store.url)), _readable(name):
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, directions=["minimize"] * objectives, load_if_exists=True
            )
            trials = self._study.get_trials(deepcopy=False)
            if [trial.number for trial in trials] != list(range(len(trials))):
                raise ValueError("the numbers of trials have gaps")
            if len(self._study.directions) != objectives:
                raise ValueError(f"{len(self._study.directions)} objectives instead of {objectives}")
        # A sampler that starts anew with the same seed would propose the first trials again.
        self._study.sampler = make_sampler(sampler, seed + len(trials))
        # Optuna's GP models what all completed trials have in common: one without parameters would leave it nothing.
        self._completes_without_parameters = sampler != "gp"
        self._rng = random.Random(seed + len(trials))
        # Optuna reads the whole study where it is asked for a trial by its number; what this process knows it keeps.
        self._waiting = sum(trial.state is TrialState.WAITING for trial in trials)
        self._asked: dict[int, optuna.Trial] = {}
        self._constrained: set[int] = {trial.number for trial in trials if PEAK_CONSTRAINT in trial.constraints}
        self._queued_presets = {trial.user_attrs[_PRESET] for trial in trials if _PRESET in trial.user_attrs}
        self._queued_plans = {trial.user_attrs[_PLAN] for trial in trials if _PLAN in trial.user_attrs}

    def close(self) -> None:
        """Closes Optuna's connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def has_preset(self, name: str) -> bool:
        """Whether a preset was enqueued: a coordinator may have died before it had them all."""
        return name in self._queued_presets

    def queue_preset(self, name: str) -> None:
        """Enqueues a preset of the space, unless it was."""
        if not self.has_preset(name):
            self._queued_presets.add(name)
            self._enqueue(self._source.encode(self._space.presets[name]) or {}, {_PRESET: name})

    def queue_plan(self, plan: Plan, *, preset: str | None = None, values: Mapping[str, Any] | None = None) -> None:
        """Enqueues a plan, unless it was, or a preset of that name.

        Args:
            plan: any.
            preset: a name for it, which makes it a preset.
            values: its parameters, for the sampler to learn from.
        """
        toml = dump_plan(plan, with_provenance=False)
        if toml in self._queued_plans if preset is None else self.has_preset(preset):
            return
        self._queued_plans.add(toml)
        attrs = {_PLAN: toml}
        if preset is not None:
            self._queued_presets.add(preset)
            attrs[_PRESET] = preset
        self._enqueue(dict(values or {}), attrs)

    def _enqueue(self, values: dict[str, Any], user_attrs: dict[str, Any]) -> None:
        self._study.enqueue_trial(values, user_attrs=user_attrs)
        self._waiting += 1

    def running_numbers(self) -> list[int]:
        """Trials that say they run. When a coordinator starts, their own is dead."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def _trial(self, number: int) -> FrozenTrial:
        with _readable(self._study.study_name):
            return self._study.get_trials(deepcopy=False)[number]

    def has_queued(self) -> bool:
        """Whether enqueued trials wait: presets, or interrupted trials."""
        return self._waiting > 0

    def requeue(self, number: int) -> bool:
        """Closes a dead trial and puts its plan into the queue again, twice at most. Whether it was."""
        trial = self._trial(number)
        attempt = int(trial.user_attrs.get(_ATTEMPT, 1)) + 1
        if attempt <= MAX_ATTEMPTS:
            # Before the old one is closed: dying in between leaves the plan twice in the study, not lost to it. What
            # the queue had fixed counts too, since the trial may have died before it was asked for it.
            fixed = trial.system_attrs.get("fixed_params", {})
            kept = {key: trial.user_attrs[key] for key in (_PRESET, _PLAN) if key in trial.user_attrs}
            self._enqueue(fixed | trial.params, kept | {_ATTEMPT: attempt})
        self._study.tell(number, state=TrialState.FAIL)
        return attempt <= MAX_ATTEMPTS

    def drop(self, number: int) -> None:
        """Closes a trial whose plan is being measured under another number."""
        self._study.tell(number, state=TrialState.FAIL)

    def ask(self) -> Proposal:
        """The next plan: from the queue first, then from the source."""
        trial = self._study.ask()
        is_queued, self._waiting = self._waiting > 0, max(0, self._waiting - 1)
        self._asked[trial.number] = trial
        attrs = trial.user_attrs
        preset = attrs.get(_PRESET)
        is_given = _PLAN in attrs
        plan = stored_plan(attrs[_PLAN]) if is_given else self._space.presets.get(preset or "")
        values: dict[str, Any] = {}
        # Fixed by the queue: asking for them makes them parameters that the sampler learns from.
        if plan is None or (is_queued and self._trial(trial.number).system_attrs.get("fixed_params")):
            values = self._suggest(trial)
        if plan is None:
            plan = self._source.decode(values, trial.number)
            # Should the trial be interrupted, its parameters may come to stand for another plan.
            trial.set_user_attr(_PLAN, dump_plan(plan, with_provenance=False))
        return Proposal(trial.number, plan, preset, int(attrs.get(_ATTEMPT, 1)), is_given)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while True:
            missing = [choice for choice in self._source.choices(values) if choice.name not in values]
            if not missing:
                return values
            for choice in missing:
                values[choice.name] = suggest(trial, choice)

    def prune(self, number: int, excess: float) -> None:
        """Tells Optuna that a plan was not run since it is predicted to be over the budget, by that share of it."""
        trial = self._asked.pop(number)
        trial.set_user_attr("feasible", False)
        self._constrain(trial, excess)
        self._study.tell(trial, state=TrialState.PRUNED)

    def enqueue_unseen(self, is_seen: Callable[[Plan], bool], *, tries: int) -> bool:
        """Puts a random plan that has not been seen into the queue; False if `tries` draws found none."""
        for _ in range(tries):
            plan = self._space.decode(self._space.random_values(self._rng))
            if not is_seen(plan):
                self.queue_plan(plan, values=self._source.encode(plan))
                return True
        return False

    def tell(
        self,
        number: int,
        measurement: Measurement,
        *,
        budget_bytes: int,
        relative_step_time: float | None,
        duplicate_of: int | None = None,
    ) -> None:
        """Tells Optuna how a trial ended. Telling a trial twice is no error: a coordinator may have died in between.

        A plan that fits is a value; one over the budget or out of memory is PRUNED with its constraint, from which the
        sampler learns; a crash, a hang or an error is FAIL. For `gp` a plan without parameters is PRUNED too.
        """
        trial = self._asked.get(number)
        if trial is None:
            frozen = self._trial(number)
            if frozen.state.is_finished():
                return
            trial = optuna.Trial(self._study, frozen._trial_id)
        excess = _excess(measurement, budget_bytes)
        trial.set_user_attr("feasible", excess is not None and excess <= 0)
        trial.set_user_attr("peak_bytes", measurement.peak_bytes)
        if duplicate_of is not None:
            trial.set_user_attr(_DUPLICATE_OF, duplicate_of)
        if excess is None:
            self._study.tell(trial, state=TrialState.FAIL)
            self._asked.pop(number, None)
            return
        self._constrain(trial, excess)
        teaches = self._completes_without_parameters or bool(trial.params)
        if excess <= 0 and relative_step_time is not None and teaches:
            assert measurement.peak_bytes is not None, "a plan that fits has a peak"
            values = [relative_step_time, measurement.peak_bytes / budget_bytes]
            self._study.tell(trial, values[: self._objectives])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        self._asked.pop(number, None)

    def _constrain(self, trial: optuna.Trial, excess: float) -> None:
        """Once: Optuna refuses a second time, as after a telling that was cut short."""
        if trial.number not in self._constrained:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                trial.set_constraint(PEAK_CONSTRAINT, excess)
            self._constrained.add(trial.number)


def _excess(measurement: Measurement, budget_bytes: int) -> float | None:
    """By what share of the budget the peak is over it; 1 where memory ran out before a peak was known."""
    if measurement.outcome in (Outcome.OK, Outcome.OVER_BUDGET) and measurement.peak_bytes is not None:
        return (measurement.peak_bytes - budget_bytes) / budget_bytes
    return 1.0 if measurement.outcome in (Outcome.OVER_BUDGET, Outcome.OOM) else None
