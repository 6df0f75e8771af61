"""Direct jobs, their files, and what people delegated

Revision: 0021, after 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "delegated_proxy",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("stamp", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("delegated_proxy", schema=None) as batch_op:
        batch_op.create_index("delegated_proxy_expires", ["expires"], unique=False)
        batch_op.create_index("delegated_proxy_subject", ["subject"], unique=True)

    op.create_table(
        "direct_file",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("direct_id", _BIG, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("path", sa.String(length=1024), nullable=False),
        sa.Column("size", _BIG, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("direct_id", "kind", "path", name="direct_file_path"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "direct_job",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("clusters", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.Column("name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("language", sa.String(length=8), server_default="", nullable=False),
        sa.Column("stdout", sa.Text(), nullable=True),
        sa.Column("stderr", sa.Text(), nullable=True),
        sa.Column("proxy_id", _BIG, nullable=True),
        sa.Column("of_task", _BIG, nullable=True),
        sa.Column("mark", sa.String(length=64), nullable=True),
        sa.Column("fetch", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("direct_job", schema=None) as batch_op:
        batch_op.create_index("direct_job_owner", ["owner", "id"], unique=False)
        batch_op.create_index("direct_job_task", ["of_task"], unique=False)
        batch_op.create_index(
            "direct_job_unclaimed",
            ["id"],
            unique=False,
            postgresql_where=sa.text("mark IS NULL AND of_task IS NOT NULL"),
            sqlite_where=sa.text("mark IS NULL AND of_task IS NOT NULL"),
        )

    op.create_table(
        "direct_place",
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("harvester", sa.String(length=255), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("batch_queue", sa.String(length=255), server_default="", nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("queue"),
    )
    op.create_table(
        "direct_run",
        sa.Column("mark", sa.String(length=64), nullable=False),
        sa.Column("direct_id", _BIG, nullable=False),
        sa.Column("of_job", _BIG, nullable=False),
        sa.Column("harvester", sa.String(length=255), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("proxy_id", _BIG, nullable=False),
        sa.Column("worker_state", sa.String(length=16), nullable=False),
        sa.Column("job_state", sa.String(length=16), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("native", sa.String(length=255), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("killing", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("lost", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("results", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("mark"),
    )
    with op.batch_alter_table("direct_run", schema=None) as batch_op:
        batch_op.create_index("direct_run_direct", ["direct_id"], unique=False)
        batch_op.create_index("direct_run_harvester", ["harvester", "created"], unique=False)
        batch_op.create_index("direct_run_proxy", ["proxy_id"], unique=False)

    op.create_table(
        "direct_part",
        sa.Column("file_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"],
            ["direct_file.id"],
        ),
        sa.PrimaryKeyConstraint("file_id", "part"),
    )


def downgrade() -> None:
    op.drop_table("direct_part")
    op.drop_table("direct_run")
    op.drop_table("direct_place")
    op.drop_table("direct_job")
    op.drop_table("direct_file")
    op.drop_table("delegated_proxy")
