"""Probe jobs, and what they found

Revision: 0016, after 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "probe_place",
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("gpu", sa.Boolean(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("missed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("asked", sa.Double(), nullable=True),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("run_workflow", _BIG, nullable=True),
        sa.Column("run_task", _BIG, nullable=True),
        sa.Column("run_job", _BIG, nullable=True),
        sa.Column("leftovers", sa.Text(), server_default="[]", nullable=False),
        sa.Column("queue", sa.String(length=255), server_default="", nullable=False),
        sa.Column("host", sa.String(length=255), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), nullable=True),
        sa.Column("environment_ok", sa.Boolean(), nullable=True),
        sa.Column("environment_since", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("site", "gpu"),
    )
    with op.batch_alter_table("probe_place", schema=None) as batch_op:
        batch_op.create_index("probe_place_task", ["run_task"], unique=False)
    op.create_table(
        "probe_result",
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("gpu", sa.Boolean(), nullable=False),
        sa.Column("storage", sa.String(length=255), nullable=False),
        sa.Column("operation", sa.String(length=8), nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=False),
        sa.Column("error_code", sa.Integer(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("mb_s", sa.Double(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("run_job", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("site", "gpu", "storage", "operation"),
    )


def downgrade() -> None:
    op.drop_table("probe_result")
    op.drop_table("probe_place")
