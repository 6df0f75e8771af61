"""Tables of PanDA's users: their tasks' own words, and the names of what they uploaded."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, SmallInteger, String, Table, Text

from server.store.schema import BigId, metadata

panda_task = Table(
    "panda_task",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("workflow_id", BigId, nullable=False),
    Column("owner", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("parameters", Text, nullable=False),
    Index("panda_task_workflow", "workflow_id"),
    Index("panda_task_name", "owner", "name"),
)
"""A workflow that was submitted as a task of PanDA: the task that its client knows it by, and the client's parameters."""

panda_dataset = Table(
    "panda_dataset",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("pattern", SmallInteger, primary_key=True, autoincrement=False),
    Column("owner", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Index("panda_dataset_name", "owner", "name"),
)
"""Which output pattern of a task writes a dataset, by the name that its owner gave it."""

panda_file = Table(
    "panda_file",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("sha256", String(64), ForeignKey("sandbox.sha256"), nullable=False),
    Column("size", Integer, nullable=False),
    Column("crc", BigInteger, nullable=False),
    Column("uploaded", Double, nullable=False),
    Index("panda_file_sha256", "sha256"),
    Index("panda_file_content", "owner", "crc", "size"),
)
"""Sandboxes by the names that their owners gave them; ``crc`` is the CRC-32 at the end of the gzip file."""
