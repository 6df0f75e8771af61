"""Tables of what was imported from other descriptions of the world."""

from __future__ import annotations

from sqlalchemy import Column, Double, PrimaryKeyConstraint, String, Table, Text

from server.store.schema import metadata

imported = Table(
    "imported",
    metadata,
    Column("source", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(255), nullable=False),
    Column("fields", Text, nullable=False),
    Column("gone", Double),
    PrimaryKeyConstraint("source", "kind", "name"),
)
"""A site, a storage, a queue or the distances of a site as ``source`` described it last: its fields as JSON; and since when
the source does not name it any more."""

import_report = Table(
    "import_report",
    metadata,
    Column("source", String(255), primary_key=True),
    Column("report", Text, nullable=False),
)
"""What the last look at a source brought, as JSON."""
