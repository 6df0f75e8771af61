"""Statements of the hot path, compiled once.

SQLAlchemy builds and looks up a large expression anew for each execution, which for the claim costs more than the
database's own work. Here the expression is compiled once for each dialect, and then runs as text with bound parameters
on the driver's own cursor, inside the same transaction, so that the driver prepares it on the server.

For PostgreSQL the text is as PostgreSQL itself takes it: psycopg would look for its own kind of parameters in each text
of more than 4 kB anew at each execution.
"""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement

T = TypeVar("T")

_Compiled = tuple[str | bytes, Mapping[str, Any], tuple[str, ...] | None]
"""The text as the driver takes it, the values that are always the same, the names in their order where parameters have no names."""


class Prepared:
    """A statement of SQLAlchemy Core whose parameters are all named bound parameters."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}
        self._make: Any = None
        self._mutex = threading.Lock()

    def run(self, connection: Connection, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Execute it; the rows as named tuples, if it returns any. Values are as the driver gives them."""
        return self._execute(connection, parameters, self.rows_of)  # type: ignore[no-any-return]

    def count(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Execute it; the number of rows that it changed."""
        return int(self._execute(connection, parameters, _changed_rows))

    def insert(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Execute it on SQLite; the id that the new row got."""
        return int(self._execute(connection, parameters, _new_id))

    def many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute it for each of the parameter sets."""
        if len(rows) == 1:
            self._execute(connection, rows[0], _changed_rows)
        elif rows:
            text, fixed, order = self._for(connection)
            bound = [_bound(fixed, order, row) for row in rows]
            with _cursor(connection) as cursor, _translation(connection, text, bound):
                cursor.executemany(text, bound)

    def _execute(self, connection: Connection, parameters: Mapping[str, Any], take: Callable[[Any], Any]) -> Any:
        text, bound = self.rendered(connection, parameters)
        with _cursor(connection) as cursor:
            try:
                cursor.execute(text, bound)
                return take(cursor)
            except connection.dialect.loaded_dbapi.Error as error:
                raise _translated(connection, text, bound, error) from error

    def rendered(self, connection: Connection, parameters: Mapping[str, Any]) -> tuple[str | bytes, Any]:
        """Text and parameters as the driver takes them."""
        text, fixed, order = self._for(connection)
        return text, _bound(fixed, order, parameters)

    def rows_of(self, cursor: Any) -> Sequence[Any]:
        """What the driver's cursor found for it, as named tuples."""
        if self._make is None:
            # Asked once only: drivers make the description anew each time. Names that a tuple cannot have are replaced.
            found = cursor.description
            self._make = () if found is None else _row_type([each[0] for each in found])._make
        return list(map(self._make, cursor.fetchall())) if self._make else ()

    def _for(self, connection: Connection) -> _Compiled:
        name = connection.dialect.name
        found = self._compiled.get(name)
        if found is None:
            with self._mutex:
                found = self._compiled[name] = _compiled(self._statement, connection)
        return found


Step = tuple[Prepared, Mapping[str, Any]]
"""A statement and its parameters."""


@dataclass(frozen=True, slots=True)
class Piece(Generic[T]):
    """Statements that belong together, and what their rows mean."""

    steps: Sequence[Step]
    read: Callable[[Sequence[Sequence[Any]]], T]

    def run(self, connection: Connection) -> T:
        """Carry it out by itself: see :func:`in_one_go`."""
        return self.read(in_one_go(connection, self.steps))


NOTHING: Piece[None] = Piece((), lambda _: None)


def both(connection: Connection, one: Piece[Any], other: Piece[Any]) -> tuple[Any, Any]:
    """Carry out two pieces in one way there and back: see :func:`in_one_go`."""
    found = in_one_go(connection, [*one.steps, *other.steps])
    return one.read(found[: len(one.steps)]), other.read(found[len(one.steps) :])


def in_one_go(connection: Connection, steps: Sequence[Step]) -> list[Sequence[Any]]:
    """Execute statements on PostgreSQL in one way there and back; the rows of each.

    On a connection that commits by itself they are one transaction. Each sees what others committed before it began.
    """
    if len(steps) <= 1:
        return [statement.run(connection, parameters) for statement, parameters in steps]
    raw: Any = connection.connection.dbapi_connection
    text: str | bytes = ""
    bound = None
    with ExitStack() as stack:
        cursors = [stack.enter_context(_cursor(connection)) for _ in steps]
        try:
            with raw.pipeline():
                for cursor, (statement, parameters) in zip(cursors, steps, strict=True):
                    text, bound = statement.rendered(connection, parameters)
                    cursor.execute(text, bound)
        except connection.dialect.loaded_dbapi.Error as error:
            raise _translated(connection, text, bound, error) from error
        return [statement.rows_of(cursor) for cursor, (statement, _) in zip(cursors, steps, strict=True)]


def _compiled(statement: ClauseElement, connection: Connection) -> _Compiled:
    dialect: Any = connection.dialect
    on_postgresql = dialect.name == "postgresql"
    if on_postgresql:
        dialect = type(dialect)(paramstyle="numeric_dollar")
    compiled = statement.compile(dialect=dialect)
    if "__[POSTCOMPILE" in str(compiled):
        raise AssertionError("a list of in_() must be of literal columns: its length is part of the text")
    positions = compiled.positiontup  # type: ignore[attr-defined]
    # Constants of the expression became parameters too; those without a value are ours to give.
    fixed = {key: value for key, value in compiled.params.items() if value is not None}
    text = str(compiled)
    return text.encode() if on_postgresql else text, fixed, tuple(positions) if positions is not None else None


def _row_type(names: list[str]) -> Any:
    return namedtuple("Row", names, rename=True)


def _changed_rows(cursor: Any) -> int:
    return int(cursor.rowcount)


def _new_id(cursor: Any) -> int:
    return int(cursor.lastrowid)


def _cursor(connection: Connection) -> AbstractContextManager[Any]:
    """A cursor of the driver, inside the transaction that the connection is in."""
    raw: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql":
        return closing(connection.dialect.loaded_dbapi.RawCursor(raw))
    return closing(raw.cursor())


@contextmanager
def _translation(connection: Connection, text: str | bytes, bound: Any) -> Iterator[None]:
    try:
        yield
    except connection.dialect.loaded_dbapi.Error as error:
        raise _translated(connection, text, bound, error) from error


def _translated(connection: Connection, text: str | bytes, bound: Any, error: Exception) -> Exception:
    """The driver's error as SQLAlchemy would have told it; a connection that is gone is never used again."""
    dialect = connection.dialect
    gone = bool(dialect.is_disconnect(error, connection.connection.dbapi_connection, None))  # type: ignore[arg-type]
    if gone:
        connection.invalidate(error)
    base = dialect.loaded_dbapi.Error
    words = text.decode() if isinstance(text, bytes) else text
    return DBAPIError.instance(words, bound, error, base, connection_invalidated=gone, dialect=dialect)


def _bound(fixed: Mapping[str, Any], order: tuple[str, ...] | None, given: Mapping[str, Any]) -> Any:
    values = {**fixed, **given}
    return values if order is None else tuple(values[name] for name in order)
