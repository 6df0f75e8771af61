"""The hot path: liveness beside the rows, repeats found by the job, sizes and events in the narrow row

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _new_tables()
    op.execute("INSERT INTO pilot_beat (pilot_id, time) SELECT id, heartbeat FROM pilot")
    op.execute(
        "INSERT INTO job_count (task_id, queue, state, n, cores) "
        "SELECT task_id, queue, state, count(*), sum(cores) FROM job GROUP BY task_id, queue, state"
    )
    with op.batch_alter_table("task") as batch:
        batch.add_column(sa.Column("changed", sa.BigInteger(), server_default="0", nullable=False))
        batch.create_index("task_changed", ["changed"])
    with op.batch_alter_table("bucket") as batch:
        batch.add_column(sa.Column("memory_mb", sa.Integer(), server_default="0", nullable=False))
        batch.add_column(sa.Column("wall_s", sa.Integer(), server_default="0", nullable=False))
        batch.add_column(sa.Column("min_ready", sa.Integer(), server_default="1", nullable=False))
        batch.add_column(sa.Column("changed", sa.BigInteger(), server_default="0", nullable=False))
        batch.drop_constraint("bucket_locations", type_="unique")
        batch.create_unique_constraint("bucket_key", ["task_id", "locations", "memory_mb", "wall_s"])
        batch.create_index("bucket_changed", ["changed"])
    with op.batch_alter_table("unit") as batch:
        batch.add_column(sa.Column("events", sa.Integer(), server_default="0", nullable=False))
    with op.batch_alter_table("pilot") as batch:
        batch.drop_column("heartbeat")
        batch.drop_column("offer")
        batch.create_index(
            "pilot_active_id", ["id"], postgresql_where=sa.text("state = 0"), sqlite_where=sa.text("state = 0")
        )
    _jobs()


def _jobs() -> None:
    with op.batch_alter_table("job") as batch:
        batch.add_column(sa.Column("request_id", sa.String(length=64), server_default="", nullable=False))
        batch.add_column(sa.Column("ordinal", sa.SmallInteger(), server_default="0", nullable=False))
        batch.drop_column("heartbeat")
        batch.drop_index("job_alive")
    # Requests made before this migration are not repeated after it: any name that is unique will do.
    op.execute("UPDATE job SET request_id = 'job-' || id")
    with op.batch_alter_table("job") as batch:
        batch.alter_column(
            "request_id", server_default=None, existing_type=sa.String(length=64), existing_nullable=False
        )
        batch.alter_column("ordinal", server_default=None, existing_type=sa.SmallInteger(), existing_nullable=False)
        batch.create_unique_constraint("job_request", ["pilot_id", "request_id", "ordinal"])
        batch.create_index(
            "job_alive", ["pilot_id"], postgresql_where=sa.text("ended IS NULL"), sqlite_where=sa.text("ended IS NULL")
        )


def _new_tables() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "pilot_beat",
        sa.Column("pilot_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pilot_id"),
        prefixes=["UNLOGGED"] if on_postgresql else [],
    )
    op.create_table(
        "pilot_report",
        sa.Column("pilot_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("report", sa.Text(), nullable=True),
        sa.Column("offer", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("pilot_id"),
        prefixes=["UNLOGGED"] if on_postgresql else [],
    )
    if on_postgresql:
        # Room in each page for the new version of a row: then an update touches no index.
        op.execute("ALTER TABLE pilot_beat SET (fillfactor = 50)")
        op.execute("ALTER TABLE pilot_report SET (fillfactor = 70)")
    op.create_table(
        "job_delta",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "job_count",
        sa.Column("task_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("state", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("cores", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "queue", "state"),
    )
    op.create_index(
        "job_count_alive",
        "job_count",
        ["task_id"],
        postgresql_where=sa.text("state < 10"),
        sqlite_where=sa.text("state < 10"),
    )
    op.create_table(
        "cores_in_use",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("cores", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name"),
    )
    op.create_table(
        "revision",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "web_process",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.Column("idle", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def downgrade() -> None:
    raise NotImplementedError("the moments of single heartbeats are gone: restore the backup made before the upgrade")
