"""Tables of commands and of what people hand in beside their workflows: moves at work, deletions, problems, sandboxes,
secrets, notices, kept logs."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

from server.store.schema import BigId, metadata

task_touched = Table(
    "task_touched",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("task_id", BigId, nullable=False),
    sqlite_autoincrement=True,
)
"""Tasks whose counts or state changed, to be looked at by the agent that moves tasks on; it takes the rows away.

Appended to, never updated: no two writers wait for one another, and none of a row that is being read is lost.
"""

task_move = Table(
    "task_move",
    metadata,
    Column("task_id", BigId, ForeignKey("task.id"), primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("after_id", BigId, nullable=False, server_default="0"),
    Column("skipped", Integer, nullable=False, server_default="0"),
    Column("begun", Double, nullable=False),
)
"""A command whose units are still being moved, slice by slice: the last unit that was looked at."""

workflow_deletion = Table(
    "workflow_deletion",
    metadata,
    Column("workflow_id", BigId, primary_key=True, autoincrement=False),
    Column("name", String(255), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("who", String(255), nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("asked", Double, nullable=False),
    Column("ended", Double),
)
"""Workflows that are being deleted, or were: the row stays, so that a repeated request is answered alike."""
_undeleted = text("ended IS NULL")
Index(
    "workflow_deletion_open",
    workflow_deletion.c.workflow_id,
    postgresql_where=_undeleted,
    sqlite_where=_undeleted,
)

job_problem = Table(
    "job_problem",
    metadata,
    Column("job_id", BigId, primary_key=True, autoincrement=False),
    Column("task_id", BigId, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("looked", Boolean, nullable=False, server_default=text("false")),
    Column("time", Double, nullable=False),
    Index("job_problem_task", "task_id", "job_id"),
    Index("job_problem_time", "time"),
)
"""Jobs that went wrong, and how: a row for each, until a person resumes the task or it has grown old."""
_unlooked = text("NOT looked")
Index("job_problem_unlooked", job_problem.c.task_id, postgresql_where=_unlooked, sqlite_where=_unlooked)

sandbox = Table(
    "sandbox",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("used", Double, nullable=False),
)
"""Uploaded sandboxes by their content. ``used`` is when one was last uploaded or named by a submission."""

sandbox_part = Table(
    "sandbox_part",
    metadata,
    Column("sha256", String(64), ForeignKey("sandbox.sha256"), primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)
"""Its bytes, in pieces that fit in memory; in the database, so that every server of an installation has them."""

sandbox_owner = Table(
    "sandbox_owner",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("sha256", String(64), ForeignKey("sandbox.sha256"), primary_key=True),
    Column("uploaded", Double, nullable=False),
    Index("sandbox_owner_sha256", "sha256"),
)

sandbox_use = Table(
    "sandbox_use",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("sha256", String(64), ForeignKey("sandbox.sha256"), nullable=False),
    Index("sandbox_use_sha256", "sha256"),
)
"""Which task unpacks which sandbox."""

job_log = Table(
    "job_log",
    metadata,
    Column("job_id", BigId, primary_key=True, autoincrement=False),
    Column("task_id", BigId, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("time", Double, nullable=False),
    Index("job_log_time", "time"),
    Index("job_log_task", "task_id"),
)
"""Log archives of failed jobs, kept for a while."""

user_secret = Table(
    "user_secret",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("changed", Double, nullable=False),
)
"""Secrets of people, encrypted with a key that the database does not have."""

workflow_notify = Table(
    "workflow_notify",
    metadata,
    Column("workflow_id", BigId, primary_key=True, autoincrement=False),
    Column("spec", Text, nullable=False),
)
"""Whom to tell when a workflow is over; the row goes when its notices were written."""

notice = Table(
    "notice",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("workflow_id", BigId, nullable=False),
    Column("channel", String(16), nullable=False),
    Column("target", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("ended", Double),
    Column("error", Text, nullable=False, server_default=""),
    sqlite_autoincrement=True,
)
"""The outbox: notices that wait to be delivered, were delivered, or were given up."""
_undelivered = text("ended IS NULL")
Index("notice_due", notice.c.due, postgresql_where=_undelivered, sqlite_where=_undelivered)
Index("notice_workflow", notice.c.workflow_id)
