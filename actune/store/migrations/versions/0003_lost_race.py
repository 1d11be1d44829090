"""Measurements whose timing ended early, since their plan was clearly slower than the best of its study."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; timings from before all ran to their end."""
    op.add_column("actune_measurements", sa.Column("lost_race", sa.Boolean, nullable=False, server_default=sa.false()))
