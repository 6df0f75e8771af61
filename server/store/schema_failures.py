"""Tables of failures: retry rules, hosts that fail jobs, tasks that stay in a state."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, String, Table, Text

from server.store.schema import BigId, metadata

retry_rule = Table(
    "retry_rule",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("spec", Text, nullable=False),
)

host_fault = Table(
    "host_fault",
    metadata,
    Column("queue", String(255), primary_key=True),
    Column("host", String(255), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("tasks", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("until", Double, nullable=False),
    Column("blocks", Integer, nullable=False),
    Column("error_code", Integer),
)
"""Hosts that failed jobs lately: few rows, as an agent drops what is old. ``tasks`` is a JSON list of ids."""

task_watch = Table(
    "task_watch",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("since", Double, nullable=False),
    Column("told", Boolean, nullable=False),
)
"""Tasks in a state that they should leave: since when an agent has seen them in it, and whether that was told."""

job_watch = Table(
    "job_watch",
    metadata,
    Column("job_id", BigId, primary_key=True, autoincrement=False),
    Column("state", Integer, nullable=False),
    Column("since", Double, nullable=False),
)
"""Live jobs in a state of which the job's row does not say since when: since when an agent has seen them in it."""

slice_cursor = Table(
    "slice_cursor",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("after", BigInteger, nullable=False),
)
"""Where the next slice begins of an agent that goes over everything slice by slice."""

outgrown_task = Table(
    "outgrown_task",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
)
"""Tasks with units that no queue can hold any more, and the words in which that was told."""
