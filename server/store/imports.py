"""What was imported from other systems: read, and remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, insert, select

from server.engine.imports import Key, Known
from server.store.schema_imports import imported


def known(connection: Connection) -> dict[Key, Known]:
    """All that was imported, by kind and name."""
    rows = connection.execute(select(imported))
    return {(row.kind, row.name): Known(row.source, msgspec.json.decode(row.fields)) for row in rows}


def remember(connection: Connection, source: str, fields: Mapping[Key, Mapping[str, Any] | None]) -> None:
    """Write down what an import left; None forgets."""
    if not fields:
        return
    this = and_(imported.c.kind == bindparam("k"), imported.c.name == bindparam("n"))
    connection.execute(delete(imported).where(this), [{"k": kind, "n": name} for kind, name in fields])
    rows = [
        {"kind": kind, "name": name, "source": source, "fields": msgspec.json.encode(each).decode()}
        for (kind, name), each in fields.items()
        if each is not None
    ]
    if rows:
        connection.execute(insert(imported), rows)
