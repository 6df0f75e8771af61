"""What harvester remembers besides its workers: which of them got a pilot, and the commands that it has carried out.

Tables of their own in the same database (:mod:`harvester.store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from common.wire import HarvesterCommandResult
from harvester.store import Store
from harvester.throttle import Verdict

KEPT = 200
"""Verdicts of a queue: the last so many say how it is, older ones say nothing any more."""
COMMANDS_KEPT_S = 60 * 86400.0
"""Longer than the server hands a command out for."""
AT_ONCE = 500

_metadata = MetaData()
_verdict = Table(
    "verdict",
    _metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("mark", String, nullable=False, unique=True),
    Column("queue", String, nullable=False),
    Column("time", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("good", Boolean, nullable=False),
    Column("host", String, nullable=False),
    Column("reason", String, nullable=False),
    Index("verdict_queue", "queue", "number"),
)
_command = Table(
    "command",
    _metadata,
    Column("key", String, primary_key=True),
    Column("time", Float, nullable=False),
    Column("ok", Boolean, nullable=False),
    Column("detail", String, nullable=False),
)

_newest = _verdict.alias()
_FORGET_OLD = delete(_verdict).where(
    _verdict.c.queue == bindparam("b_queue"),
    _verdict.c.number
    < select(_newest.c.number)
    .where(_newest.c.queue == bindparam("b_queue"))
    .order_by(_newest.c.number.desc())
    .offset(KEPT - 1)
    .limit(1)
    .scalar_subquery(),
)


class SteeringStore:
    """These tables in the database of ``store``, made if they aren't there. Every method raises Unwritable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.writing() as connection:
            _metadata.create_all(connection)

    def verdicts(self, queue: str) -> list[Verdict]:
        """The last verdicts of a queue, oldest first."""
        columns = (_verdict.c.mark, _verdict.c.time, _verdict.c.created, _verdict.c.good, _verdict.c.host)
        query = select(*columns, _verdict.c.reason).where(_verdict.c.queue == queue)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(_verdict.c.number.desc()).limit(KEPT)).all()
        return [Verdict(*row) for row in reversed(rows)]

    def add(self, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
        """Write verdicts on workers of queues down; the first on each worker stays. Those that are too old go."""
        rows = [{"queue": queue, **vars(verdict)} for queue, new in verdicts.items() for verdict in new]
        if not rows:
            return
        with self._store.writing() as connection:
            connection.execute(insert(_verdict).on_conflict_do_nothing(), rows)
            connection.execute(_FORGET_OLD, [{"b_queue": queue} for queue in verdicts])

    def results(self, keys: Sequence[str]) -> Mapping[str, HarvesterCommandResult]:
        """What came of those commands that were carried out already."""
        query = select(_command.c.key, _command.c.ok, _command.c.detail).where(_command.c.key.in_(keys))
        with self._store.reading() as connection:
            rows = connection.execute(query).all()
        return {key: HarvesterCommandResult(ok=ok, detail=detail) for key, ok, detail in rows}

    def remember(self, key: str, result: HarvesterCommandResult, now: float) -> None:
        """A command was carried out."""
        row = {"key": key, "time": now, "ok": result.ok, "detail": result.detail}
        with self._store.writing() as connection:
            connection.execute(insert(_command).on_conflict_do_nothing(), row)
            connection.execute(delete(_command).where(_command.c.time < now - COMMANDS_KEPT_S))

    def planned(self, marks: Sequence[str]) -> set[str]:
        """Those of some marks that workers were planned with."""
        found: set[str] = set()
        with self._store.reading() as connection:
            for part in _parts(marks):
                found.update(connection.execute(select(_mark).where(_mark.in_(part))).scalars())
        return found

    def cancel(self, marks: Sequence[str]) -> int:
        """Ask for the end of some workers; how many of them are there, ended ones included."""
        found = 0
        with self._store.writing() as connection:
            for part in _parts(marks):
                found += connection.execute(update(_workers).where(_mark.in_(part)).values(cancel=True)).rowcount
        return found


_workers = Table("worker", MetaData(), Column("mark", String, primary_key=True), Column("cancel", Boolean))
_mark = _workers.c.mark


def _parts(marks: Sequence[str]) -> list[Sequence[str]]:
    return [marks[begin : begin + AT_ONCE] for begin in range(0, len(marks), AT_ONCE)]
