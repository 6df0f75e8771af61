"""Rules that tag new tasks."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from common.wire import TaggingRule
from server.store.schema_matching import tagging_rule


def every(connection: Connection) -> list[TaggingRule]:
    """All rules, in the order in which they are asked."""
    query = select(tagging_rule.c.spec).order_by(tagging_rule.c.position, tagging_rule.c.name)
    return [msgspec.json.decode(row.spec, type=TaggingRule) for row in connection.execute(query)]


def put(connection: Connection, rule: TaggingRule) -> None:
    """Write a rule."""
    values: dict[str, Any] = {"position": rule.position, "spec": msgspec.json.encode(rule).decode()}
    if not connection.execute(update(tagging_rule).where(tagging_rule.c.name == rule.name).values(**values)).rowcount:
        connection.execute(insert(tagging_rule).values(name=rule.name, **values))


def remove(connection: Connection, name: str) -> bool:
    """Delete a rule; False if it was not there."""
    return bool(connection.execute(delete(tagging_rule).where(tagging_rule.c.name == name)).rowcount)
