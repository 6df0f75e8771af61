"""Demand, rules that tag tasks

Revision: 0010, after 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "demand",
        sa.Column("queue", sa.String(255), primary_key=True),
        sa.Column("computed", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("pilots", sa.BigInteger(), nullable=False),
        sa.Column("numbers", sa.Text(), nullable=False),
    )
    op.create_table(
        "tagging_rule",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("tagging_rule")
    op.drop_table("demand")
