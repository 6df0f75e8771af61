"""What was imported from other descriptions of the world, and what the last import did

Revision: 0024, after 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "followed",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("gone", sa.Double()),
        sa.PrimaryKeyConstraint("kind", "name"),
    )
    op.create_table(
        "import_report",
        sa.Column("source", sa.String(16), primary_key=True),
        sa.Column("report", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("import_report")
    op.drop_table("followed")
