"""Changes of counts that wait for their roll-up: what a row of ``unit_delta`` or ``job_delta`` means, and how they are taken.

A row says that ``n`` more are in ``state``, and as many fewer in ``source`` if that is named. These tables have no key, as
rows come and go with every claim: a key would cost as much as the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    CompoundSelect,
    Connection,
    Delete,
    FromClause,
    Table,
    any_,
    delete,
    func,
    literal_column,
    select,
    union_all,
)


def as_counts(rows: FromClause, keys: Sequence[str], amounts: Sequence[str], *where: Any) -> CompoundSelect[Any]:
    """The rows as (``keys``, state, ``amounts``), one for each state that they change."""
    key = [rows.c[name] for name in keys]
    more, fewer = [rows.c[name] for name in amounts], [(-rows.c[name]).label(name) for name in amounts]
    return union_all(
        select(*key, rows.c.state, *more).where(*where),
        select(*key, rows.c.source.label("state"), *fewer).where(rows.c.source.is_not(None), *where),
    )


def take(connection: Connection, table: Table, limit: int) -> Delete:
    """Delete so many rows, in the order in which they lie there."""
    if connection.dialect.name == "sqlite":
        row: Any = literal_column("rowid")
        return delete(table).where(row.in_(select(row).select_from(table).order_by(row).limit(limit)))
    row = literal_column("ctid")
    return delete(table).where(row == any_(func.array(select(row).select_from(table).limit(limit).scalar_subquery())))


def count_of(taken: FromClause) -> Any:
    """How many rows these are, as a column."""
    return select(func.count()).select_from(taken).scalar_subquery()


def sides(row: Any) -> Iterator[tuple[int, int]]:
    """The states that a row changes: which, and whether it has more or fewer (1, -1)."""
    yield row.state, 1
    if row.source is not None:
        yield row.source, -1
