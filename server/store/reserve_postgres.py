"""Reserving and releasing on PostgreSQL: one statement each, ``FOR UPDATE SKIP LOCKED`` where workers compete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Connection,
    Double,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    String,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    null,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql

from server.engine.projects import LAST_TIER, Outcome
from server.engine.sizing import TIER_BITS
from server.store.prepared import Prepared
from server.store.reserve_terms import DETAIL_COLUMNS, MAY_RESERVE, READY, RESERVED, Terms
from server.store.schema import bucket, task, unit, unit_delta, unit_detail
from server.store.schema_projects import project_file, reservation


def _p(name: str, kind: Any) -> Any:
    return bindparam(name, type_=kind)


_TASK, _BUCKET, _NOW = _p("task_id", BigInteger), _p("bucket_id", BigInteger), _p("now", Double)
_WORKER = _p("worker", String)
_COUNTED = ["task_id", "bucket_id", "state", "n"]


def _number(value: int) -> Any:
    return literal_column(str(value))


def _reserve(rows: Any) -> Prepared:
    may = select(_number(1)).where(task.c.id == _TASK, MAY_RESERVE).exists()
    locked = (
        select(unit.c.id)
        .where(unit.c.bucket_id == _BUCKET, unit.c.state == READY)
        .where(unit.c.seq >= _p("floor", BigInteger), unit.c.seq < _p("ceiling", BigInteger), may)
        .order_by(unit.c.seq)
        .limit(rows)
        .with_for_update(skip_locked=True)
        .cte("locked")
        .prefix_with("MATERIALIZED")
    )
    moved = (
        update(unit)
        .where(unit.c.id == locked.c.id)
        .values(state=RESERVED)
        .returning(unit.c.id, unit.c.seq)
        .cte("moved")
    )
    ordinal = _p("first", Integer) + func.row_number().over(order_by=moved.c.seq) - _number(1)
    columns = ["unit_id", "task_id", "worker", "request_id", "ordinal", "reserved", "expires", "attempts"]
    new = postgresql.insert(reservation).from_select(
        columns,
        select(
            moved.c.id, _TASK, _WORKER, _p("request_id", String), cast(ordinal, Integer), cast(_NOW, Double),
            cast(_p("expires", Double), Double), _number(1),
        ),
    )  # fmt: skip
    held = (
        new.on_conflict_do_update(
            index_elements=["unit_id"],
            set_={
                **{name: new.excluded[name] for name in columns[1:-1]},
                "attempts": reservation.c.attempts + _number(1),
                "released": null(),
                "outcome": null(),
            },
        )
        .returning(reservation.c.unit_id, reservation.c.attempts)
        .cte("held")
    )
    total = select(func.count().label("n")).select_from(moved).cte("total")
    some = total.c.n > _number(0)
    counted = (
        insert(unit_delta)
        .from_select(
            _COUNTED,
            union_all(
                select(_TASK, _BUCKET, READY, -total.c.n).where(some),
                select(_TASK, _BUCKET, RESERVED, total.c.n).where(some),
            ),
        )
        .cte("counted")
    )
    return Prepared(
        select(moved.c.id, moved.c.seq, held.c.attempts, *DETAIL_COLUMNS)
        .select_from(
            moved.join(held, held.c.unit_id == moved.c.id).join(unit_detail, unit_detail.c.unit_id == moved.c.id)
        )
        .order_by(moved.c.seq)
        .add_cte(counted)
    )


def _held(found: Select[Any]) -> CTE:
    """The reservations that the worker holds: locked in one order."""
    return (
        found.where(reservation.c.worker == _WORKER, reservation.c.released.is_(None))
        .order_by(reservation.c.unit_id)
        .with_for_update(of=reservation)
        .cte("held")
        .prefix_with("MATERIALIZED")
    )


def _one_held() -> CTE:
    # Apart from the several, whose number PostgreSQL cannot foresee: it would plan the statement anew each time. And no
    # join, for which a plan made while the table was small might go through all of it later.
    digest = cast(_p("digest", LargeBinary), LargeBinary)
    unit_id = select(project_file.c.unit_id).where(project_file.c.task_id == _TASK, project_file.c.digest == digest)
    return _held(
        select(
            reservation.c.unit_id,
            digest.label("digest"),
            cast(_p("outcome", SmallInteger), SmallInteger).label("outcome"),
            cast(_p("target", SmallInteger), SmallInteger).label("target"),
        ).where(reservation.c.unit_id == unit_id.scalar_subquery())
    )


def _several_held() -> CTE:
    given = (
        func.unnest(
            _p("digests", ARRAY(LargeBinary)), _p("outcomes", ARRAY(SmallInteger)), _p("targets", ARRAY(SmallInteger))
        )
        .table_valued(
            column("digest", LargeBinary), column("outcome", SmallInteger), column("target", SmallInteger),
            name="given",
        )
        .render_derived()
    )  # fmt: skip
    file = and_(project_file.c.task_id == _TASK, project_file.c.digest == given.c.digest)
    return _held(
        select(reservation.c.unit_id, given.c.digest, given.c.outcome, given.c.target).select_from(
            given.join(project_file, file).join(reservation, reservation.c.unit_id == project_file.c.unit_id)
        )
    )


def _release(held: CTE) -> Prepared:
    back = held.c.target == READY
    failed = cast(held.c.outcome != _number(Outcome.DONE), Integer)
    # Says what server.engine.projects.put_back says.
    tier = func.least(_number(LAST_TIER), (unit.c.seq.op(">>")(_number(TIER_BITS))) + _number(1))
    place = tier.op("<<")(_number(TIER_BITS)).op("|")(unit.c.seq.op("&")(_number((1 << TIER_BITS) - 1)))
    moved = (
        update(unit)
        .where(unit.c.id == held.c.unit_id, unit.c.state == RESERVED)
        .values(
            state=held.c.target,
            seq=case((back, place), else_=unit.c.seq),
            payload_failures=func.mod(unit.c.payload_failures + failed, _number(LAST_TIER)),
        )
        .returning(held.c.digest, held.c.outcome, unit.c.id, unit.c.state, unit.c.bucket_id, unit.c.seq)
        .cte("moved")
    )
    freed = (
        update(reservation)
        .where(reservation.c.unit_id == moved.c.id)
        .values(released=_NOW, outcome=moved.c.outcome, expires=null())
        .cte("freed")
    )
    n = func.count()
    counted = (
        insert(unit_delta)
        .from_select(
            _COUNTED,
            union_all(
                select(_TASK, moved.c.bucket_id, RESERVED, -n).group_by(moved.c.bucket_id),
                select(_TASK, moved.c.bucket_id, moved.c.state, n).group_by(moved.c.bucket_id, moved.c.state),
            ),
        )
        .cte("counted")
    )
    woken = (
        update(bucket)
        .where(bucket.c.id.in_(select(moved.c.bucket_id).where(moved.c.state == READY)), ~bucket.c.maybe_ready)
        .values(maybe_ready=literal_column("true"), ready_since=_NOW)
        .cte("woken")
    )
    return Prepared(
        select(moved.c.digest, moved.c.id, moved.c.state, moved.c.bucket_id, moved.c.seq).add_cte(freed, counted, woken)
    )


_RESERVE_ONE = _reserve(_number(1))
_RESERVE = _reserve(_p("rows", Integer))
_RELEASE_ONE = _release(_one_held())
_RELEASE = _release(_several_held())


def reserve(connection: Connection, terms: Terms, floor: int, ceiling: int) -> Sequence[Any]:
    """Reserve files: rows of unit id, seq, attempts, and the file's detail."""
    return (_RESERVE_ONE if terms.rows == 1 else _RESERVE).run(
        connection,
        {
            "task_id": terms.task_id,
            "bucket_id": terms.bucket_id,
            "worker": terms.worker,
            "request_id": terms.request_id,
            "first": terms.first,
            "rows": terms.rows,
            "now": terms.now,
            "expires": terms.expires,
            "floor": floor,
            "ceiling": ceiling,
        },
    )


def release(connection: Connection, given: dict[str, Any], files: Sequence[tuple[bytes, int, int]]) -> Sequence[Any]:
    """Give back what a worker holds of ``files`` (digest, outcome, state to go to): rows of digest, unit id, state,
    bucket and place."""
    digests, outcomes, targets = (list(part) for part in zip(*files, strict=True))
    if len(files) == 1:
        one = {"digest": digests[0], "outcome": outcomes[0], "target": targets[0]}
        return _RELEASE_ONE.run(connection, {**given, **one})
    return _RELEASE.run(connection, {**given, "digests": digests, "outcomes": outcomes, "targets": targets})
