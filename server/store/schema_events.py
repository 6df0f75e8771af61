"""The tables of watching: events, what agents do, what is measured for dashboards and Prometheus.

On PostgreSQL :data:`event` is partitioned by day. There is always a partition for whatever no day claims, so that an
insert never fails; the housekeeping agent makes the days ahead and drops the old ones.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import DDL, BigInteger, Boolean, Column, Double, Index, String, Table, Text
from sqlalchemy import event as hooks
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement

from server.store.schema_base import BigId, metadata

PARTITION_PREFIX = "event_day_"
"""Names of partitions: this and the day as ``YYYYMMDD``."""
DEFAULT_PARTITION = "event_default"


class OwnTransaction(ColumnElement[int]):
    """The number of the transaction that writes; 0 on SQLite, where one writes at a time and ids tell the order."""

    type = BigInteger()
    inherit_cache = True


@compiles(OwnTransaction)
def _nothing(_element: OwnTransaction, _compiler: Any, **_: Any) -> str:
    return "0"


@compiles(OwnTransaction, "postgresql")
def _transaction(_element: OwnTransaction, _compiler: Any, **_: Any) -> str:
    return "((pg_current_xact_id())::text)::bigint"


event = Table(
    "event",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("subject", String(16), nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("task_id", BigInteger),
    Column("job_id", BigInteger),
    Column("source", String(16)),
    Column("target", String(16)),
    Column("detail", Text),
    Column("xact", BigInteger, nullable=False, server_default=OwnTransaction()),
    Index("event_stream", "xact", "id"),
    Index("event_task", "task_id", "xact", "id"),
    sqlite_autoincrement=True,
    postgresql_partition_by="RANGE (time)",
)
"""Read in the order of ``(xact, id)``: that order never changes any more below the oldest transaction still at work.

There is no key on PostgreSQL, since one across partitions would need the time in it; ids come from a sequence.
"""
# A key of a partitioned table would have to hold the time.
event.primary_key.ddl_if(dialect="sqlite")
Index(
    "event_job", event.c.job_id, postgresql_where=event.c.job_id.is_not(None), sqlite_where=event.c.job_id.is_not(None)
)
_rest = DDL(f"CREATE TABLE {DEFAULT_PARTITION} PARTITION OF event DEFAULT")  # type: ignore[no-untyped-call]
hooks.listen(event, "after_create", _rest.execute_if(dialect="postgresql"))


def is_partition(table_name: str) -> bool:
    """Whether a table is one of the days of :data:`event`: such come and go, and are in no migration."""
    return table_name == DEFAULT_PARTITION or (
        table_name.startswith(PARTITION_PREFIX) and table_name[len(PARTITION_PREFIX) :].isdecimal()
    )


event_cursor = Table(
    "event_cursor",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("xact", BigInteger, nullable=False),
    Column("id", BigInteger, nullable=False),
)
"""How far somebody has read the events: ``name`` is whoever reads them for good (the publisher, the counter)."""

event_count = Table(
    "event_count",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("n", BigInteger, nullable=False),
)
"""How many events of each kind there have been, so that a scrape counts none."""

agent_run = Table(
    "agent_run",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("started", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("handled", BigInteger, nullable=False),
    Column("error", Text, nullable=False, server_default=""),
    Column("error_time", Double),
    Column("period", Double, nullable=False, server_default="0"),
    Column("holder", String(255), nullable=False, server_default=""),
    Column("runs", BigInteger, nullable=False, server_default="0"),
    Column("errors", BigInteger, nullable=False, server_default="0"),
    Column("overruns", BigInteger, nullable=False, server_default="0"),
    Column("due", Double),
)
"""What each agent did last. Written every few seconds, not at each run."""

agent_switch = Table(
    "agent_switch",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("enabled", Boolean, nullable=False),
    Column("changed", Double, nullable=False),
    Column("changed_by", String(255), nullable=False),
)
"""Agents that a person has switched off, or on again; without a row an agent is on."""

measured = Table(
    "measured",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("time", Double, nullable=False),
    Column("value", Text, nullable=False),
)
"""What an agent measured last, as JSON."""

process_metrics = Table(
    "process_metrics",
    metadata,
    Column("process", String(255), primary_key=True),
    Column("time", Double, nullable=False),
    Column("value", Text, nullable=False),
)
"""What each web process has counted since its start, as JSON: any of them answers for all."""
