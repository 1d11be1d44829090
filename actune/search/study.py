"""The Optuna study: ask, tell, and what a coordinator that died left behind. The one home of optuna.

A preset that lies in the space is enqueued with its parameters, so that the sampler learns from it; one that does not
(full on every Nth layer) is a trial without parameters.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from actune.errors import UsageError
from actune.plan import Plan, dump_plan, parse_plan
from actune.records import Measurement, Outcome
from actune.search.space import ModelSpace
from actune.store import Store
from actune.store.failures import storage_errors
from actune.store.location import parse_location
from actune.store.lock import setup_lock

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # group: parameters that not every trial has, as those of a compile mode, are sampled jointly all the same. Without
    # it one trial without parameters (a preset outside of the space) leaves each parameter to be sampled on its own.
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
}
PEAK_CONSTRAINT = "peak_over_budget"
"""The share by which the peak is over the budget; feasible at 0 and below."""

_PRESET, _ATTEMPT, _DUPLICATE_OF, _PLAN = "actune:preset", "actune:attempt", "actune:duplicate_of", "actune:plan"
MAX_ATTEMPTS = 3


def check_sampler(name: str) -> str:
    """The name, if there is such a sampler.

    Raises:
        UsageError: there is none.
    """
    if name not in SAMPLERS:
        raise UsageError(f"sampler '{name}' is not known. Expected one of: {', '.join(SAMPLERS)}.")
    return name


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
        self, store: Store, name: str, space: ModelSpace, *, sampler: str, seed: int, first: Sequence[Plan] = ()
    ) -> None:
        """Opens the study, or creates it with plans in its queue.

        Args:
            store: an open store.
            name: the study's.
            space: what the sampler chooses from. Its first preset is the first in the queue, the others are the last.
            sampler: one of SAMPLERS.
            seed: of the sampler.
            first: plans that come before the other presets.

        Raises:
            StorageError: the database can't be used.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        with setup_lock(store.url), storage_errors(parse_location(store.url)):
            self._storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction="minimize", load_if_exists=True
            )
        trials = self._study.get_trials(deepcopy=False)
        # A sampler that starts anew with the same seed would propose the first trials again.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.sampler = SAMPLERS[sampler](seed + len(trials))
        self._rng = random.Random(seed + len(trials))
        # One by one: a coordinator may have died before it had enqueued them all.
        known = {trial.user_attrs.get(_PRESET) for trial in trials}
        queued = {trial.user_attrs.get(_PLAN) for trial in trials}
        presets = [
            (space.encode(plan) or {}, {_PRESET: preset})
            for preset, plan in space.presets.items()
            if preset not in known
        ]
        tomls = [dump_plan(plan, with_provenance=False) for plan in first]
        others: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({}, {_PLAN: toml}) for toml in tomls if toml not in queued
        ]
        leading = 1 if len(presets) == len(space.presets) else 0
        for values, user_attrs in (*presets[:leading], *others, *presets[leading:]):
            self._enqueue(values, user_attrs)

    def close(self) -> None:
        """Closes Optuna's connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _enqueue(self, values: dict[str, Any], user_attrs: dict[str, Any]) -> None:
        self._study.enqueue_trial(values, user_attrs=user_attrs)

    def running_numbers(self) -> list[int]:
        """Trials that say they run. When a coordinator starts, their own is dead."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def _trial(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def has_queued(self) -> bool:
        """Whether enqueued trials wait: presets, or interrupted trials."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

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
        """The next plan: from the queue first, then from the sampler."""
        trial = self._study.ask()
        preset = trial.user_attrs.get(_PRESET)
        if _PLAN in trial.user_attrs:
            plan = parse_plan(trial.user_attrs[_PLAN])
        elif preset is not None and preset in self._space.presets:
            plan = self._space.presets[preset]
            # Fixed by the queue: asking for them makes them parameters that the sampler learns from.
            if self._space.encode(plan) is not None:
                self._suggest(trial)
        else:
            plan = self._space.decode(self._suggest(trial))
        is_given = _PLAN in trial.user_attrs
        return Proposal(trial.number, plan, preset, int(trial.user_attrs.get(_ATTEMPT, 1)), is_given)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while True:
            missing = [choice for choice in self._space.choices(values) if choice.name not in values]
            if not missing:
                return values
            for choice in missing:
                if choice.labels is not None:
                    values[choice.name] = trial.suggest_categorical(choice.name, choice.labels)
                else:
                    values[choice.name] = trial.suggest_int(choice.name, 0, choice.high or 0)

    def prune(self, number: int, excess: float) -> None:
        """Tells Optuna that a plan was not run since it is predicted to be over the budget, by that share of it."""
        trial = optuna.Trial(self._study, self._trial(number)._trial_id)
        trial.set_user_attr("feasible", False)
        _constrain(trial, excess)
        self._study.tell(number, state=TrialState.PRUNED)

    def enqueue_unseen(self, is_seen: Callable[[Plan], bool], *, tries: int) -> bool:
        """Puts a random plan that has not been seen into the queue; False if `tries` draws found none."""
        for _ in range(tries):
            values = self._space.random_values(self._rng)
            if not is_seen(self._space.decode(values)):
                self._enqueue(values, {})
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
        sampler learns; a crash, a hang or an error is FAIL.
        """
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
            self._study.tell(number, state=TrialState.FAIL)
            return
        if PEAK_CONSTRAINT not in frozen.constraints:  # which can be set once only
            _constrain(trial, excess)
        if excess <= 0 and relative_step_time is not None:
            self._study.tell(number, relative_step_time)
        else:
            self._study.tell(number, state=TrialState.PRUNED)


def _constrain(trial: optuna.Trial, excess: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        trial.set_constraint(PEAK_CONSTRAINT, excess)


def _excess(measurement: Measurement, budget_bytes: int) -> float | None:
    """By what share of the budget the peak is over it; 1 where memory ran out before a peak was known."""
    if measurement.outcome in (Outcome.OK, Outcome.OVER_BUDGET) and measurement.peak_bytes is not None:
        return (measurement.peak_bytes - budget_bytes) / budget_bytes
    return 1.0 if measurement.outcome in (Outcome.OVER_BUDGET, Outcome.OOM) else None
