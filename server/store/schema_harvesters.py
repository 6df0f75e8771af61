"""The table of what admins have harvesters do."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Index, String, Table, Text, UniqueConstraint, text

from server.store.schema_base import BigId, metadata

harvester_command = Table(
    "harvester_command",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("harvester", String(255), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("spec", Text, nullable=False),
    Column("who", String(255), nullable=False),
    Column("asked", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("ended", Double),
    Column("ok", Boolean),
    Column("detail", Text, nullable=False, server_default=""),
    Index("harvester_command_asked", "asked"),
    UniqueConstraint("harvester", "request_id", name="harvester_command_request"),
    sqlite_autoincrement=True,
)
"""A command and what came of it. ``spec`` is the request; a harvester that runs out of ``expires`` never gets it."""
_open = text("ended IS NULL")
Index(
    "harvester_command_open",
    harvester_command.c.harvester,
    harvester_command.c.id,
    postgresql_where=_open,
    sqlite_where=_open,
)
