"""The first schema.

Written out rather than taken from `actune.store.schema`, so that later changes there leave it as it was.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates all tables."""
    op.create_table(
        "actune_studies",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("target_fingerprint", sa.String(128), nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("environment_fingerprint", sa.String(128), nullable=False),
        sa.Column("budget_bytes", sa.BigInteger),
        sa.Column("reference_hash", sa.String(64)),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_actune_studies"),
        sa.UniqueConstraint("name", name="uq_actune_studies_name"),
    )
    op.create_table(
        "actune_plans",
        sa.Column("plan_hash", sa.String(64), nullable=False),
        sa.Column("toml", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("plan_hash", name="pk_actune_plans"),
    )
    op.create_table(
        "actune_measurements",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("target_fingerprint", sa.String(128), nullable=False),
        sa.Column("environment_fingerprint", sa.String(128), nullable=False),
        sa.Column("plan_hash", sa.String(64), nullable=False),
        sa.Column("reference_hash", sa.String(64)),
        sa.Column("budget_bytes", sa.BigInteger),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("peak_bytes", sa.BigInteger),
        sa.Column("allocated_bytes", sa.BigInteger),
        sa.Column("reserved_bytes", sa.BigInteger),
        sa.Column("compile_s", sa.Double),
        sa.Column("message", sa.Text),
        sa.Column("detail", sa.Text),
        sa.Column("measured_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_actune_measurements"),
        sa.ForeignKeyConstraint(["plan_hash"], ["actune_plans.plan_hash"], name="fk_actune_measurements_plan_hash"),
    )
    op.create_index(
        "ix_actune_measurements_key",
        "actune_measurements",
        ["target_fingerprint", "environment_fingerprint", "plan_hash", "reference_hash"],
    )
    op.create_table(
        "actune_samples",
        sa.Column("measurement_id", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("step_time_s", sa.Double, nullable=False),
        sa.Column("process_s", sa.Double, nullable=False),
        sa.Column("reference_step_time_s", sa.Double, nullable=False),
        sa.Column("reference_process_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("measurement_id", "position", name="pk_actune_samples"),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["actune_measurements.id"], name="fk_actune_samples_measurement_id"
        ),
    )
    op.create_table(
        "actune_trials",
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("measurement_id", sa.Integer, nullable=False),
        sa.Column("preset", sa.String(100)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("reused", sa.Boolean, nullable=False),
        sa.Column("started_at", sa.String(40), nullable=False),
        sa.Column("finished_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("study_id", "number", name="pk_actune_trials"),
        sa.ForeignKeyConstraint(["study_id"], ["actune_studies.id"], name="fk_actune_trials_study_id"),
        sa.ForeignKeyConstraint(["measurement_id"], ["actune_measurements.id"], name="fk_actune_trials_measurement_id"),
    )
    op.create_index("ix_actune_trials_measurement_id", "actune_trials", ["measurement_id"])
    op.create_table(
        "actune_verdicts",
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("reference_hash", sa.String(64)),
        sa.Column("best_hash", sa.String(64)),
        sa.Column("best_toml", sa.Text),
        sa.Column("smallest_peak_bytes", sa.BigInteger),
        sa.Column("smallest_peak_hash", sa.String(64)),
        sa.Column("trials", sa.Integer, nullable=False),
        sa.Column("comparison", sa.Text, nullable=False),
        sa.Column("decided_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("study_id", name="pk_actune_verdicts"),
        sa.ForeignKeyConstraint(["study_id"], ["actune_studies.id"], name="fk_actune_verdicts_study_id"),
    )
