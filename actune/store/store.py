"""The store: what the parent process reads and writes, in records; nothing of the database shows outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import event

from actune.boundary import shorten, to_json
from actune.errors import StorageError, UsageError
from actune.predictions import PredictedNumbers, PredictionRecord
from actune.records import Environment, Measurement, TargetInfo
from actune.statistics import Timing, counts_process_time
from actune.store import rows
from actune.store.advisory import StudyGuard
from actune.store.connect import OptunaConnection, create_engine, use_wal
from actune.store.failures import storage_errors
from actune.store.files import check_file
from actune.store.foreseen import read_numbers, read_predictions, write_predictions
from actune.store.location import Location, parse_location
from actune.store.lock import WhileHeld, study_lock
from actune.store.measured import insert_measurement, storable
from actune.store.migrate import ensure_schema, no_studies_yet
from actune.store.names import no_such_study, validate_study_name
from actune.store.plan_texts import keep_plans, read_plan
from actune.store.reuse import MeasurementKey, find_equal, find_settled
from actune.store.schema import studies, trials, verdicts
from actune.store.server import WRITES, connection_arguments
from actune.store.summary import StudySummary, read_summaries
from actune.store.timings import read_timings
from actune.study_records import StudyRecord, StudySettings, TrialRecord, Verdict

BUSY_TIMEOUT_S = 60.0


def environment_fingerprint(environment: Environment) -> str:
    """Equal for environments whose measurements may be compared: 16 hexadecimal digits."""
    fields = asdict(environment)
    if environment.allocator is None:
        del fields["allocator"]  # environments from before there was this field keep their fingerprint
    # Keys sorted, so that the order in which the record declares its fields doesn't matter.
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """Studies, trials, measurements, predictions and verdicts in a database.

    Every method that touches the database raises StorageError where it can't be read or written, and every one that
    takes a study's name raises UsageError where there is none of that name. A write is one transaction: it is there as
    a whole and for good when the method returns.
    """

    def __init__(self, location: Location, engine: sa.Engine, *, busy_timeout_s: float) -> None:
        self._location = location
        self._engine = engine
        self._busy_timeout_s = busy_timeout_s
        self._wal_is_on = False
        self._guard: StudyGuard | None = None

    @classmethod
    def open(cls, url: str, *, create: bool, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
        """Opens a database and brings actune's tables in it up to date.

        Args:
            url: as SQLAlchemy has it: `sqlite:///studies/actune.db`.
            create: whether a SQLite file, its folder and the tables are made where they are missing.
            busy_timeout_s: how long to wait for another program that holds the database.

        Raises:
            UsageError: nothing of actune's is stored there, and `create` is false.
            StorageError: the URL is none, its driver is missing, or the database can't be used; the message says why.
        """
        location = parse_location(url)
        with storage_errors(location):
            check_file(location, create=create)
            engine = create_engine(location, busy_timeout_s=busy_timeout_s)
            try:
                ensure_schema(engine, location, create=create)
            except BaseException:
                engine.dispose()
                raise
        return cls(location, engine, busy_timeout_s=busy_timeout_s)

    def close(self) -> None:
        """Closes all connections."""
        with storage_errors(self._location):
            self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The database's URL, a file's path made absolute. It holds the password, if there is one."""
        return self._location.full_url

    @property
    def label(self) -> str:
        """What messages call the database; never holds a password."""
        return self._location.label

    @property
    def optuna_engine_kwargs(self) -> dict[str, Any]:
        """What Optuna's RDBStorage needs as `engine_kwargs` to share the database."""
        if self._location.path is None:
            return {"pool_pre_ping": True, "connect_args": connection_arguments(self._location.url)}
        return {"connect_args": {"timeout": self._busy_timeout_s, "factory": OptunaConnection}}

    # One coordinator

    @contextmanager
    def locked(self, study: str, *, while_held: WhileHeld | None = None) -> Iterator[None]:
        """Makes this process the study's only coordinator, as `study_lock` does; without it nothing is written.

        Raises:
            ActuneError: another process is, and `while_held` is None.
            StorageError: of what is written within the block: a server's lock was lost in the meantime.
        """
        with study_lock(self.url, study, while_held=while_held) as guard:
            self._guard = guard
            try:
                yield
            finally:
                self._guard = None

    def guard(self, engine: sa.Engine) -> None:
        """Lets no transaction of another engine of this database, such as Optuna's, begin once the lock is lost."""
        if self._guard is not None:
            event.listen(engine, "begin", self._guard.check)

    # Studies

    def create_study(
        self, name: str, settings: StudySettings, target: TargetInfo, environment: Environment
    ) -> StudyRecord:
        """A new study.

        Raises:
            UsageError: there is one of that name, or the name is none that a study may have.
        """
        validate_study_name(name)
        study = StudyRecord(name, settings, target, environment, None, None, _now())
        values = {column.name: getattr(study, column.name) for column in rows.STUDY_COLUMNS}
        with self._writing() as connection:
            if _study_id(connection, name) is not None:
                raise UsageError(
                    f"study '{name}' exists already at {self._location.label}. Go on with it by "
                    f"`actune resume {name}`, or choose another name with --study."
                )
            connection.execute(
                studies.insert().values(
                    **values,
                    target_fingerprint=target.fingerprint,
                    environment_fingerprint=environment_fingerprint(environment),
                )
            )
        return study

    def study(self, name: str) -> StudyRecord:
        """The study of that name."""
        with self._reading() as connection:
            return rows.study_from_row(self._study_row(connection, name))

    def has_study(self, name: str) -> bool:
        """Whether there is a study of that name."""
        with self._reading() as connection:
            return _study_id(connection, name) is not None

    def studies(self) -> list[StudySummary]:
        """All studies, the oldest first."""
        with self._reading() as connection:
            return read_summaries(connection)

    def update_settings(self, name: str, settings: StudySettings) -> None:
        """Replaces what the study was started with, as when it goes on with more trials."""
        self._update_study(name, settings=settings)

    def set_budgets(self, name: str, budgets_bytes: tuple[int, ...]) -> None:
        """Records the study's budgets once they are known, the largest first: it is the cap."""
        self._update_study(name, budget_bytes=budgets_bytes[0], budgets_bytes=budgets_bytes)

    def set_reference(self, name: str, plan_hash: str) -> None:
        """Records the plan that the study's trials are timed against."""
        self._update_study(name, reference_hash=plan_hash)

    # Trials

    def record_trial(
        self, study: str, trial: TrialRecord, *, reference_hash: str | None, budget_bytes: int | None
    ) -> None:
        """Stores a finished trial. Storing the same one again changes nothing.

        Args:
            study: its name.
            trial: what finished. If it is `reused`, its measurement is the one that `find_measurement` returned.
            reference_hash: the plan that the trial was timed against, None if it was not timed.
            budget_bytes: the cap that the worker was given, None for none.

        Raises:
            StorageError: the study has another trial of that number.
            ValueError: a number is NaN or infinite; a reused measurement is not there; or a plan of the same hash is
                stored with another text. Each is the caller's mistake.
        """
        to_json(trial)  # raises where a number isn't finite: SQLite would store NaN as NULL without a word
        trial = storable(trial)
        with self._writing() as connection:
            row = self._study_row(connection, study)
            known = rows.read_trials(connection, row.id, number=trial.number)
            if known:
                if known[0] != trial:
                    raise StorageError(
                        f"{self._location.label}: trial {trial.number} of study '{study}' is stored already, with "
                        f"another result. Has another search written to it? Start a new study with --study."
                    )
                return
            keep_plans(connection, {trial.plan_hash: trial.plan_toml})
            key = MeasurementKey(row.target_fingerprint, row.environment_fingerprint, trial.plan_hash, reference_hash)
            if trial.reused:
                measurement_id = find_equal(connection, key, trial.measurement)
                if measurement_id is None:
                    raise ValueError(f"trial {trial.number}: no measurement equal to the reused one is stored")
            else:
                measurement_id = insert_measurement(connection, key, trial, budget_bytes)
            connection.execute(
                trials.insert().values(study_id=row.id, measurement_id=measurement_id, **rows.trial_values(trial))
            )

    def amend_trial(
        self, study: str, trial: TrialRecord, *, reference_hash: str | None, budget_bytes: int | None
    ) -> None:
        """Stores what a longer run showed of a trial: another measurement, in the place of the one it had.

        The earlier one stays for other studies that took it over. Arguments are those of `record_trial`.

        Raises:
            StorageError: the study has no trial of that number.
            ValueError: a number is NaN or infinite, which is the caller's mistake.
        """
        to_json(trial)
        trial = storable(trial)
        with self._writing() as connection:
            row = self._study_row(connection, study)
            if not rows.read_trials(connection, row.id, number=trial.number):
                raise StorageError(
                    f"{self._location.label}: study '{study}' has no trial {trial.number}. Has another process deleted "
                    "it? Start a new study with --study."
                )
            key = MeasurementKey(row.target_fingerprint, row.environment_fingerprint, trial.plan_hash, reference_hash)
            measurement_id = insert_measurement(connection, key, trial, budget_bytes)
            stored = trials.update().where(trials.c.study_id == row.id, trials.c.number == trial.number)
            connection.execute(stored.values(measurement_id=measurement_id))

    def trials(self, study: str, *, with_pairs: bool = True) -> list[TrialRecord]:
        """The study's finished trials, by number. Who needs no pairs reads thousands in half the time."""
        with self._reading() as connection:
            return rows.read_trials(connection, self._study_row(connection, study).id, with_pairs=with_pairs)

    def timings(self, study: str) -> dict[int, Timing]:
        """What the pairs of each timed trial come to, by the trial's number."""
        with self._reading() as connection:
            row = self._study_row(connection, study)
            return read_timings(connection, row.id, by_process=counts_process_time(row.environment))

    def find_measurement(
        self,
        target_fingerprint: str,
        environment_fingerprint: str,
        plan_hash: str,
        reference_hash: str | None,
        *,
        budget_bytes: int | None,
    ) -> Measurement | None:
        """What any study measured before, if running the plan again would teach nothing new.

        Crashes, timeouts, errors and lost races are never returned. Neither are an `over_budget` or an `oom` that came
        from a tighter cap than `budget_bytes`. An `ok` may have a peak above `budget_bytes`: its own cap was higher.

        Args:
            target_fingerprint: `TargetInfo.fingerprint`.
            environment_fingerprint: see the function of that name.
            plan_hash: the plan.
            reference_hash: the plan that it was timed against, None for measurements without timing.
            budget_bytes: the cap under which the plan would run now, None for none.

        Returns:
            The newest such measurement, or None.
        """
        key = MeasurementKey(target_fingerprint, environment_fingerprint, plan_hash, reference_hash)
        with self._reading() as connection:
            return find_settled(connection, key, budget_bytes=budget_bytes)

    def plan_toml(self, plan_hash: str) -> str:
        """The text of a plan that a study ran or predicted.

        Raises:
            UsageError: there is no plan of that hash.
        """
        with self._reading() as connection:
            toml = read_plan(connection, plan_hash)
        if toml is None:
            raise UsageError(
                f"no plan with the hash {shorten(plan_hash)} at {self._location.label}. Expected a `plan_hash` that "
                f"`actune show` prints."
            )
        return toml

    # Predictions

    def save_predictions(self, study: str, records: Iterable[PredictionRecord]) -> None:
        """Stores what is predicted of plans, in one transaction.

        Where a plan has a prediction in the study already, the new numbers replace the old ones; the preset's name and
        the place on the frontier stay if it has them.

        Raises:
            ValueError: a plan of the same hash is stored with another text.
        """
        with self._writing() as connection:
            write_predictions(connection, self._study_row(connection, study).id, records)

    def predictions(self, study: str) -> tuple[PredictionRecord, ...]:
        """What the study predicted, from the smallest predicted peak up; without one, last."""
        with self._reading() as connection:
            return read_predictions(connection, self._study_row(connection, study).id)

    def predicted_numbers(self, study: str) -> list[PredictedNumbers]:
        """As `predictions`, without the plans' texts."""
        with self._reading() as connection:
            return read_numbers(connection, self._study_row(connection, study).id)

    # Verdicts

    def save_verdict(self, study: str, verdict: Verdict) -> None:
        """Stores how the study ended, in place of an earlier verdict."""
        with self._writing() as connection:
            study_id = self._study_row(connection, study).id
            connection.execute(verdicts.delete().where(verdicts.c.study_id == study_id))
            connection.execute(
                verdicts.insert().values(study_id=study_id, decided_at=_now(), **rows.verdict_values(verdict))
            )

    def verdict(self, study: str) -> Verdict | None:
        """How the study ended; None as long as it hasn't."""
        with self._reading() as connection:
            return rows.read_verdict(connection, self._study_row(connection, study).id)

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with storage_errors(self._location), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with storage_errors(self._location):
            if not self._wal_is_on:  # a copy or a backup of the file may have come back without it
                use_wal(self._engine, self._location)
                self._wal_is_on = True
            with self._engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
                if self._guard is not None:
                    self._guard.check(connection)
                yield connection

    def _update_study(self, name: str, **values: Any) -> None:
        with self._writing() as connection:
            study_id = self._study_row(connection, name).id
            connection.execute(studies.update().where(studies.c.id == study_id).values(**values))

    def _study_row(self, connection: sa.Connection, name: str) -> sa.Row[Any]:
        row = connection.execute(sa.select(studies).where(studies.c.name == name)).one_or_none()
        if row is not None:
            return row
        names = list(map(str, connection.execute(sa.select(studies.c.name).order_by(studies.c.id.desc())).scalars()))
        raise no_such_study(name, names, self._location.label) if names else no_studies_yet(self._location)


def _study_id(connection: sa.Connection, name: str) -> int | None:
    return connection.execute(sa.select(studies.c.id).where(studies.c.name == name)).scalar()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
