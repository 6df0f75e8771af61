"""Pilots that are expected, and hold jobs that were claimed for them

Revision: 0018, after 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pilot", sa.Column("pushed", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(
        "pilot_expected",
        "pilot",
        ["worker"],
        postgresql_where=sa.text("state = 3"),
        sqlite_where=sa.text("state = 3"),
    )


def downgrade() -> None:
    op.drop_index("pilot_expected", "pilot")
    op.drop_column("pilot", "pushed")
