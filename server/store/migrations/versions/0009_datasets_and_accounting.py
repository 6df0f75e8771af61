"""Datasets, registration, provenance, accounting

Revision: 0009, after 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NEW = ("accounting_day", "trace_job", "trace_task", "dataset_file", "dataset", "registration", "job_ended")
_OLD_UNSWEPT = sa.text("state IN (0, 2)")
_UNSWEPT = sa.text("state = 2")


def upgrade() -> None:
    op.add_column("job", sa.Column("confirmed", sa.Double(), nullable=True))
    op.add_column("output", sa.Column("pattern", sa.SmallInteger(), nullable=True))
    op.add_column("output", sa.Column("registration", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("output", sa.Column("sweep_since", sa.Double(), nullable=True))
    op.drop_index("output_unswept", table_name="output", postgresql_where=_OLD_UNSWEPT, sqlite_where=_OLD_UNSWEPT)
    op.execute("UPDATE output SET sweep_since = recorded WHERE state = 2")
    op.create_index("output_unswept", "output", ["sweep_since"], postgresql_where=_UNSWEPT, sqlite_where=_UNSWEPT)
    _registration()
    _datasets()
    _records()
    _accounting()
    # What ended before is to be written into the books as well.
    op.execute("INSERT INTO job_ended (job_id) SELECT id FROM job WHERE ended IS NOT NULL ORDER BY id")


def _registration() -> None:
    op.create_table(
        "job_ended",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("job_id", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "registration",
        sa.Column("job_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("phase", sa.SmallInteger(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_try", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("registration_next_try", "registration", ["next_try"])


def _datasets() -> None:
    op.create_table(
        "dataset",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("scope", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("first_task", _BIG, nullable=False),
        sa.Column("base", sa.String(length=255), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("storage", sa.String(length=255), nullable=True),
        sa.Column("lifetime_days", sa.Integer(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("n_files", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("scope", "name", name="dataset_did"),
        sqlite_autoincrement=True,
    )
    op.create_index("dataset_task", "dataset", ["first_task", "id"])
    op.create_index("dataset_base", "dataset", ["scope", "base", "number"])
    op.create_table(
        "dataset_file",
        sa.Column("dataset_id", _BIG, nullable=False),
        sa.Column("output_id", _BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"]),
        sa.PrimaryKeyConstraint("dataset_id", "output_id"),
    )
    op.create_index("dataset_file_output", "dataset_file", ["output_id"])


def _records() -> None:
    op.create_table(
        "trace_task",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("checked", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "digest", name="trace_task_version"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "trace_job",
        sa.Column("job_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("trace_task_id", _BIG, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("group_name", sa.String(length=255), nullable=True),
        sa.Column("pilot_id", _BIG, nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("claimed", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("trace_job_host", "trace_job", ["host", "ended"])
    op.create_index("trace_job_owner", "trace_job", ["owner", "ended"])
    op.create_index("trace_job_task", "trace_job", ["task_id", "job_id"])


def _accounting() -> None:
    op.create_table(
        "accounting_day",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("task_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("cores", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("group_name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("jobs_ok", sa.BigInteger(), nullable=False),
        sa.Column("jobs_failed", sa.BigInteger(), nullable=False),
        sa.Column("wall_s", sa.Double(), nullable=False),
        sa.Column("cpu_s", sa.Double(), nullable=False),
        sa.Column("wall_hs23_s", sa.Double(), nullable=False),
        sa.Column("cpu_hs23_s", sa.Double(), nullable=False),
        sa.Column("energy_j", sa.Double(), nullable=False),
        sa.Column("first_end", sa.Double(), nullable=False),
        sa.Column("last_end", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("day", "queue", "task_id", "cores", "site"),
    )


def downgrade() -> None:
    for name in _NEW:
        op.drop_table(name)
    op.drop_index("output_unswept", table_name="output", postgresql_where=_UNSWEPT, sqlite_where=_UNSWEPT)
    op.create_index("output_unswept", "output", ["recorded"], postgresql_where=_OLD_UNSWEPT, sqlite_where=_OLD_UNSWEPT)
    for column in ("sweep_since", "registration", "pattern"):
        op.drop_column("output", column)
    op.drop_column("job", "confirmed")
