"""What studies predict of plans."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table of predictions; studies from before have none."""
    op.create_table(
        "actune_predictions",
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("plan_hash", sa.String(64), nullable=False),
        sa.Column("preset", sa.String(100)),
        sa.Column("peak_bytes", sa.BigInteger),
        sa.Column("step_time_s", sa.Double),
        sa.Column("on_frontier", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("study_id", "plan_hash", name="pk_actune_predictions"),
        sa.ForeignKeyConstraint(["study_id"], ["actune_studies.id"], name="fk_actune_predictions_study_id"),
        sa.ForeignKeyConstraint(["plan_hash"], ["actune_plans.plan_hash"], name="fk_actune_predictions_plan_hash"),
    )
