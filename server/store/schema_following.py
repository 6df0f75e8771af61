"""Tables of what was imported from other descriptions of the world."""

from __future__ import annotations

from sqlalchemy import Column, Double, PrimaryKeyConstraint, String, Table, Text

from server.store.schema import metadata

followed = Table(
    "followed",
    metadata,
    Column("kind", String(16), nullable=False),
    Column("name", String(255), nullable=False),
    Column("spec", Text, nullable=False),
    Column("gone", Double),
    PrimaryKeyConstraint("kind", "name"),
)
"""Sites, storages and queues as their source described them last, and since when it does not any more."""

import_report = Table(
    "import_report",
    metadata,
    Column("source", String(16), primary_key=True),
    Column("report", Text, nullable=False),
)
"""What the last import of a source found and did, as JSON."""
