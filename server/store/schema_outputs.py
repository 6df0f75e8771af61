"""Tables of what becomes of outputs, and of jobs that have ended: datasets, registration, records, accounting."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from server.store.schema import BigId, metadata

job_ended = Table(
    "job_ended",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("job_id", BigId, nullable=False),
    sqlite_autoincrement=True,
)
"""Jobs that have ended and are not written into the books yet. Written with each end, emptied by one agent."""

registration = Table(
    "registration",
    metadata,
    Column("job_id", BigId, primary_key=True, autoincrement=False),
    Column("task_id", BigId, nullable=False),
    Column("phase", SmallInteger, nullable=False),
    Column("since", Double, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("next_try", Double, nullable=False),
    Column("error", Text, nullable=False, server_default=""),
    Index("registration_next_try", "next_try"),
)
"""Confirmed jobs whose outputs the server still has to register, or to take out of the catalogue again."""

dataset = Table(
    "dataset",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("scope", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("first_task", BigId, nullable=False),
    Column("base", String(255), nullable=False),
    Column("number", Integer),
    Column("storage", String(255)),
    Column("lifetime_days", Integer),
    Column("created", Double, nullable=False),
    Column("n_files", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    UniqueConstraint("scope", "name", name="dataset_did"),
    Index("dataset_task", "first_task", "id"),
    Index("dataset_base", "scope", "base", "number"),
    sqlite_autoincrement=True,
)

dataset_file = Table(
    "dataset_file",
    metadata,
    Column("dataset_id", BigId, ForeignKey("dataset.id"), primary_key=True),
    Column("output_id", BigId, primary_key=True, autoincrement=False),
    Index("dataset_file_output", "output_id"),
)

trace_task = Table(
    "trace_task",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("task_id", BigId, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("checked", BigInteger, nullable=False),
    UniqueConstraint("task_id", "digest", name="trace_task_version"),
    sqlite_autoincrement=True,
)
"""How a task was defined when jobs of it ended, once for each definition. Never deleted with the task.

``checked`` is the number of the task's last change when the definition was still this one.
"""

trace_job = Table(
    "trace_job",
    metadata,
    Column("job_id", BigId, primary_key=True, autoincrement=False),
    Column("trace_task_id", BigId, nullable=False),
    Column("task_id", BigId, nullable=False),
    Column("owner", String(255), nullable=False),
    Column("group_name", String(255)),
    Column("pilot_id", BigId, nullable=False),
    Column("queue", String(255), nullable=False),
    Column("site", String(255), nullable=False),
    Column("host", String(255), nullable=False),
    Column("claimed", Double, nullable=False),
    Column("ended", Double, nullable=False),
    Column("document", Text, nullable=False),
    Index("trace_job_host", "host", "ended"),
    Index("trace_job_owner", "owner", "ended"),
    Index("trace_job_task", "task_id", "job_id"),
)
"""A job that has ended: where, when and for whom it ran, what it read and wrote. Outlives job, task and outputs."""

accounting_day = Table(
    "accounting_day",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("queue", String(255), primary_key=True),
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("cores", Integer, primary_key=True, autoincrement=False),
    Column("site", String(255), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("group_name", String(255), nullable=False, server_default=""),
    Column("jobs_ok", BigInteger, nullable=False),
    Column("jobs_failed", BigInteger, nullable=False),
    Column("wall_s", Double, nullable=False),
    Column("cpu_s", Double, nullable=False),
    Column("wall_hs23_s", Double, nullable=False),
    Column("cpu_hs23_s", Double, nullable=False),
    Column("energy_j", Double, nullable=False),
    Column("first_end", Double, nullable=False),
    Column("last_end", Double, nullable=False),
)
"""What jobs used, by the day (days since the epoch, UTC) on which they ended.

``wall_s`` is not multiplied by the cores; the ``hs23`` columns are seconds × cores × core power.
"""
