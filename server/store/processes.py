"""What web processes say of themselves, for one another and for the agents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from server.store.schema import web_process

FRESH_S = 30.0
"""A process that has said nothing for so long is gone."""

_NONE: Mapping[str, int] = MappingProxyType({})


def say(connection: Connection, name: str, idle: Mapping[str, int], now: float) -> None:
    """A process is there, and so many idle pilots of each queue ask it for work. Long gone ones are forgotten."""
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"seen": now, "idle": msgspec.json.encode(dict(idle)).decode()}
    statement: Any = dialect_insert(web_process).values(name=name, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
    connection.execute(delete(web_process).where(web_process.c.seen < now - 100 * FRESH_S))


def count(connection: Connection, now: float) -> int:
    """How many web processes share the work now, at least one."""
    return max(1, len(connection.execute(select(web_process.c.name).where(_fresh(now))).all()))


def idle_pilots(
    connection: Connection, now: float, own_name: str = "", own: Mapping[str, int] = _NONE
) -> dict[str, int]:
    """Idle pilots by queue, over all processes; this one knows its own better than what it said last."""
    total: Counter[str] = Counter(own)
    query = select(web_process.c.idle).where(_fresh(now), web_process.c.name != own_name)
    for row in connection.execute(query):
        total.update(msgspec.json.decode(row.idle, type=dict[str, int]))
    return dict(total)


def _fresh(now: float) -> Any:
    return (web_process.c.seen > now - FRESH_S) & (web_process.c.seen <= now + FRESH_S)
