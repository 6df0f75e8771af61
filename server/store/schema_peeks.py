"""The table of what people want to see of running jobs."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, String, Table, Text, text

from server.store.schema import BigId, metadata

peek = Table(
    "peek",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("job_id", BigId, nullable=False),
    Column("pilot_id", BigId, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("spec", Text, nullable=False),
    Column("who", String(255), nullable=False),
    Column("asked", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("ended", Double),
    Column("answer", Text),
    Index("peek_asked", "asked"),
    sqlite_autoincrement=True,
)
"""A request to a job's pilot, and its answer; kept for a short while."""
_open = text("ended IS NULL")
Index("peek_open", peek.c.job_id, peek.c.kind, unique=True, postgresql_where=_open, sqlite_where=_open)
"""One open request of each kind for a job."""
