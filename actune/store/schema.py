"""actune's tables. They share a database with Optuna's, so each name starts with `actune_`.

A change here needs a migration beside it (`migrations/versions`) and a new HEAD_REVISION.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from actune.boundary import from_json, to_json
from actune.errors import StorageError, cut
from actune.records import CompiledCode, Environment, TargetInfo
from actune.store.names import MAX_STUDY_NAME_LENGTH
from actune.store.verdicts import Comparison
from actune.study_records import StudySettings

HEAD_REVISION = "0005"  # of the migrations; here too, so that a database that is up to date needs no alembic
VERSION_TABLE = "actune_alembic_version"  # Optuna's has alembic's default name

_HASH_LENGTH = 64
_FINGERPRINT_LENGTH = 128
_TIME_LENGTH = 40

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class RecordText(sa.types.TypeDecorator[Any]):
    """A dataclass of `actune.records`, as JSON in a text column."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Any | None, dialect: sa.Dialect) -> str | None:
        """The record's JSON."""
        return None if value is None else to_json(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any | None:
        """The record.

        Raises:
            StorageError: the text was written by another program, or by an actune whose records had other fields.
        """
        if value is None:
            return None
        try:
            return from_json(self.kind, value)
        except ValueError as error:
            raise unreadable(self.kind.__name__, error) from None


class SizesText(sa.types.TypeDecorator[tuple[int, ...]]):
    """Sizes in bytes, as JSON in a text column."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: tuple[int, ...] | None, dialect: sa.Dialect) -> str | None:
        """A list of numbers."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> tuple[int, ...] | None:
        """The numbers.

        Raises:
            StorageError: the text is no list of sizes.
        """
        try:
            return None if value is None else from_json(tuple[int, ...], value)
        except ValueError as error:
            raise unreadable("list of budgets", error) from None


def unreadable(what: str, error: ValueError) -> StorageError:
    """What to tell where a row holds something that no actune, or none of this version, has written."""
    why = cut(" ".join(str(error).split()), 500)
    return StorageError(
        f"the database holds a {what} that this actune can't read: {why.rstrip('.')}. Use the version of actune that "
        "wrote it, or start a new study in another file with --storage."
    )


studies = sa.Table(
    "actune_studies",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(MAX_STUDY_NAME_LENGTH), nullable=False, unique=True),
    sa.Column("settings", RecordText(StudySettings), nullable=False),
    sa.Column("target", RecordText(TargetInfo), nullable=False),
    sa.Column("target_fingerprint", sa.String(_FINGERPRINT_LENGTH), nullable=False),
    sa.Column("environment", RecordText(Environment), nullable=False),
    sa.Column("environment_fingerprint", sa.String(_FINGERPRINT_LENGTH), nullable=False),
    sa.Column("budget_bytes", sa.BigInteger),
    sa.Column("reference_hash", sa.String(_HASH_LENGTH)),
    sa.Column("created_at", sa.String(_TIME_LENGTH), nullable=False),
    sa.Column("budgets_bytes", SizesText),
)

plans = sa.Table(
    "actune_plans",
    metadata,
    sa.Column("plan_hash", sa.String(_HASH_LENGTH), primary_key=True),
    sa.Column("toml", sa.Text, nullable=False),
)

# Apart from trials: a measurement serves every study of the same target and environment, so a trial may point at one
# that another study took. `reference_hash` is no foreign key: the reference's own trial may finish later.
measurements = sa.Table(
    "actune_measurements",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("target_fingerprint", sa.String(_FINGERPRINT_LENGTH), nullable=False),
    sa.Column("environment_fingerprint", sa.String(_FINGERPRINT_LENGTH), nullable=False),
    sa.Column("plan_hash", sa.ForeignKey(plans.c.plan_hash), nullable=False),
    sa.Column("reference_hash", sa.String(_HASH_LENGTH)),
    sa.Column("budget_bytes", sa.BigInteger),  # the cap that it ran under: it decides for whom the outcome holds
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("peak_bytes", sa.BigInteger),
    sa.Column("allocated_bytes", sa.BigInteger),
    sa.Column("reserved_bytes", sa.BigInteger),
    sa.Column("compile_s", sa.Double),
    sa.Column("message", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("measured_at", sa.String(_TIME_LENGTH), nullable=False),
    sa.Column("lost_race", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("compiled_code", RecordText(CompiledCode)),
)
sa.Index(
    "ix_actune_measurements_key",
    measurements.c.target_fingerprint,
    measurements.c.environment_fingerprint,
    measurements.c.plan_hash,
    measurements.c.reference_hash,
)

samples = sa.Table(
    "actune_samples",
    metadata,
    sa.Column("measurement_id", sa.ForeignKey(measurements.c.id), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step_time_s", sa.Double, nullable=False),
    sa.Column("process_s", sa.Double, nullable=False),
    sa.Column("reference_step_time_s", sa.Double, nullable=False),
    sa.Column("reference_process_s", sa.Double, nullable=False),
)

trials = sa.Table(
    "actune_trials",
    metadata,
    sa.Column("study_id", sa.ForeignKey(studies.c.id), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("measurement_id", sa.ForeignKey(measurements.c.id), nullable=False, index=True),
    sa.Column("preset", sa.String(100)),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("reused", sa.Boolean, nullable=False),
    sa.Column("started_at", sa.String(_TIME_LENGTH), nullable=False),
    sa.Column("finished_at", sa.String(_TIME_LENGTH), nullable=False),
)

predictions = sa.Table(
    "actune_predictions",
    metadata,
    sa.Column("study_id", sa.ForeignKey(studies.c.id), primary_key=True),
    sa.Column("plan_hash", sa.ForeignKey(plans.c.plan_hash), primary_key=True),
    sa.Column("preset", sa.String(100)),
    sa.Column("peak_bytes", sa.BigInteger),
    sa.Column("step_time_s", sa.Double),
    sa.Column("on_frontier", sa.Boolean, nullable=False),
)

verdicts = sa.Table(
    "actune_verdicts",
    metadata,
    sa.Column("study_id", sa.ForeignKey(studies.c.id), primary_key=True),
    sa.Column("reference_hash", sa.String(_HASH_LENGTH)),
    sa.Column("best_hash", sa.String(_HASH_LENGTH)),
    sa.Column("best_toml", sa.Text),
    sa.Column("smallest_peak_bytes", sa.BigInteger),
    sa.Column("smallest_peak_hash", sa.String(_HASH_LENGTH)),
    sa.Column("trials", sa.Integer, nullable=False),
    sa.Column("comparison", RecordText(Comparison), nullable=False),
    sa.Column("decided_at", sa.String(_TIME_LENGTH), nullable=False),
)
