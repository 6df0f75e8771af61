"""Tables of matching: what each queue should have, and the rules that tag tasks."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Integer, String, Table, Text

from server.store.schema import metadata

demand = Table(
    "demand",
    metadata,
    Column("queue", String(255), primary_key=True),
    Column("computed", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("pilots", BigInteger, nullable=False),
    Column("numbers", Text, nullable=False),
)
"""What each queue was found to need: when, how long the finding took for all queues, and the numbers as JSON."""

tagging_rule = Table(
    "tagging_rule",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("spec", Text, nullable=False),
)
