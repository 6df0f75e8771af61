"""Jobs of other systems' pilots, and what those last asked for

Revision: 0020, after 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "foreign_job",
        sa.Column(
            "job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False
        ),
        sa.Column("pilot_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("caller", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("units", sa.Text(), nullable=False),
        sa.Column("told", sa.BigInteger()),
    )
    op.create_index("foreign_job_pilot", "foreign_job", ["pilot_id"])
    op.create_table(
        "foreign_offer",
        sa.Column("queue", sa.String(255), primary_key=True),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.Column("asked", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("foreign_offer")
    op.drop_table("foreign_job")
