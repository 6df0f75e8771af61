"""The tables of pilots of other systems: their jobs, and what they last asked for."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, String, Table, Text

from server.store.schema_base import BigId, metadata

foreign_job = Table(
    "foreign_job",
    metadata,
    Column("job_id", BigId, primary_key=True, autoincrement=False),
    Column("pilot_id", BigId, nullable=False),
    Column("caller", String(255), nullable=False),
    Column("name", String(255)),
    Column("units", Text, nullable=False),
    Column("told", BigInteger),
    Index("foreign_job_pilot", "pilot_id"),
)
"""Who fetched a job: the ``caller``, and the pilot that first reported it by the ``name`` that it has in its own system.

``units`` are the ids of the job's units as JSON, all claimed at once; ``told`` is the request to look at the job that its
pilot was told of last and has not answered.
"""

foreign_offer = Table(
    "foreign_offer",
    metadata,
    Column("queue", String(255), primary_key=True),
    Column("offer", Text, nullable=False),
    Column("asked", Double, nullable=False),
)
"""What a pilot of another system last offered for a queue and got nothing for: it has no record of its own then."""
