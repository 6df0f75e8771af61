"""When pilots were heard of, what they reported and offered. Losing seconds of it in a crash does no harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Double, Text, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.store.prepared import Prepared
from server.store.schema import pilot_beat, pilot_report

MARKER = 0
"""The row of this pilot, who does not exist, says since when the table has been kept without a gap."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life; ``report`` and ``offer`` are JSON, None where there is nothing new."""

    time: float
    report: str | None = None
    offer: str | None = None


def write(connection: Connection, beats: Mapping[int, Beat]) -> None:
    """Pilots were heard of."""
    # In the order of their numbers, so that two batches never wait for each other.
    rows = [(pilot_id, beats[pilot_id]) for pilot_id in sorted(beats)]
    reports = [(pilot_id, beat.report) for pilot_id, beat in rows if beat.report is not None]
    offers = [(pilot_id, beat.offer) for pilot_id, beat in rows if beat.offer is not None]
    _BEAT.write(connection, [(pilot_id, beat.time) for pilot_id, beat in rows])
    _REPORT.write(connection, reports)
    _OFFER.write(connection, offers)


class _Upsert:
    """Rows of a pilot and one value: one statement with arrays on PostgreSQL, one for each row on SQLite."""

    def __init__(self, table: Any, column: str, kind: Any) -> None:
        ids = bindparam("ids", type_=postgresql.ARRAY(BigInteger))
        values = bindparam("given", type_=postgresql.ARRAY(kind))
        bulk = postgresql.insert(table).from_select(["pilot_id", column], select(func.unnest(ids), func.unnest(values)))
        one = sqlite.insert(table).values({"pilot_id": bindparam("ids"), column: bindparam("given")})
        self._bulk = Prepared(
            bulk.on_conflict_do_update(index_elements=["pilot_id"], set_={column: bulk.excluded[column]})
        )
        self._one = Prepared(
            one.on_conflict_do_update(index_elements=["pilot_id"], set_={column: one.excluded[column]})
        )

    def write(self, connection: Connection, rows: Sequence[tuple[int, Any]]) -> None:
        if not rows:
            return
        if connection.dialect.name == "sqlite":
            self._one.many(connection, [{"ids": pilot_id, "given": value} for pilot_id, value in rows])
        else:
            self._bulk.run(connection, {"ids": [each[0] for each in rows], "given": [each[1] for each in rows]})


_BEAT = _Upsert(pilot_beat, "time", Double)
_REPORT = _Upsert(pilot_report, "report", Text)
_OFFER = _Upsert(pilot_report, "offer", Text)


def kept_since(connection: Connection, now: float) -> float:
    """Since when the table has been kept; from now on, if a crash of the database has emptied it.

    A pilot without a row was heard of no later than it registered, but may have been at this moment.
    """
    found = connection.execute(select(pilot_beat.c.time).where(pilot_beat.c.pilot_id == MARKER)).scalar()
    if found is None:
        write(connection, {MARKER: Beat(now)})
        return now
    return float(found)


def clamp_future(connection: Connection, now: float) -> None:
    """After the clock was set back: nobody was heard of in the future."""
    connection.execute(update(pilot_beat).where(pilot_beat.c.time > now).values(time=now))


def report_of(connection: Connection, pilot_id: int) -> str | None:
    """What a pilot last reported, as JSON."""
    return connection.execute(select(pilot_report.c.report).where(pilot_report.c.pilot_id == pilot_id)).scalar()


def forget(connection: Connection, pilot_ids: Sequence[int]) -> None:
    """Pilots that have ended need no row any more."""
    for table in (pilot_beat, pilot_report):
        connection.execute(delete(table).where(table.c.pilot_id.in_(pilot_ids)))
