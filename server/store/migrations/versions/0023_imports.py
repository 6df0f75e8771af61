"""What was imported from other descriptions of the world, and what the last look at each brought

Revision: 0023, after 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "imported",
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("gone", sa.Double()),
        sa.PrimaryKeyConstraint("source", "kind", "name"),
    )
    op.create_table(
        "import_report",
        sa.Column("source", sa.String(length=255), primary_key=True),
        sa.Column("report", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("import_report")
    op.drop_table("imported")
