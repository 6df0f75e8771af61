"""What was imported from other systems."""

from __future__ import annotations

from sqlalchemy import Column, PrimaryKeyConstraint, String, Table, Text

from server.store.schema import metadata

imported = Table(
    "imported",
    metadata,
    Column("kind", String(16), nullable=False),
    Column("name", String(511), nullable=False),
    Column("source", String(255), nullable=False),
    Column("fields", Text, nullable=False),
    PrimaryKeyConstraint("kind", "name"),
)
"""A site, a storage or a distance as the last import of ``source`` left it: its fields as JSON. What differs from it in the
world was changed by hand. The name of a distance is that of the site, a blank, and that of the storage."""
