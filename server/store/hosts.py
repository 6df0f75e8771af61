"""Hosts that failed jobs lately, and those that get nothing for a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from common.wire import BlockedHost
from server.engine.blackhole import HostLimits, HostRecord, forgotten, suspected
from server.store.schema_failures import host_fault

HostKey = tuple[str, str]
"""Queue and host: hosts of different queues may have the same name."""


def hold(connection: Connection, queue: str, host: str) -> HostRecord:
    """What is remembered of a host, its row made if it is not there, and locked until the transaction ends."""
    dialect_insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"queue": queue, "host": host, "failures": 0, "tasks": "[]", "since": 0.0, "until": 0.0, "blocks": 0}
    statement = dialect_insert(host_fault).values(**values)
    # Writing the key anew changes nothing, but locks the row and gives it back: one statement for both cases.
    statement = statement.on_conflict_do_update(
        index_elements=[host_fault.c.queue, host_fault.c.host], set_={"queue": statement.excluded.queue}
    ).returning(*_RECORD)
    return _record(connection.execute(statement).one())


def write(connection: Connection, queue: str, host: str, record: HostRecord, error_code: int | None) -> None:
    """Remember something else of a host whose row is held."""
    connection.execute(
        host_fault.update()
        .where(*_is(queue, host))
        .values(
            failures=record.failures,
            tasks=msgspec.json.encode(record.tasks).decode(),
            since=record.since,
            until=record.until,
            blocks=record.blocks,
            error_code=error_code,
        )
    )


def forget(connection: Connection, queue: str, host: str) -> bool:
    """A job succeeded there, or an admin says that it is well; False if nothing was known of it."""
    return bool(connection.execute(delete(host_fault).where(*_is(queue, host))).rowcount)


def suspects(connection: Connection, limits: HostLimits) -> dict[HostKey, HostRecord]:
    """Hosts whose next success is worth noting, blocked ones among them."""
    rows = connection.execute(select(host_fault.c.queue, host_fault.c.host, *_RECORD))
    found = {(row.queue, row.host): _record(row) for row in rows}
    return {key: record for key, record in found.items() if suspected(record, limits)}


def blocked_among(known: Mapping[HostKey, HostRecord], now: float) -> dict[HostKey, str]:
    """For each host that gets nothing now, the words that say why, from what :func:`suspects` gave."""
    return {key: words(each.until, each.blocks, now) for key, each in known.items() if each.until > now}


def words(until: float, blocks: int, now: float) -> str:
    """Why a host is blocked."""
    times = "" if blocks == 1 else f", {blocks} times in a row now"
    return f"it failed jobs fast{times}; again in {until - now:.0f} s"


def listing(connection: Connection, now: float) -> list[BlockedHost]:
    """All hosts that are blocked now."""
    query = select(host_fault).where(host_fault.c.until > now).order_by(host_fault.c.queue, host_fault.c.host)
    return [
        BlockedHost(row.queue, row.host, row.until, row.blocks, row.error_code) for row in connection.execute(query)
    ]


def purge(connection: Connection, limits: HostLimits, now: float) -> int:
    """Drop what counts no more; how many rows. A row that is written meanwhile stays."""
    rows = connection.execute(select(host_fault.c.queue, host_fault.c.host, *_RECORD)).all()
    old = [row for row in rows if forgotten(_record(row), limits, now)]
    return sum(
        connection.execute(
            delete(host_fault).where(
                *_is(row.queue, row.host), host_fault.c.since == row.since, host_fault.c.failures == row.failures
            )
        ).rowcount
        for row in old
    )


_RECORD = (
    host_fault.c.failures,
    host_fault.c.tasks,
    host_fault.c.since,
    host_fault.c.until,
    host_fault.c.blocks,
)


def _is(queue: str, host: str) -> tuple[Any, Any]:
    return host_fault.c.queue == queue, host_fault.c.host == host


def _record(row: Any) -> HostRecord:
    return HostRecord(row.failures, tuple(msgspec.json.decode(row.tasks)), row.since, row.until, row.blocks)
