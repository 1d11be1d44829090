"""Large studies for the load benchmark: the rows that a search would leave behind, written in bulk.

A search of ten thousand trials takes long even where trials take none. So a short one is run as ever, its trials are
read, more of the same kind are made up, and all of them are written at once. `same_rows` proves on the short search
that what is written in bulk is what the search itself wrote.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from actune.plan import Plan, Treatment, dump_plan, plan_hash
from actune.predictions import PredictionRecord
from actune.records import Measurement, MeasurePlan, Outcome
from actune.search.study import PEAK_CONSTRAINT
from actune.statistics import Clock, relative_step_time
from actune.store import Store, environment_fingerprint, rows
from actune.store import schema as tables
from actune.study_records import StudyRecord, TrialRecord, Verdict

SEGMENTS = (2, 8)
TREATMENTS = 4
"""A plan gives up to so many treatments to so many runs of layers: a text of several hundred bytes."""

LONGEST_IN = 500
"""Rows of an `IN (…)`."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A study as both sides of the database have it, trial by trial."""

    record: StudyRecord
    trials: tuple[TrialRecord, ...]
    of_optuna: tuple[FrozenTrial, ...]
    predictions: tuple[PredictionRecord, ...]
    verdict: Verdict | None

    def first(self, count: int) -> Filled:
        """With only so many trials, as it would stand right after its verdict."""
        verdict = None if self.verdict is None else replace(self.verdict, trials=count)
        kept = {trial.number for trial in self.trials[:count]}
        last = max(kept)
        of_optuna = tuple(trial for trial in self.of_optuna if trial.number <= last)
        named = {trial.plan_hash for trial in self.trials[:count]}
        predictions = tuple(p for p in self.predictions if p.plan_hash in named or p.preset or p.on_frontier)
        return Filled(self.record, self.trials[:count], of_optuna, predictions, verdict)


def read_filled(store: Store, name: str) -> Filled:
    """What a search left behind."""
    storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
    try:
        of_optuna = storage.get_all_trials(storage.get_study_id_from_name(name))
    finally:
        storage.engine.dispose()
    return Filled(
        store.study(name), tuple(store.trials(name)), tuple(of_optuna), store.predictions(name), store.verdict(name)
    )


class PlanMaker:
    """Random plans of a stack's menus, no two alike."""

    def __init__(self, menus: dict[str, tuple[Treatment, ...]], known: Iterable[str], seed: int) -> None:
        self._menus = menus
        self._rng = random.Random(seed)
        self._known = set(known)

    def plans(self, count: int) -> Iterator[Plan]:
        fqns = list(self._menus)
        while count:
            cuts = sorted(self._rng.sample(range(1, len(fqns)), self._rng.randint(*SEGMENTS) - 1))
            chosen = self._rng.sample(self._menus[fqns[0]], min(TREATMENTS, len(self._menus[fqns[0]])))
            treatments: dict[str, Treatment] = {}
            for start, end in zip([0, *cuts], [*cuts, len(fqns)], strict=True):
                treatments |= dict.fromkeys(fqns[start:end], self._rng.choice(chosen))
            plan = Plan.from_treatments(treatments)
            if plan_hash(plan) not in self._known:
                self._known.add(plan_hash(plan))
                count -= 1
                yield plan


