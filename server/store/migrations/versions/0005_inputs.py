"""Inputs beside their tasks: file lists in parts, several stages that feed one, ranges of events, recalls from tape

Revision: 0005, after 0004
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_CHUNK = 1000


def upgrade() -> None:
    _new_tables()
    with op.batch_alter_table("unit_detail") as batch:
        batch.add_column(sa.Column("first_event", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("bucket") as batch:
        batch.add_column(sa.Column("grouping", sa.String(length=255), server_default="", nullable=False))
        batch.drop_constraint("bucket_key", type_="unique")
        batch.create_unique_constraint("bucket_key", ["task_id", "locations", "memory_mb", "wall_s", "grouping"])
    op.execute("INSERT INTO task_feed (parent_id, child_id) SELECT parent_id, id FROM task WHERE parent_id IS NOT NULL")
    with op.batch_alter_table("task") as batch:
        batch.drop_index("task_parent")
        batch.drop_column("parent_id")
    _move_lists()


def _key(name: str) -> sa.Column[int]:
    return sa.Column(name, _BIG, autoincrement=False, nullable=False)


def _new_tables() -> None:
    op.create_table("task_feed", _key("parent_id"), _key("child_id"), sa.PrimaryKeyConstraint("parent_id", "child_id"))
    op.create_index("task_feed_child", "task_feed", ["child_id"])
    op.create_table(
        "task_source",
        _key("task_id"),
        sa.Column("files", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("chunks", sa.Integer(), server_default="0", nullable=False),
        sa.Column("after", sa.Text(), server_default="", nullable=False),
        sa.Column("closing", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_index("task_source_next", "task_source", ["next_at"])
    op.create_table(
        "task_input",
        _key("task_id"),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "n"),
    )
    op.create_table(
        "task_file",
        _key("task_id"),
        sa.Column("digest", sa.LargeBinary(length=16), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "digest"),
    )
    op.create_table(
        "secondary_file",
        _key("task_id"),
        sa.Column("stream", sa.String(length=64), nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "stream", "n"),
    )
    op.create_table(
        "recall",
        _key("unit_id"),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("storage", sa.String(length=255), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("unit_id"),
    )
    op.create_index("recall_state", "recall", ["state", "next_at"])
    op.create_index("recall_task", "recall", ["task_id"])
    op.create_index("recall_path", "recall", ["storage", "path"])
    op.create_index("recall_request", "recall", ["request"])


def _move_lists() -> None:
    """File lists leave the tasks' own rows; of those that are not all units yet, the rest is kept in parts."""
    connection = op.get_bind()
    task = sa.table("task", *(sa.column(name) for name in ("id", "spec", "resolved", "input_closed")))
    ids = [row.id for row in connection.execute(sa.select(task.c.id).where(task.c.spec.like('%"kind":"files"%')))]
    for task_id in ids:
        row = connection.execute(sa.select(task).where(task.c.id == task_id)).one()
        spec = json.loads(row.spec)
        if spec["input"]["kind"] != "files":
            continue
        rest = spec["input"].pop("files", [])[row.resolved :]
        connection.execute(sa.update(task).where(task.c.id == task_id).values(spec=json.dumps(spec)))
        if not row.input_closed:
            _keep(connection, task_id, rest)


def _keep(connection: sa.Connection, task_id: int, files: list[object]) -> None:
    part = sa.table("task_input", *(sa.column(name) for name in ("task_id", "n", "body")))
    names = ("task_id", "chunks", "closing", "next_at")
    source = sa.table("task_source", *(sa.column(name) for name in names))
    parts = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    for number, each in enumerate(parts):
        connection.execute(sa.insert(part).values(task_id=task_id, n=number, body=json.dumps(each).encode()))
    connection.execute(sa.insert(source).values(task_id=task_id, chunks=len(parts), closing=True, next_at=0.0))


def downgrade() -> None:
    raise NotImplementedError("file lists have left the tasks' rows: restore the backup made before the upgrade")
