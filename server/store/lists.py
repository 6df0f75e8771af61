"""Many values at once: on PostgreSQL as an array or as JSON, so that one short statement does, whose text never depends
on how many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, String, Table, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

Insert = postgresql.Insert | sqlite.Insert


def among(connection: Connection, column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Whether a column's value is one of these."""
    if connection.dialect.name == "sqlite":
        return column.in_(list(values))
    return column == func.any(bindparam(None, list(values), type_=postgresql.ARRAY(_unbounded(column.type))))


def _unbounded(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """A text of any length: a cast would cut what is too long, and nobody would be told."""
    return Text() if isinstance(kind, String) else kind


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
        given_rows = _recordset(table, rows)
        statement = postgresql.insert(table).from_select(list(rows[0]), select(*given_rows), include_defaults=False)
    if conflict is not None:
        statement = conflict(statement)
    if returning:
        statement = statement.returning(*returning)
    found = connection.execute(statement, given)
    return found.all() if returning else []


def _recordset(table: Table, rows: Sequence[Mapping[str, Any]]) -> Sequence[ColumnElement[Any]]:
    """The columns of rows that are sent as JSON: the driver's arrays cost several times as much to write, above all of
    long texts."""
    kinds = [column(name, _unbounded(table.c[name].type)) for name in rows[0]]
    text = bindparam("all_rows", _json(rows), type_=Text)
    found = func.json_to_recordset(cast(text, postgresql.JSON)).table_valued(*kinds)
    return list(found.render_derived(name="given", with_types=True).c)


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    text = msgspec.json.encode(rows).decode()
    if "\\u0000" not in text:
        return text
    # PostgreSQL keeps no NUL, nor takes one from JSON.
    return msgspec.json.encode([{name: _without_nul(value) for name, value in row.items()} for row in rows]).decode()


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
