"""The days of the event table: made ahead, dropped when they are old. On SQLite old rows are deleted instead.

No step here waits long for a lock, and nobody waits long behind it: what cannot be had at once is left for the next
time.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

from sqlalchemy import Connection, delete, select, table, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.sql import column

from server.store.schema_events import DEFAULT_PARTITION, PARTITION_PREFIX, event

logger = logging.getLogger(__name__)

DAYS_AHEAD = 7
DAY_S = 86400.0
MOST_DROPS = 10
"""Days dropped in one transaction at the most."""
LOCK_MS = 200
"""How long a step may wait for a lock; inserts of events queue up behind it for that long."""
_BUSY = ("55P03", "40P01")
"""SQLSTATE of PostgreSQL: the lock was not to be had in time, or never."""


def make_ahead(connection: Connection, now: float) -> int:
    """Make the partitions of the days to come, and of today while no event of it lies elsewhere; how many."""
    if connection.dialect.name == "sqlite":
        return 0
    known = set(_days(connection))
    made = 0
    for ahead in range(DAYS_AHEAD + 1):
        day = _day(now + ahead * DAY_S)
        if day not in known:
            made += _make(connection, day)
    return made


def drop_old(connection: Connection, before: float) -> int:
    """Drop the partitions all of whose events are older than a moment; how many."""
    if connection.dialect.name == "sqlite":
        return 0
    old = [day for day in _days(connection) if _begin(day) + DAY_S <= before]
    return sum(
        _soon(connection, f"dropping the events of {day}", f"DROP TABLE {PARTITION_PREFIX}{day}")
        for day in old[:MOST_DROPS]
    )


def delete_old(connection: Connection, before: float, limit: int) -> int:
    """Delete a slice of events older than a moment that lie in no day's partition; how many.

    The oldest come first in the order of the stream, so that the first ``limit`` rows tell whether there are any.
    """
    place = event if connection.dialect.name == "sqlite" else _DEFAULT
    query = select(place.c.xact, place.c.id, place.c.time).order_by(place.c.xact, place.c.id).limit(limit)
    old = [row.id for row in connection.execute(query) if row.time < before]
    for start in range(0, len(old), 1000):
        connection.execute(delete(place).where(place.c.id.in_(old[start : start + 1000])))
    return len(old)


_DEFAULT = table(DEFAULT_PARTITION, column("xact"), column("id"), column("time"))


def _days(connection: Connection) -> list[str]:
    """The days that have a partition, as ``YYYYMMDD``."""
    query = text(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'event'::regclass AND c.relname LIKE :names"
    )
    names = connection.execute(query, {"names": PARTITION_PREFIX.replace("_", r"\_") + "%"}).scalars()
    return sorted(name.removeprefix(PARTITION_PREFIX) for name in names)


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y%m%d")


def _begin(day: str) -> float:
    return datetime.strptime(day, "%Y%m%d").replace(tzinfo=timezone.utc).timestamp()


def _make(connection: Connection, day: str) -> bool:
    name, begin = f"{PARTITION_PREFIX}{day}", _begin(day)
    end = (datetime.fromtimestamp(begin, timezone.utc) + timedelta(days=1)).timestamp()
    here = select(_DEFAULT.c.id).where(_DEFAULT.c.time >= begin, _DEFAULT.c.time < end).limit(1)
    if connection.execute(here).first() is not None:
        return False  # they stay where they are, and are deleted there when they are old
    # Made apart and attached, because making it in place would lock out all inserts.
    return _soon(
        connection,
        f"making a place for the events of {day}",
        f"CREATE TABLE {name} (LIKE event INCLUDING DEFAULTS)",
        f"ALTER TABLE {name} ADD CONSTRAINT {name}_day CHECK (time >= {begin!r} AND time < {end!r})",
        f"ALTER TABLE event ATTACH PARTITION {name} FOR VALUES FROM ({begin!r}) TO ({end!r})",
        f"ALTER TABLE {name} DROP CONSTRAINT {name}_day",
    )


def _soon(connection: Connection, words: str, *statements: str) -> bool:
    """Steps that are given up, without harm to the rest of the transaction, when a lock cannot be had soon."""
    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MS}"))
    try:
        with connection.begin_nested():
            for statement in statements:
                connection.execute(text(statement))
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) not in _BUSY:
            raise
        logger.info("%s has to wait: the table is busy", words)
        return False
    return True
