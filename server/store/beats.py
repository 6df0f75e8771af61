"""When pilots were heard of, what they reported and offered. Losing seconds of it in a crash does no harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Connection, Double, Text, bindparam, cast, column, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.store import jobs
from server.store.jobs import PilotAndJobs
from server.store.prepared import Prepared, in_one_go
from server.store.schema import pilot, pilot_beat, pilot_report

MARKER = 0
"""The row of this pilot, who does not exist, says since when the table has been kept without a gap."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life; ``report`` (see :mod:`server.store.reports`) and ``offer`` are JSON, None where there is nothing new."""

    time: float
    report: str | None = None
    offer: str | None = None


def write(connection: Connection, beats: Mapping[int, Beat]) -> None:
    """Pilots were heard of. Those that are not known are left out."""
    if connection.dialect.name == "sqlite":
        _write_each(connection, beats)
    elif beats:
        _ALL.run(connection, _lines(beats))


def write_and_see(connection: Connection, beats: Mapping[int, Beat]) -> dict[int, PilotAndJobs]:
    """The same, and what those of the pilots hold that are known; on PostgreSQL in one way there and back."""
    if connection.dialect.name == "sqlite":
        found = jobs.held_by(connection, sorted(beats))
        _write_each(connection, {pilot_id: beat for pilot_id, beat in beats.items() if pilot_id in found})
        return found
    rows, _ = in_one_go(connection, [(jobs.HELD, {"ids": sorted(beats)}), (_ALL, _lines(beats))])
    return jobs.held_of(rows)


def _lines(beats: Mapping[int, Beat]) -> dict[str, Any]:
    # In the order of their numbers, so that two batches never wait for each other.
    # As texts, not as JSON inside of JSON: of that PostgreSQL refuses what stands for NUL.
    lines = [_Line(pilot_id, beat.time, beat.report, beat.offer) for pilot_id, beat in sorted(beats.items())]
    return {"beats": msgspec.json.encode(lines).decode()}


class _Line(msgspec.Struct):
    pilot_id: int
    time: float
    report: str | None
    offer: str | None


def _kept(statement: Any) -> Any:
    """What is not said anew stays."""
    old, new = pilot_report.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["pilot_id"],
        set_={name: func.coalesce(new[name], old[name]) for name in ("report", "offer")},
    )


def _later(statement: Any) -> Any:
    return statement.on_conflict_do_update(index_elements=["pilot_id"], set_={"time": statement.excluded.time})


def _all() -> Any:
    given = func.json_to_recordset(cast(bindparam("beats", type_=Text), postgresql.JSON)).table_valued(
        column("pilot_id", BigInteger), column("time", Double), column("report", Text), column("offer", Text)
    )  # fmt: skip
    lines = given.render_derived(name="given", with_types=True)
    known = select(lines).join(pilot, pilot.c.id == lines.c.pilot_id).cte("known").prefix_with("MATERIALIZED")
    said = or_(known.c.report.is_not(None), known.c.offer.is_not(None))
    told = postgresql.insert(pilot_report).from_select(
        ["pilot_id", "report", "offer"],
        select(known.c.pilot_id, known.c.report, known.c.offer).where(said).order_by(known.c.pilot_id),
    )
    beating = postgresql.insert(pilot_beat).from_select(
        ["pilot_id", "time"], select(known.c.pilot_id, known.c.time).order_by(known.c.pilot_id)
    )
    return _later(beating).add_cte(_kept(told).cte("told"))


_ALL = Prepared(_all())


def _values(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in ("pilot_id", *names)}


_ONE_BEAT = Prepared(_later(sqlite.insert(pilot_beat).values(_values("time"))))
_ONE_REPORT = Prepared(_kept(sqlite.insert(pilot_report).values(_values("report", "offer"))))


def _write_each(connection: Connection, beats: Mapping[int, Beat]) -> None:
    rows = sorted(beats.items())
    _ONE_BEAT.many(connection, [{"pilot_id": pilot_id, "time": beat.time} for pilot_id, beat in rows])
    _ONE_REPORT.many(
        connection,
        [
            {"pilot_id": pilot_id, "report": beat.report, "offer": beat.offer}
            for pilot_id, beat in rows
            if not (beat.report is None and beat.offer is None)
        ],
    )


def kept_since(connection: Connection, now: float) -> float:
    """Since when the table has been kept; from now on, if a crash of the database has emptied it.

    A pilot without a row was heard of no later than it registered, but may have been at this moment.
    """
    found = connection.execute(select(pilot_beat.c.time).where(pilot_beat.c.pilot_id == MARKER)).scalar()
    if found is None:
        dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(_later(dialect_insert(pilot_beat).values(pilot_id=MARKER, time=now)))
        return now
    return float(found)


def clamp_future(connection: Connection, now: float) -> None:
    """After the clock was set back: nobody was heard of in the future."""
    connection.execute(update(pilot_beat).where(pilot_beat.c.time > now).values(time=now))


def forget(connection: Connection, pilot_ids: Sequence[int]) -> None:
    """Pilots that have ended need no row any more."""
    for table in (pilot_beat, pilot_report):
        connection.execute(delete(table).where(table.c.pilot_id.in_(pilot_ids)))