def grown(
    short: Filled, plans: Iterable[Plan], engine: Any, predict: Any, clock: Clock, *, with_parameters: bool
) -> Filled:
    """The study with a trial for each of the plans more, as its search would have run them.

    Args:
        engine: measures them.
        predict: a plan's prediction, for the store.
        clock: the study's.
        with_parameters: whether the sampler has parameters, which are drawn at random here.
    """
    budget_bytes = short.record.budget_bytes
    assert budget_bytes is not None
    reference_toml = next(t.plan_toml for t in short.trials if t.plan_hash == short.record.reference_hash)
    distributions = _distributions(short.of_optuna) if with_parameters else {}
    rng = random.Random(0)
    trials, of_optuna, predictions = list(short.trials), list(short.of_optuna), list(short.predictions)
    first = 1 + max(trial.number for trial in of_optuna)
    at = datetime.fromisoformat(trials[-1].finished_at)
    for number, plan in enumerate(plans, start=first):
        toml = dump_plan(plan, with_provenance=False)
        measured = engine.measure(MeasurePlan(toml, reference_toml, budget_bytes, timed_pairs=5))
        start, at = at, at + timedelta(seconds=2)
        trials.append(
            TrialRecord(number, plan_hash(plan), toml, None, 1, False, measured, start.isoformat(), at.isoformat())
        )
        of_optuna.append(
            _told(trials[-1], budget_bytes, clock, len(of_optuna), _drawn(distributions, rng), distributions)
        )
        predictions.append(predict(plan))
    verdict = None if short.verdict is None else replace(short.verdict, trials=len(trials))
    return Filled(short.record, tuple(trials), tuple(of_optuna), tuple(predictions), verdict)


def _distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    return max((trial.distributions for trial in trials), key=len)


def _drawn(distributions: dict[str, BaseDistribution], rng: random.Random) -> dict[str, Any]:
    return {
        name: rng.choice(d.choices)
        if isinstance(d, optuna.distributions.CategoricalDistribution)
        else rng.uniform(d.low, d.high)
        for name, d in distributions.items()
    }


