"""Retry rules, black holes, time-outs

Revision: 0008, after 0007
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    rules = op.create_table(
        "retry_rule",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.bulk_insert(
        rules,
        [{"name": rule["name"], "position": rule["position"], "spec": json.dumps(rule)} for rule in DEFAULT_RULES],
    )
    op.create_table(
        "host_fault",
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("tasks", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("blocks", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("queue", "host"),
    )
    op.create_table(
        "task_watch",
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_table(
        "job_watch",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "slice_cursor",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "outgrown_task",
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id"),
    )


def downgrade() -> None:
    for table in ("outgrown_task", "slice_cursor", "job_watch", "task_watch", "host_fault", "retry_rule"):
        op.drop_table(table)


DEFAULT_RULES = [
    {
        "name": "out-of-memory",
        "action": {"kind": "more_memory", "cap_mb": 262144, "factor": 1.5},
        "when": {"error_codes": ["1212", "1235"]},
        "position": 10,
        "description": "A payload that ran out of memory is tried again with half as much more.",
    },
    {
        "name": "out-of-memory-message",
        "action": {"kind": "more_memory", "cap_mb": 262144, "factor": 1.5},
        "when": {
            "sources": ["payload"],
            "message": "std::bad_alloc|MemoryError|[Cc]annot allocate memory|[Oo]ut of memory",
        },
        "position": 20,
        "description": "The same, for payloads whose last words say so.",
    },
    {
        "name": "out-of-time",
        "action": {"kind": "more_time", "cap_s": 604800, "factor": 2},
        "when": {"error_codes": ["1213", "1204"]},
        "position": 30,
        "description": "A payload that ran out of wall time is tried again with twice as much.",
    },
    {
        "name": "looping",
        "action": {"kind": "limit_retry", "limit": 2},
        "when": {"error_codes": ["1150"]},
        "position": 40,
        "description": "A payload that writes nothing for too long is tried twice, not more.",
    },
    {
        "name": "killed-by-signal-9",
        "action": {"kind": "more_memory", "cap_mb": 262144, "factor": 1.5},
        "when": {"sources": ["payload"], "exit_codes": ["137"]},
        "position": 50,
        "active": False,
        "description": "Often the node ran out of memory. Make it active where your nodes kill what outgrows its "
        "limit.",
    },
]
"""The rules that a new database holds, as they are written at this revision."""
