"""The claim on PostgreSQL: one statement, ``FOR UPDATE SKIP LOCKED``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Connection, Integer, Select, cast, func, literal, select, text, true, update

from server.engine.sizing import TIER_BITS
from server.store.claim_terms import DETAIL_COLUMNS, ClaimTerms, TakenUnit, may_run, taken_unit
from server.store.codes import UNIT_READY, UNIT_RESERVED
from server.store.schema import unit, unit_detail


def next_job_id(connection: Connection) -> int:
    """A job id, allocated beforehand so that units can carry it."""
    return int(connection.execute(text("SELECT nextval('job_id_seq')")).scalar_one())


def reserve(connection: Connection, terms: ClaimTerms, job_id: int, floor: int) -> Sequence[TakenUnit]:
    """Lock up to ``limit`` ready rows that nobody else holds, take the prefix that fits, reserve it."""
    moved = (
        update(unit)
        .where(unit.c.id.in_(_fitting(terms, floor)))
        .values(state=UNIT_RESERVED, job_id=job_id)
        .returning(unit.c.id, unit.c.seq)
        .cte("moved")
    )
    query = (
        select(moved.c.id, moved.c.seq, *DETAIL_COLUMNS)
        .join(unit_detail, unit_detail.c.unit_id == moved.c.id)
        .order_by(moved.c.seq)
    )
    return [taken_unit(row) for row in connection.execute(query)]


def _fitting(terms: ClaimTerms, floor: int) -> Select[tuple[int]]:
    # Says what server.engine.sizing.prefix says.
    locked = (
        select(unit.c.id, unit.c.seq, unit.c.size_mb)
        .where(unit.c.bucket_id == terms.bucket_id, unit.c.state == UNIT_READY, unit.c.seq >= floor)
        .where(may_run(terms).exists())
        .order_by(unit.c.seq)
        .limit(terms.limit)
        .with_for_update(skip_locked=True)
        .cte("locked")
        .prefix_with("MATERIALIZED")
    )
    # PostgreSQL shifts a bigint by an integer only, and by that integer modulo 64.
    tier = locked.c.seq.op(">>")(literal(TIER_BITS, Integer))
    first_tier = func.first_value(tier).over(order_by=locked.c.seq)
    ranked = select(
        locked.c.id,
        func.row_number().over(order_by=locked.c.seq).label("n"),
        func.count().over().label("found"),
        func.sum(locked.c.size_mb).over(order_by=locked.c.seq).label("total_mb"),
        (tier == first_tier).label("same_tier"),
        func.greatest(
            1, cast(literal(terms.limit), BigInteger).op(">>")(cast(func.least(2 * first_tier, 63), Integer))
        ).label("company"),
    ).cte("ranked")
    fits = true() if terms.disk_mb is None else ranked.c.total_mb <= terms.disk_mb
    return (
        select(ranked.c.id)
        .where(ranked.c.found >= terms.min_units)
        .where(ranked.c.same_tier, ranked.c.n <= ranked.c.company, fits)
    )