def _of_sampler(params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
    """What TPE notes of a trial: the values that it drew together."""
    drawn = {name: distributions[name].to_internal_repr(value) for name, value in params.items()}
    return {"tpe:relative_params:0": json.dumps(drawn)} if drawn else {}


def _told(
    trial: TrialRecord,
    budget_bytes: int,
    clock: Clock,
    trial_id: int,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
) -> FrozenTrial:
    """As `PlanStudy.ask` and `tell` leave a trial behind."""
    measurement: Measurement = trial.measurement
    assert measurement.outcome in (Outcome.OK, Outcome.OVER_BUDGET)
    assert measurement.peak_bytes is not None
    excess = (measurement.peak_bytes - budget_bytes) / budget_bytes
    ratio = relative_step_time(measurement, clock)
    fits = excess <= 0 and ratio is not None
    return FrozenTrial(
        number=trial.number,
        state=TrialState.COMPLETE if fits else TrialState.PRUNED,
        value=ratio if fits else None,
        datetime_start=datetime.fromisoformat(trial.started_at).replace(tzinfo=None),
        datetime_complete=datetime.fromisoformat(trial.finished_at).replace(tzinfo=None),
        params=params,
        distributions=distributions,
        user_attrs={"actune:plan": trial.plan_toml, "feasible": excess <= 0, "peak_bytes": measurement.peak_bytes},
        system_attrs={f"constraints:{PEAK_CONSTRAINT}": excess} | _of_sampler(params, distributions),
        intermediate_values={},
        trial_id=trial_id,
    )


def write_filled(store: Store, name: str, filled: Filled) -> None:
    """Writes a study of a new name in bulk."""
    record = filled.record
    store.create_study(name, record.settings, record.target, record.environment)
    assert record.budgets_bytes is not None
    assert record.reference_hash is not None
    store.set_budgets(name, record.budgets_bytes)
    store.set_reference(name, record.reference_hash)
    engine = sa.create_engine(store.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
        study_id = connection.execute(sa.select(tables.studies.c.id).where(tables.studies.c.name == name)).scalar_one()
        _write_plans(connection, filled)
        _write_trials(connection, study_id, filled)
        connection.execute(
            tables.predictions.insert(),
            [
                {"study_id": study_id}
                | {key: getattr(p, key) for key in ("plan_hash", "preset", "peak_bytes", "step_time_s", "on_frontier")}
                for p in filled.predictions
            ],
        )
    storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
    directions = [optuna.study.StudyDirection.MINIMIZE] * min(2, len(record.budgets_bytes))
    optuna_id = storage.create_new_study(directions, name)
    storage.remove_session()
    storage.engine.dispose()
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
        _write_optuna(connection, optuna_id, filled.of_optuna)
    engine.dispose()
    if filled.verdict is not None:
        store.save_verdict(name, filled.verdict)


def _write_plans(connection: sa.Connection, filled: Filled) -> None:
    texts = {t.plan_hash: t.plan_toml for t in (*filled.predictions, *filled.trials)}
    known = set(connection.execute(sa.select(tables.plans.c.plan_hash)).scalars())
    new = [{"plan_hash": key, "toml": toml} for key, toml in texts.items() if key not in known]
    if new:
        connection.execute(tables.plans.insert(), new)


def _write_trials(connection: sa.Connection, study_id: int, filled: Filled) -> None:
    record = filled.record
    first = 1 + (connection.execute(sa.select(sa.func.max(tables.measurements.c.id))).scalar() or 0)
    of_study = {
        "target_fingerprint": record.target.fingerprint,
        "environment_fingerprint": environment_fingerprint(record.environment),
        "budget_bytes": record.budget_bytes,
    }
    measurements, trials, samples = [], [], []
    for measurement_id, trial in enumerate(filled.trials, start=first):
        measurements.append(
            of_study
            | rows.measurement_values(trial.measurement)
            | {
                "id": measurement_id,
                "plan_hash": trial.plan_hash,
                "reference_hash": record.reference_hash,
                "measured_at": trial.finished_at,
            }
        )
        samples += rows.sample_values(measurement_id, trial.measurement.pairs)
        trials.append(rows.trial_values(trial) | {"study_id": study_id, "measurement_id": measurement_id})
    connection.execute(tables.measurements.insert(), measurements)
    connection.execute(tables.samples.insert(), samples)
    connection.execute(tables.trials.insert(), trials)


def _write_optuna(connection: sa.Connection, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    first = 1 + (connection.execute(sa.select(sa.func.max(models.TrialModel.trial_id))).scalar() or 0)
    found: dict[type[Any], list[dict[str, Any]]] = {
        kind: []
        for kind in (
            models.TrialModel,
            models.TrialValueModel,
            models.TrialParamModel,
            models.TrialUserAttributeModel,
            models.TrialSystemAttributeModel,
        )
    }
    for trial_id, trial in enumerate(trials, start=first):
        times = models.TrialModel(datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete)
        found[models.TrialModel].append(
            {
                "trial_id": trial_id,
                "number": trial.number,
                "study_id": study_id,
                "state": trial.state,
                "datetime_start": times._datetime_start_utc,
                "datetime_complete": times._datetime_complete_utc,
            }
        )
        for objective, value in enumerate(trial.values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            found[models.TrialValueModel].append(
                {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
            )
        for name, distribution in trial.distributions.items():
            found[models.TrialParamModel].append(
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(trial.params[name]),
                    "distribution_json": distribution_to_json(distribution),
                }
            )
        for model, attrs in (
            (models.TrialUserAttributeModel, trial.user_attrs),
            (models.TrialSystemAttributeModel, trial.system_attrs),
        ):
            found[model] += [
                {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()
            ]
    for model, values in found.items():
        if values:
            connection.execute(sa.insert(model.__table__), values)


def same_rows(one: Store, other: Store) -> list[str]:
    """Tables whose rows differ between two databases, numbers that databases give themselves left out."""
    return [name for name, found in _content(one).items() if found != _content(other)[name]]


_OWN = (
    "id",
    "trial_user_attribute_id",
    "trial_system_attribute_id",
    "param_id",
    "trial_value_id",
    "decided_at",
    "created_at",
)


def _content(store: Store) -> dict[str, list[str]]:
    engine = sa.create_engine(store.url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        content = {
            name: sorted(
                json.dumps({k: v for k, v in row._mapping.items() if k not in _OWN}, default=str)
                for row in connection.execute(sa.select(table))
            )
            for name, table in metadata.tables.items()
        }
    engine.dispose()
    return content
