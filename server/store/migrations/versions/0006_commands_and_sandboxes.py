"""Commands, problems, sandboxes, secrets, notices, kept logs

Revision: 0006, after 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "job_log",
        sa.Column("job_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    with op.batch_alter_table("job_log", schema=None) as batch_op:
        batch_op.create_index("job_log_task", ["task_id"], unique=False)
        batch_op.create_index("job_log_time", ["time"], unique=False)
    op.create_table(
        "job_problem",
        sa.Column("job_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("looked", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    with op.batch_alter_table("job_problem", schema=None) as batch_op:
        batch_op.create_index("job_problem_task", ["task_id", "job_id"], unique=False)
        batch_op.create_index("job_problem_time", ["time"], unique=False)
        batch_op.create_index(
            "job_problem_unlooked",
            ["task_id"],
            unique=False,
            postgresql_where=sa.text("NOT looked"),
            sqlite_where=sa.text("NOT looked"),
        )
    op.create_table(
        "notice",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("workflow_id", _BIG, nullable=False),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("notice", schema=None) as batch_op:
        batch_op.create_index(
            "notice_due",
            ["due"],
            unique=False,
            postgresql_where=sa.text("ended IS NULL"),
            sqlite_where=sa.text("ended IS NULL"),
        )
        batch_op.create_index("notice_workflow", ["workflow_id"], unique=False)
    op.create_table(
        "sandbox",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("used", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "task_touched",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "user_secret",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "name"),
    )
    op.create_table(
        "workflow_deletion",
        sa.Column("workflow_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("who", sa.String(length=255), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("asked", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("workflow_id"),
    )
    with op.batch_alter_table("workflow_deletion", schema=None) as batch_op:
        batch_op.create_index(
            "workflow_deletion_open",
            ["workflow_id"],
            unique=False,
            postgresql_where=sa.text("ended IS NULL"),
            sqlite_where=sa.text("ended IS NULL"),
        )
    op.create_table(
        "workflow_notify",
        sa.Column("workflow_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workflow_id"),
    )
    op.create_table(
        "sandbox_owner",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("uploaded", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sha256"],
            ["sandbox.sha256"],
        ),
        sa.PrimaryKeyConstraint("owner", "sha256"),
    )
    with op.batch_alter_table("sandbox_owner", schema=None) as batch_op:
        batch_op.create_index("sandbox_owner_sha256", ["sha256"], unique=False)
    op.create_table(
        "sandbox_part",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sha256"],
            ["sandbox.sha256"],
        ),
        sa.PrimaryKeyConstraint("sha256", "part"),
    )
    op.create_table(
        "sandbox_use",
        sa.Column("task_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["sha256"],
            ["sandbox.sha256"],
        ),
        sa.PrimaryKeyConstraint("task_id"),
    )
    with op.batch_alter_table("sandbox_use", schema=None) as batch_op:
        batch_op.create_index("sandbox_use_sha256", ["sha256"], unique=False)
    op.create_table(
        "task_move",
        sa.Column("task_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("after_id", _BIG, server_default="0", nullable=False),
        sa.Column("skipped", sa.Integer(), server_default="0", nullable=False),
        sa.Column("begun", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["task.id"],
        ),
        sa.PrimaryKeyConstraint("task_id"),
    )


def downgrade() -> None:
    op.drop_table("task_move")
    op.drop_table("sandbox_use")
    op.drop_table("sandbox_part")
    op.drop_table("sandbox_owner")
    op.drop_table("workflow_notify")
    op.drop_table("workflow_deletion")
    op.drop_table("user_secret")
    op.drop_table("task_touched")
    op.drop_table("sandbox")
    op.drop_table("notice")
    op.drop_table("job_problem")
    op.drop_table("job_log")
