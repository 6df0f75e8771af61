"""What was imported from other descriptions of the world, and what the last look at each brought."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, insert, select

from common.wire import ImportReport
from server.engine.imports import Key, Said
from server.store.schema_imports import import_report, imported


def known(connection: Connection) -> dict[Key, dict[str, Said]]:
    """What each source said last of each thing."""
    found: dict[Key, dict[str, Said]] = {}
    for row in connection.execute(select(imported)):
        found.setdefault((row.kind, row.name), {})[row.source] = Said(msgspec.json.decode(row.fields), row.gone)
    return found


def remember(connection: Connection, told: Mapping[tuple[str, Key], Said | None]) -> None:
    """Write down what sources said; None forgets."""
    if not told:
        return
    keys = [{"b_source": source, "b_kind": kind, "b_name": name} for source, (kind, name) in told]
    connection.execute(_FORGET, keys)
    rows = [
        {"source": source, "kind": kind, "name": name, "fields": msgspec.json.encode(said.fields).decode(), "gone": said.gone}
        for (source, (kind, name)), said in told.items()
        if said is not None
    ]  # fmt: skip
    if rows:
        connection.execute(insert(imported), rows)


_FORGET = delete(imported).where(
    and_(
        imported.c.source == bindparam("b_source"),
        imported.c.kind == bindparam("b_kind"),
        imported.c.name == bindparam("b_name"),
    )
)


def report(connection: Connection, source: str) -> ImportReport:
    """What the last look at a source brought; an empty one before the first."""
    found = connection.execute(select(import_report.c.report).where(import_report.c.source == source)).scalar()
    return ImportReport(source=source) if found is None else msgspec.json.decode(found, type=ImportReport)


def put_report(connection: Connection, told: ImportReport) -> None:
    """Note what a look brought."""
    connection.execute(delete(import_report).where(import_report.c.source == told.source))
    text = msgspec.json.encode(told).decode()
    connection.execute(insert(import_report).values(source=told.source, report=text))
