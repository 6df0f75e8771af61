"""The tables of probe jobs."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Index, Integer, PrimaryKeyConstraint, String, Table, Text

from server.store.schema import BigId, metadata

probe_place = Table(
    "probe_place",
    metadata,
    Column("site", String(255), nullable=False),
    Column("gpu", Boolean, nullable=False),
    Column("due", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("missed", Integer, nullable=False, server_default="0"),
    Column("asked", Double),
    Column("ended", Double),
    Column("run_workflow", BigId),
    Column("run_task", BigId),
    Column("run_job", BigId),
    Column("leftovers", Text, nullable=False, server_default="[]"),
    Column("queue", String(255), nullable=False, server_default=""),
    Column("host", String(255), nullable=False, server_default=""),
    Column("environment", Text),
    Column("environment_ok", Boolean),
    Column("environment_since", Double),
    PrimaryKeyConstraint("site", "gpu"),
    Index("probe_place_task", "run_task"),
)
"""A site, or its slots with GPUs: when it is probed next, how far its latest probe is, and what that found on its node.

``run_*`` are those of the latest probe: the rows that they name go with its workflow, this one stays.
"""

probe_result = Table(
    "probe_result",
    metadata,
    Column("site", String(255), nullable=False),
    Column("gpu", Boolean, nullable=False),
    Column("storage", String(255), nullable=False),
    Column("operation", String(8), nullable=False),
    Column("ok", Boolean, nullable=False),
    Column("error_code", Integer),
    Column("error_detail", Text, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("mb_s", Double, nullable=False),
    Column("time", Double, nullable=False),
    Column("since", Double, nullable=False),
    Column("run_job", BigId, nullable=False),
    PrimaryKeyConstraint("site", "gpu", "storage", "operation"),
)
"""What the last probe found that tried an operation at a storage, and since when it is so."""
