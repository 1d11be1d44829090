"""Measurements say what of a step ran compiled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; nothing is known of measurements from before."""
    op.add_column("actune_measurements", sa.Column("compiled_code", sa.Text))
