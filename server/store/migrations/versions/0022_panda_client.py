"""Tasks and uploaded files of PanDA's users

Revision: 0022, after 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "panda_task",
        sa.Column("task_id", BIG_ID, primary_key=True, autoincrement=False),
        sa.Column("workflow_id", BIG_ID, nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
    )
    op.create_index("panda_task_workflow", "panda_task", ["workflow_id"])
    op.create_index("panda_task_name", "panda_task", ["owner", "name"])
    op.create_table(
        "panda_dataset",
        sa.Column("task_id", BIG_ID, primary_key=True, autoincrement=False),
        sa.Column("pattern", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
    )
    op.create_index("panda_dataset_name", "panda_dataset", ["owner", "name"])
    op.create_table(
        "panda_file",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("sandbox.sha256"), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("crc", sa.BigInteger(), nullable=False),
        sa.Column("uploaded", sa.Double(), nullable=False),
    )
    op.create_index("panda_file_sha256", "panda_file", ["sha256"])
    op.create_index("panda_file_content", "panda_file", ["owner", "crc", "size"])


def downgrade() -> None:
    op.drop_table("panda_file")
    op.drop_table("panda_dataset")
    op.drop_table("panda_task")
