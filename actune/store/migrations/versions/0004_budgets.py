"""Several budgets of one study."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the budgets; studies from before have the one in `budget_bytes`."""
    op.add_column("actune_studies", sa.Column("budgets_bytes", sa.Text))
    op.execute("UPDATE actune_studies SET budgets_bytes = '[' || budget_bytes || ']' WHERE budget_bytes IS NOT NULL")
