"""The first schema

Revision: 0001, the first
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent_run",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("started", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("handled", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=16), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.String(length=16), nullable=True),
        sa.Column("target", sa.String(length=16), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.create_index("event_job", ["job_id", "id"], unique=False)
        batch_op.create_index("event_task", ["task_id", "id"], unique=False)

    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("bucket_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("pilot_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("n_units", sa.Integer(), nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("claimed", sa.Double(), nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=False),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.Integer(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("metrics", sa.Text(), nullable=True),
        sa.Column("kill_reason", sa.Text(), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            "job_alive",
            ["pilot_id"],
            unique=False,
            postgresql_where=sa.text("state < 10"),
            sqlite_where=sa.text("state < 10"),
        )
        batch_op.create_index("job_task", ["task_id", "id"], unique=False)

    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "liveness",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("up_since", sa.Double(), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "output",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("did", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("storage", sa.String(length=255), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.String(length=80), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=True),
        sa.Column("attributes", sa.Text(), nullable=True),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("recorded", sa.Double(), nullable=False),
        sa.Column("fed", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "name", name="output_job_name"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("output", schema=None) as batch_op:
        batch_op.create_index("output_task", ["task_id", "id"], unique=False)
        batch_op.create_index(
            "output_unfed",
            ["task_id"],
            unique=False,
            postgresql_where=sa.text("state = 1 AND NOT fed"),
            sqlite_where=sa.text("state = 1 AND NOT fed"),
        )
        batch_op.create_index(
            "output_unswept",
            ["recorded"],
            unique=False,
            postgresql_where=sa.text("state IN (0, 2)"),
            sqlite_where=sa.text("state IN (0, 2)"),
        )

    op.create_table(
        "replay",
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("ids", sa.Text(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("holder", "request_id"),
    )
    with op.batch_alter_table("replay", schema=None) as batch_op:
        batch_op.create_index("replay_time", ["time"], unique=False)

    op.create_table(
        "setting",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "share",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("parent", sa.String(length=255), nullable=True),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["parent"],
            ["share.name"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "site",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "site_fault",
        sa.Column(
            "bucket_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("bucket_id", "site"),
    )
    op.create_table(
        "unit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("bucket_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("size_mb", sa.Integer(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("generation", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("payload_failures", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("site_failures", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("lost_pilots", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("preemptions", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("unit", schema=None) as batch_op:
        batch_op.create_index(
            "unit_job",
            ["job_id"],
            unique=False,
            postgresql_where=sa.text("job_id IS NOT NULL"),
            sqlite_where=sa.text("job_id IS NOT NULL"),
        )
        batch_op.create_index(
            "unit_ready",
            ["bucket_id", "seq"],
            unique=False,
            postgresql_where=sa.text("state = 1"),
            sqlite_where=sa.text("state = 1"),
        )
        batch_op.create_index("unit_task", ["task_id", "id"], unique=False)

    op.create_table(
        "unit_count",
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column(
            "bucket_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("state", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "bucket_id", "state"),
    )
    op.create_table(
        "unit_delta",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("bucket_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "unit_detail",
        sa.Column("unit_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("did", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("events", sa.BigInteger(), nullable=True),
        sa.Column("checksum", sa.String(length=80), nullable=True),
        sa.Column("counter", sa.BigInteger(), nullable=True),
        sa.Column("attributes", sa.Text(), nullable=True),
        sa.Column("replicas", sa.Text(), nullable=True),
        sa.Column("bad_storages", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Integer(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("unit_id"),
    )
    op.create_table(
        "workflow",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("group_name", sa.String(length=255), nullable=True),
        sa.Column("scope", sa.String(length=255), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("request_id", sa.String(length=255), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner", "request_id", name="workflow_request"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "queue",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["site"],
            ["site.name"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "storage",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["site"],
            ["site.name"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("workflow_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stage", sa.String(length=255), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("resume_state", sa.String(length=16), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("share", sa.String(length=255), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("resolved", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_closed", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["task.id"],
        ),
        sa.ForeignKeyConstraint(
            ["workflow_id"],
            ["workflow.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("task", schema=None) as batch_op:
        batch_op.create_index("task_parent", ["parent_id"], unique=False)
        batch_op.create_index("task_state", ["state"], unique=False)
        batch_op.create_index("task_workflow", ["workflow_id"], unique=False)

    op.create_table(
        "bucket",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("task_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("locations", sa.Text(), nullable=False),
        sa.Column("maybe_ready", sa.Boolean(), nullable=False),
        sa.Column("ready_since", sa.Double(), nullable=False),
        sa.Column("unit_mb", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["task.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "locations", name="bucket_locations"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("bucket", schema=None) as batch_op:
        batch_op.create_index(
            "bucket_maybe_ready",
            ["task_id"],
            unique=False,
            postgresql_where=sa.text("maybe_ready"),
            sqlite_where=sa.text("maybe_ready"),
        )

    op.create_table(
        "worker",
        sa.Column("mark", sa.String(length=64), nullable=False),
        sa.Column("harvester", sa.String(length=255), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("secret_hash", sa.String(length=64), nullable=True),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("starts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("updated", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["queue"],
            ["queue.name"],
        ),
        sa.PrimaryKeyConstraint("mark"),
        sa.UniqueConstraint("secret_hash"),
    )
    with op.batch_alter_table("worker", schema=None) as batch_op:
        batch_op.create_index("worker_queue_state", ["queue", "state"], unique=False)

    op.create_table(
        "pilot",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("nonce", sa.String(length=64), nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("registered", sa.Double(), nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.Column("end_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("log_tail", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["worker"],
            ["worker.mark"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("worker", "node", "start", name="pilot_worker_node_start"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("pilot", schema=None) as batch_op:
        batch_op.create_index(
            "pilot_active",
            ["queue"],
            unique=False,
            postgresql_where=sa.text("state = 0"),
            sqlite_where=sa.text("state = 0"),
        )


def downgrade() -> None:
    with op.batch_alter_table("pilot", schema=None) as batch_op:
        batch_op.drop_index("pilot_active", postgresql_where=sa.text("state = 0"), sqlite_where=sa.text("state = 0"))

    op.drop_table("pilot")
    with op.batch_alter_table("worker", schema=None) as batch_op:
        batch_op.drop_index("worker_queue_state")

    op.drop_table("worker")
    with op.batch_alter_table("bucket", schema=None) as batch_op:
        batch_op.drop_index(
            "bucket_maybe_ready", postgresql_where=sa.text("maybe_ready"), sqlite_where=sa.text("maybe_ready")
        )

    op.drop_table("bucket")
    with op.batch_alter_table("task", schema=None) as batch_op:
        batch_op.drop_index("task_workflow")
        batch_op.drop_index("task_state")
        batch_op.drop_index("task_parent")

    op.drop_table("task")
    op.drop_table("storage")
    op.drop_table("queue")
    op.drop_table("workflow")
    op.drop_table("unit_detail")
    op.drop_table("unit_delta")
    op.drop_table("unit_count")
    with op.batch_alter_table("unit", schema=None) as batch_op:
        batch_op.drop_index("unit_task")
        batch_op.drop_index("unit_ready", postgresql_where=sa.text("state = 1"), sqlite_where=sa.text("state = 1"))
        batch_op.drop_index(
            "unit_job", postgresql_where=sa.text("job_id IS NOT NULL"), sqlite_where=sa.text("job_id IS NOT NULL")
        )

    op.drop_table("site_fault")
    op.drop_table("unit")
    op.drop_table("site")
    op.drop_table("share")
    op.drop_table("setting")
    with op.batch_alter_table("replay", schema=None) as batch_op:
        batch_op.drop_index("replay_time")

    op.drop_table("replay")
    with op.batch_alter_table("output", schema=None) as batch_op:
        batch_op.drop_index(
            "output_unswept", postgresql_where=sa.text("state IN (0, 2)"), sqlite_where=sa.text("state IN (0, 2)")
        )
        batch_op.drop_index(
            "output_unfed",
            postgresql_where=sa.text("state = 1 AND NOT fed"),
            sqlite_where=sa.text("state = 1 AND NOT fed"),
        )
        batch_op.drop_index("output_task")

    op.drop_table("output")
    op.drop_table("liveness")
    op.drop_table("lease")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index("job_task")
        batch_op.drop_index("job_alive", postgresql_where=sa.text("state < 10"), sqlite_where=sa.text("state < 10"))

    op.drop_table("job")
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.drop_index("event_task")
        batch_op.drop_index("event_job")

    op.drop_table("event")
    op.drop_table("agent_run")
