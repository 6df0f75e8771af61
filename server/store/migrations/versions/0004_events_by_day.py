"""Events by day, agents' switches

Revision: 0004, after 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_EVENT = """
CREATE TABLE event (
    id BIGSERIAL NOT NULL,
    time DOUBLE PRECISION NOT NULL,
    kind VARCHAR(32) NOT NULL,
    subject VARCHAR(16) NOT NULL,
    subject_id TEXT NOT NULL,
    task_id BIGINT,
    job_id BIGINT,
    source VARCHAR(16),
    target VARCHAR(16),
    detail TEXT,
    xact BIGINT DEFAULT ((pg_current_xact_id())::text)::bigint NOT NULL
) PARTITION BY RANGE (time)
"""
_COLUMNS = "id, time, kind, subject, subject_id, task_id, job_id, source, target, detail"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _partition()
    else:
        with op.batch_alter_table("event", schema=None) as batch_op:
            batch_op.drop_index("event_task")
            batch_op.drop_index("event_job")
            batch_op.add_column(sa.Column("xact", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    _index()
    with op.batch_alter_table("agent_run", schema=None) as batch_op:
        for column in _agent_columns():
            batch_op.add_column(column)
    op.create_table(
        "event_cursor",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("xact", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "event_count",
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind"),
    )
    op.create_table(
        "agent_switch",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.Column("changed_by", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    for name, key, length in (("measured", "name", 64), ("process_metrics", "process", 255)):
        op.create_table(
            name,
            sa.Column(key, sa.String(length=length), nullable=False),
            sa.Column("time", sa.Double(), nullable=False),
            sa.Column("value", sa.Text(), nullable=False),
            sa.PrimaryKeyConstraint(key),
        )


def _partition() -> None:
    """Move the events over to a partitioned table; they count as settled, in the order of their ids."""
    op.execute("ALTER TABLE event RENAME TO event_before")
    op.execute("ALTER SEQUENCE event_id_seq RENAME TO event_before_id_seq")
    op.execute("DROP INDEX event_task, event_job")
    op.execute(_EVENT)
    op.execute("CREATE TABLE event_default PARTITION OF event DEFAULT")
    op.execute(f"INSERT INTO event ({_COLUMNS}, xact) SELECT {_COLUMNS}, 0 FROM event_before")
    op.execute("SELECT setval('event_id_seq', (SELECT coalesce(max(id), 0) + 1 FROM event_before), false)")
    op.execute("DROP TABLE event_before")


def _index() -> None:
    has_job = sa.text("job_id IS NOT NULL")
    op.create_index("event_stream", "event", ["xact", "id"], unique=False)
    op.create_index("event_task", "event", ["task_id", "xact", "id"], unique=False)
    op.create_index("event_job", "event", ["job_id"], unique=False, postgresql_where=has_job, sqlite_where=has_job)


def _agent_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("error_time", sa.Double(), nullable=True),
        sa.Column("period", sa.Double(), server_default="0", nullable=False),
        sa.Column("holder", sa.String(length=255), server_default="", nullable=False),
        sa.Column("runs", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("errors", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("overruns", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("due", sa.Double(), nullable=True),
    ]


def downgrade() -> None:
    for name in ("process_metrics", "measured", "agent_switch", "event_count", "event_cursor"):
        op.drop_table(name)
    with op.batch_alter_table("agent_run", schema=None) as batch_op:
        for column in reversed(_agent_columns()):
            batch_op.drop_column(column.name)
    if op.get_bind().dialect.name == "postgresql":
        _unpartition()
    else:
        with op.batch_alter_table("event", schema=None) as batch_op:
            for index in ("event_stream", "event_task", "event_job"):
                batch_op.drop_index(index)
            batch_op.drop_column("xact")
    op.create_index("event_task", "event", ["task_id", "id"], unique=False)
    op.create_index("event_job", "event", ["job_id", "id"], unique=False)


def _unpartition() -> None:
    op.execute("ALTER TABLE event RENAME TO event_before")
    op.execute("ALTER SEQUENCE event_id_seq RENAME TO event_before_id_seq")
    op.execute("DROP INDEX event_stream, event_task, event_job")
    op.execute(_EVENT.replace(") PARTITION BY RANGE (time)", ", PRIMARY KEY (id))"))
    op.execute("ALTER TABLE event DROP COLUMN xact")
    op.execute(f"INSERT INTO event ({_COLUMNS}) SELECT {_COLUMNS} FROM event_before")
    op.execute("SELECT setval('event_id_seq', (SELECT coalesce(max(id), 0) + 1 FROM event_before), false)")
    op.execute("DROP TABLE event_before")
