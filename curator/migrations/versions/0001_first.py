"""The first schema, as curator 0.1 creates it from curator.models; nothing leads up to it."""

from __future__ import annotations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing: a database is created with this schema, never migrated to it."""
