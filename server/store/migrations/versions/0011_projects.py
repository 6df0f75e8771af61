"""Projects of outside workers

Revision: 0011, after 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_PARTIAL = {
    "project_idle": ("project", "idle_at", sa.text("idle_at IS NOT NULL")),
    "project_restart": ("project", "task_id", sa.text("restart IS NOT NULL")),
    "project_copy": ("project", "task_id", sa.text("copy_after IS NOT NULL")),
    "reservation_expires": ("reservation", "expires", sa.text("expires IS NOT NULL")),
}


def upgrade() -> None:
    op.add_column("task", sa.Column("outside", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    _projects()
    op.create_table(
        "reservation",
        sa.Column("unit_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("reserved", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=True),
        sa.Column("released", sa.Double(), nullable=True),
        sa.Column("outcome", sa.SmallInteger(), nullable=True),
        sa.PrimaryKeyConstraint("unit_id"),
        sa.UniqueConstraint("task_id", "worker", "request_id", "ordinal", name="reservation_request"),
    )
    for name, (table, column, where) in _PARTIAL.items():
        op.create_index(name, table, [column], postgresql_where=where, sqlite_where=where)


def _projects() -> None:
    op.create_table(
        "project",
        sa.Column("task_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("virtual", sa.Boolean(), nullable=False),
        sa.Column("retry_on_timeout", sa.Boolean(), nullable=False),
        sa.Column("worker_timeout_s", sa.Double(), nullable=True),
        sa.Column("idle_timeout_s", sa.Double(), nullable=True),
        sa.Column("users", sa.Text(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("file_attributes", sa.Text(), nullable=False),
        sa.Column("active", sa.Double(), nullable=False),
        sa.Column("idle_at", sa.Double(), nullable=True),
        sa.Column("restart", sa.String(length=32), nullable=True),
        sa.Column("restart_after", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("copy_of", sa.BigInteger(), nullable=True),
        sa.Column("copy_after", sa.BigInteger(), nullable=True),
        sa.Column("copy_attributes", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_table(
        "project_attribute",
        sa.Column("task_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("text", sa.String(length=255), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("task_id", "name"),
    )
    op.create_index("project_attribute_text", "project_attribute", ["name", "text"])
    op.create_index("project_attribute_number", "project_attribute", ["name", "number"])
    op.create_table(
        "project_file",
        sa.Column("task_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(16), nullable=False),
        sa.Column("unit_id", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "digest"),
    )


def downgrade() -> None:
    for name in ("reservation", "project_file", "project_attribute", "project"):
        op.drop_table(name)
    op.drop_column("task", "outside")
