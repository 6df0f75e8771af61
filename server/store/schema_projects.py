"""The tables of projects, beside the task that each of them is."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from server.store.schema_base import BigId, metadata

project = Table(
    "project",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("virtual", Boolean, nullable=False),
    Column("retry_on_timeout", Boolean, nullable=False),
    Column("worker_timeout_s", Double),
    Column("idle_timeout_s", Double),
    Column("users", Text, nullable=False),
    Column("roles", Text, nullable=False),
    Column("file_attributes", Text, nullable=False),
    Column("active", Double, nullable=False),
    Column("idle_at", Double),
    Column("restart", String(32)),
    Column("restart_after", BigInteger, nullable=False, server_default="0"),
    Column("copy_of", BigInteger),
    Column("copy_after", BigInteger),
    Column("copy_attributes", Text),
)
"""What a project is beside its task; its own attributes are those of the task's stage.

``idle_at`` is when it is abandoned unless a worker is heard of; none while it is abandoned or over. ``restart`` names
the states whose units are being restarted, from the unit behind ``restart_after`` on; ``copy_after`` likewise says how
far the files of ``copy_of`` are copied, and is empty when they all are.
"""
_idle = text("idle_at IS NOT NULL")
Index("project_idle", project.c.idle_at, postgresql_where=_idle, sqlite_where=_idle)
_restart = text("restart IS NOT NULL")
Index("project_restart", project.c.task_id, postgresql_where=_restart, sqlite_where=_restart)
_copying = text("copy_after IS NOT NULL")
Index("project_copy", project.c.task_id, postgresql_where=_copying, sqlite_where=_copying)

project_attribute = Table(
    "project_attribute",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("name", String(255), primary_key=True),
    Column("text", String(255), nullable=False),
    Column("number", Double),
    Index("project_attribute_text", "name", "text"),
    Index("project_attribute_number", "name", "number"),
)
"""The plain attributes of a project, to search by."""

project_file = Table(
    "project_file",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("digest", LargeBinary(16), primary_key=True),
    Column("unit_id", BigId, nullable=False),
)
"""Which unit a file of a project is, by the digest of its DID."""

reservation = Table(
    "reservation",
    metadata,
    Column("unit_id", BigId, primary_key=True, autoincrement=False),
    Column("task_id", BigId, nullable=False),
    Column("worker", String(255), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reserved", Double, nullable=False),
    Column("expires", Double),
    Column("released", Double),
    Column("outcome", SmallInteger),
    UniqueConstraint("task_id", "worker", "request_id", "ordinal", name="reservation_request"),
)
"""Who holds a file of a project, or held it last: then it is ``released``, with an ``outcome``.

It stays until the file is reserved again, so that a repeated call is answered as the first. Only one that a worker
holds has a moment at which it ``expires``.
"""
_expiring = text("expires IS NOT NULL")
Index("reservation_expires", reservation.c.expires, postgresql_where=_expiring, sqlite_where=_expiring)
