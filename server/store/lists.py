"""Many values at once: on PostgreSQL as arrays, so that one short statement does, whose text never depends on how many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, String, Table, Text, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

Insert = postgresql.Insert | sqlite.Insert


def among(connection: Connection, column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Whether a column's value is one of these."""
    if connection.dialect.name == "sqlite":
        return column.in_(list(values))
    return column == func.any(bindparam(None, list(values), type_=_array(column.type)))


def _array(kind: TypeEngine[Any]) -> postgresql.ARRAY[Any]:
    """Of any length: a cast would cut what is too long, and nobody would be told."""
    return postgresql.ARRAY(Text() if isinstance(kind, String) else kind)


def put(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    conflict: Callable[[Insert], Insert] | None = None,
    returning: Sequence[ColumnElement[Any]] = (),
) -> Sequence[Row[Any]]:
    """Insert rows that all have the same columns; what is ``returning`` of them.

    ``conflict`` says what is to be done where a row is there already. Rows should be in the order of their key where
    others may insert the same, so that nobody waits in a ring.
    """
    if not rows:
        return []
    statement: Any
    given: Any = None
    if connection.dialect.name == "sqlite":
        statement, given = sqlite.insert(table), rows
    else:
        names = list(rows[0])
        lists = {name: [row[name] for row in rows] for name in names}
        columns = (
            func.unnest(bindparam(f"all_{name}", lists[name], type_=_array(table.c[name].type))) for name in names
        )
        statement = postgresql.insert(table).from_select(names, select(*columns), include_defaults=False)
    if conflict is not None:
        statement = conflict(statement)
    if returning:
        statement = statement.returning(*returning)
    found = connection.execute(statement, given)
    return found.all() if returning else []
