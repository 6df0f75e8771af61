"""What was imported from other descriptions of the world."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, insert, select

from common.wire import ImportReport
from server.engine.following import Imported
from server.store.schema_following import followed, import_report


def last(connection: Connection, kind: str) -> dict[str, Imported]:
    """The entries of a kind as they were imported last, by name."""
    rows = connection.execute(select(followed).where(followed.c.kind == kind).order_by(followed.c.name))
    return {row.name: Imported(msgspec.json.decode(row.spec), row.gone) for row in rows}


def remember(connection: Connection, kind: str, entries: Mapping[str, Imported]) -> None:
    """Note what entries are imported as."""
    if not entries:
        return
    rows = [
        {"b_kind": kind, "b_name": name, "b_spec": msgspec.json.encode(each.spec).decode(), "b_gone": each.gone}
        for name, each in entries.items()
    ]
    connection.execute(_FORGET, rows)
    connection.execute(_NOTE, rows)


_FORGET = delete(followed).where(and_(followed.c.kind == bindparam("b_kind"), followed.c.name == bindparam("b_name")))
_NOTE = insert(followed).values(
    kind=bindparam("b_kind"), name=bindparam("b_name"), spec=bindparam("b_spec"), gone=bindparam("b_gone")
)


def report(connection: Connection, source: str) -> ImportReport:
    """What the last import of a source found; an empty one before the first."""
    found = connection.execute(select(import_report.c.report).where(import_report.c.source == source)).scalar()
    return ImportReport(source=source) if found is None else msgspec.json.decode(found, type=ImportReport)


def put_report(connection: Connection, told: ImportReport) -> None:
    """Note what an import found."""
    connection.execute(delete(import_report).where(import_report.c.source == told.source))
    text = msgspec.json.encode(told).decode()
    connection.execute(insert(import_report).values(source=told.source, report=text))
