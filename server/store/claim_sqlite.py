"""The claim on SQLite: the caller's immediate transaction is the only writer, so plain statements are enough."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select, text, update

from server.engine.sizing import ReadyUnit, prefix
from server.store.claim_terms import DETAIL_COLUMNS, ClaimTerms, TakenUnit, may_run, taken_unit
from server.store.codes import UNIT_READY, UNIT_RESERVED
from server.store.schema import job, unit, unit_detail


def next_job_id(connection: Connection) -> int:
    """The next job id; never one that was used before, also when the newest jobs were archived."""
    used = connection.execute(text("SELECT seq FROM sqlite_sequence WHERE name = 'job'")).scalar()
    return max(int(used or 0), int(connection.execute(select(func.max(job.c.id))).scalar() or 0)) + 1


def reserve(connection: Connection, terms: ClaimTerms, job_id: int, floor: int) -> Sequence[TakenUnit]:
    """Take the prefix of the ready units that fits, and reserve it."""
    if connection.execute(may_run(terms)).first() is None:
        return []
    rows = connection.execute(
        select(unit.c.id, unit.c.seq, unit.c.size_mb)
        .where(unit.c.bucket_id == terms.bucket_id, unit.c.state == UNIT_READY, unit.c.seq >= floor)
        .order_by(unit.c.seq)
        .limit(terms.limit)
    )
    ready = [ReadyUnit(row.id, row.seq, row.size_mb) for row in rows]
    ids = [each.id for each in prefix(ready, terms.limit, terms.min_units, terms.disk_mb)]
    if not ids:
        return []
    connection.execute(update(unit).where(unit.c.id.in_(ids)).values(state=UNIT_RESERVED, job_id=job_id))
    query = (
        select(unit.c.id, unit.c.seq, *DETAIL_COLUMNS)
        .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
        .where(unit.c.id.in_(ids))
        .order_by(unit.c.seq)
    )
    return [taken_unit(row) for row in connection.execute(query)]
