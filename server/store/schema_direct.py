"""The tables of direct jobs, of the files that go with them, and of what people delegated."""

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
    UniqueConstraint,
    text,
)

from server.store.schema_base import BigId, metadata

delegated_proxy = Table(
    "delegated_proxy",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("subject", String(255)),
    Column("sealed", LargeBinary, nullable=False),
    Column("stamp", String(64), nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Index("delegated_proxy_expires", "expires"),
    Index("delegated_proxy_subject", "subject", unique=True),
    sqlite_autoincrement=True,
)
"""A key of the server's, sealed, and once somebody has proved who it is (``subject``) the chain that they signed for it.

Without a subject it is a request that nobody has answered yet. ``stamp`` changes with each new chain.
"""

direct_place = Table(
    "direct_place",
    metadata,
    Column("queue", String(255), primary_key=True),
    Column("harvester", String(255), nullable=False),
    Column("url", Text, nullable=False),
    Column("batch_queue", String(255), nullable=False, server_default=""),
    Column("seen", Double, nullable=False),
)
"""The queues that take direct jobs, with the address of their computing element, as harvesters last said."""

direct_job = Table(
    "direct_job",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("owner", String(255), nullable=False),
    Column("clusters", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("changed", Double, nullable=False),
    Column("name", String(255), nullable=False, server_default=""),
    Column("description", Text),
    Column("language", String(8), nullable=False, server_default=""),
    Column("stdout", Text),
    Column("stderr", Text),
    Column("proxy_id", BigId),
    Column("of_task", BigId),
    Column("mark", String(64)),
    Column("fetch", Boolean, nullable=False, server_default=text("false")),
    Index("direct_job_owner", "owner", "id"),
    Index("direct_job_task", "of_task"),
    sqlite_autoincrement=True,
)
"""A direct job as its owner sees it; without a description it waits for one. ``mark`` is of its present or last run."""
_unclaimed = text("mark IS NULL AND of_task IS NOT NULL")
Index("direct_job_unclaimed", direct_job.c.id, postgresql_where=_unclaimed, sqlite_where=_unclaimed)

direct_run = Table(
    "direct_run",
    metadata,
    Column("mark", String(64), primary_key=True),
    Column("direct_id", BigId, nullable=False),
    Column("of_job", BigId, nullable=False),
    Column("harvester", String(255), nullable=False),
    Column("queue", String(255), nullable=False),
    Column("url", Text, nullable=False),
    Column("proxy_id", BigId, nullable=False),
    Column("worker_state", String(16), nullable=False),
    Column("job_state", String(16), nullable=False),
    Column("batch_id", Text),
    Column("native", String(255), nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Column("exit_code", Integer),
    Column("killing", Boolean, nullable=False, server_default=text("false")),
    Column("lost", Boolean, nullable=False, server_default=text("false")),
    Column("results", Boolean, nullable=False, server_default=text("false")),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Index("direct_run_direct", "direct_id"),
    Index("direct_run_proxy", "proxy_id"),
)
"""One run of a direct job on a computing element; the row goes when nothing is left of it there."""
Index("direct_run_harvester", direct_run.c.harvester, direct_run.c.created)

direct_file = Table(
    "direct_file",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("direct_id", BigId, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("path", String(1024), nullable=False),
    Column("size", BigId, nullable=False),
    Column("sha256", String(64), nullable=False),
    UniqueConstraint("direct_id", "kind", "path", name="direct_file_path"),
    sqlite_autoincrement=True,
)
"""A file of a direct job: one that its owner uploaded, or one that it left."""

direct_part = Table(
    "direct_part",
    metadata,
    Column("file_id", BigId, ForeignKey("direct_file.id"), primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)
"""Its bytes, in pieces that fit in memory."""
