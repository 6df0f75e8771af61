"""The tables of what tasks read, beside the units that were made of it."""

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
    text,
)

from server.store.schema_base import BigId, metadata

task_feed = Table(
    "task_feed",
    metadata,
    Column("parent_id", BigId, primary_key=True, autoincrement=False),
    Column("child_id", BigId, primary_key=True, autoincrement=False),
    Index("task_feed_child", "child_id"),
)
"""Which tasks take outputs of which, as units or as secondary input."""

task_source = Table(
    "task_source",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("files", BigInteger, nullable=False, server_default="0"),
    Column("chunks", Integer, nullable=False, server_default="0"),
    Column("after", Text, nullable=False, server_default=""),
    Column("closing", Boolean, nullable=False, server_default=text("false")),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("next_at", Double),
    Index("task_source_next", "next_at"),
)
"""A task whose files are not all units yet, or that takes more later.

``files`` were taken so far, ``chunks`` of the list written, ``after`` is where the catalogue's answer goes on. No
``next_at``: nothing to do until somebody gives more. The row goes when the input is closed, but for an ``open`` one.
"""

task_input = Table(
    "task_input",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)
"""A part of a submitted file list, as JSON; deleted when its units are made."""

task_file = Table(
    "task_file",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("digest", LargeBinary(16), primary_key=True),
)
"""The files that an input has taken which may be given one twice: digests of their DIDs."""

secondary_file = Table(
    "secondary_file",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("stream", String(64), primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)
"""A file of a secondary input, as JSON; numbered from 0 on, so that jobs get them in turn."""

recall = Table(
    "recall",
    metadata,
    Column("unit_id", BigId, primary_key=True, autoincrement=False),
    Column("task_id", BigId, nullable=False),
    Column("storage", String(255), nullable=False),
    Column("path", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("request", Text),
    Column("since", Double, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("reason", Text, nullable=False, server_default=""),
    Index("recall_state", "state", "next_at"),
    Index("recall_task", "task_id"),
    Index("recall_path", "storage", "path"),
    Index("recall_request", "request"),
)
"""A unit whose file is on tape: wanted, asked for, or on disk and pinned until the unit needs it no more."""
