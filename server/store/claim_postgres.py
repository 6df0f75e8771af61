"""The claim on PostgreSQL: one statement, ``FOR UPDATE SKIP LOCKED``, that makes the job, its counts and its event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Connection,
    Double,
    Integer,
    Row,
    Select,
    SmallInteger,
    String,
    Text,
    and_,
    bindparam,
    cast,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from common.states import JobState
from server.engine.sizing import TIER_BITS, Bounds
from server.store.claim_terms import DETAIL_COLUMNS, MAY_CLAIM, MAY_RUN, PILOT_MAY, ClaimTerms
from server.store.codes import JOB_CODES, UNIT_READY, UNIT_RESERVED
from server.store.prepared import Prepared
from server.store.schema import event, job, job_delta, pilot, queue, task, unit, unit_delta, unit_detail


def _p(name: str, kind: Any) -> Any:
    return bindparam(name, type_=kind)


_TASK, _BUCKET, _PILOT = _p("task_id", BigInteger), _p("bucket_id", BigInteger), _p("pilot_id", BigInteger)
_QUEUE, _NOW, _CORES = _p("queue", String), _p("now", Double), _p("cores", Integer)
_SENT: Any = literal_column(str(JOB_CODES[JobState.SENT]))
_READY: Any = literal_column(str(UNIT_READY))
_RESERVED: Any = literal_column(str(UNIT_RESERVED))


def _may_run() -> Any:
    return (
        select(literal(1))
        .select_from(task.join(queue, queue.c.name == _QUEUE).join(pilot, pilot.c.id == _PILOT))
        .where(task.c.id == _TASK, MAY_RUN)
        .where(MAY_CLAIM)
        .where(PILOT_MAY)
        .exists()
    )


def _locked() -> CTE:
    return (
        select(unit.c.id, unit.c.seq, unit.c.size_mb, func.greatest(literal_column("1"), unit.c.events).label("events"))
        .where(unit.c.bucket_id == _BUCKET, unit.c.state == _READY, unit.c.seq >= _p("floor", BigInteger))
        .where(_may_run())
        .order_by(unit.c.seq)
        .limit(_p("rows", Integer))
        .with_for_update(skip_locked=True)
        .cte("locked")
        .prefix_with("MATERIALIZED")
    )


def _fits(size_mb: Any, events: Any) -> Any:
    disk, most = _p("disk_mb", BigInteger), _p("max_events", BigInteger)
    produced = events * _p("out_kb_per_event", Double) / literal_column("1024.0")
    return and_(
        or_(disk.is_(None), size_mb + func.greatest(_p("spare_mb", Integer), produced) <= disk),
        or_(most.is_(None), events <= most),
    )


def _several() -> tuple[CTE, Select[Any]]:
    # Says what server.engine.sizing.prefix says.
    locked = _locked()
    # PostgreSQL shifts a bigint by an integer only, and by that integer modulo 64.
    tier = locked.c.seq.op(">>")(literal_column(str(TIER_BITS)))
    first_tier = func.first_value(tier).over(order_by=locked.c.seq)
    shift = cast(func.least(literal_column("2") * first_tier, literal_column("63")), Integer)
    ranked = (
        select(
            locked.c.id,
            locked.c.seq,
            func.row_number().over(order_by=locked.c.seq).label("n"),
            func.count().over().label("found"),
            func.sum(locked.c.size_mb).over(order_by=locked.c.seq).label("total_mb"),
            func.sum(locked.c.events).over(order_by=locked.c.seq).label("total_events"),
            (tier == first_tier).label("same_tier"),
            func.greatest(literal_column("1"), _p("limit", BigInteger).op(">>")(shift)).label("company"),
        )
        .where(_fits(locked.c.size_mb, locked.c.events))
        .cte("ranked")
    )
    aim_events, aim_mb = _p("aim_events", BigInteger), _p("aim_mb", BigInteger)
    aimed = and_(
        or_(aim_events.is_(None), ranked.c.total_events <= aim_events),
        or_(aim_mb.is_(None), ranked.c.total_mb <= aim_mb),
    )
    return locked, select(ranked.c.id, ranked.c.seq).where(
        ranked.c.found >= _p("min_units", Integer),
        ranked.c.same_tier,
        ranked.c.n <= ranked.c.company,
        _fits(ranked.c.total_mb, ranked.c.total_events),
        or_(ranked.c.n == literal_column("1"), aimed),
    )


def _moved(chosen: CTE, job_id: Any) -> CTE:
    return (
        update(unit)
        .where(unit.c.id == chosen.c.id)
        .values(state=_RESERVED, job_id=job_id)
        .returning(unit.c.id, unit.c.seq)
        .cte("moved")
    )


def _unit_deltas(n: Any, *conditions: Any) -> CTE:
    rows = select(_TASK, _BUCKET, _READY, _RESERVED, n).where(*conditions)
    return insert(unit_delta).from_select(["task_id", "bucket_id", "source", "state", "n"], rows).cte("counted")


def _claim(locked: CTE, fitting: Select[Any]) -> Select[Any]:
    chosen = fitting.cte("chosen").prefix_with("MATERIALIZED")
    total = select(cast(func.count(), Integer).label("n")).select_from(chosen).cte("total")
    some = total.c.n > literal_column("0")
    made = (
        insert(job)
        .from_select(
            ["task_id", "bucket_id", "pilot_id", "state", "n_units", "cores", "queue", "site", "host", "request_id",
             "ordinal", "claimed"],
            select(
                _TASK, _BUCKET, _PILOT, _SENT, total.c.n, _CORES, _QUEUE, _p("site", String), _p("host", String),
                _p("request_id", String), _p("ordinal", SmallInteger), _NOW,
            ).where(some),
        )
        .returning(job.c.id, job.c.n_units)
        .cte("made")
    )  # fmt: skip
    moved = _moved(chosen, select(made.c.id).scalar_subquery())
    counted = _unit_deltas(made.c.n_units)
    jobs_counted = (
        insert(job_delta)
        .from_select(
            ["task_id", "queue", "state", "n", "cores"],
            select(_TASK, _QUEUE, _SENT, literal_column("1"), _CORES).select_from(made),
        )
        .cte("jobs_counted")
    )
    detail = literal_column("'{\"units\":'") + cast(made.c.n_units, Text) + _p("detail", Text)
    told = (
        insert(event)
        .from_select(
            ["time", "kind", "subject", "subject_id", "task_id", "job_id", "target", "detail"],
            select(
                _NOW, literal_column("'JOB_CLAIMED'"), literal_column("'job'"), cast(made.c.id, Text), _TASK, made.c.id,
                literal_column(f"'{JobState.SENT.value}'"), detail,
            ),
        )
        .cte("told")
    )  # fmt: skip
    return (
        select(made.c.id, _first(locked), moved.c.id.label("unit_id"), moved.c.seq, *DETAIL_COLUMNS)
        .select_from(moved.join(unit_detail, unit_detail.c.unit_id == moved.c.id).join(made, literal_column("true")))
        .order_by(moved.c.seq)
        .add_cte(counted, jobs_counted, told)
    )


def _first(locked: CTE) -> Any:
    return select(func.min(locked.c.seq)).scalar_subquery().label("first")


def _more(locked: CTE, fitting: Select[Any]) -> Select[Any]:
    chosen = fitting.cte("chosen").prefix_with("MATERIALIZED")
    moved = _moved(chosen, _p("job_id", BigInteger))
    total = select(cast(func.count(), Integer).label("n")).select_from(chosen).cte("total")
    some = total.c.n > literal_column("0")
    counted = _unit_deltas(total.c.n, some)
    grown = (
        update(job)
        .where(job.c.id == _p("job_id", BigInteger), some)
        .values(n_units=job.c.n_units + total.c.n)
        .cte("grown")
    )
    return (
        select(
            _p("job_id", BigInteger).label("id"), _first(locked), moved.c.id.label("unit_id"), moved.c.seq,
            *DETAIL_COLUMNS,
        )
        .select_from(moved.join(unit_detail, unit_detail.c.unit_id == moved.c.id))
        .order_by(moved.c.seq)
        .add_cte(counted, grown)
    )  # fmt: skip


_CLAIM = Prepared(_claim(*_several()))
_MORE = Prepared(_more(*_several()))


def _given(terms: ClaimTerms, floor: int, rows: int) -> dict[str, Any]:
    bounds = terms.bounds
    return {
        "task_id": terms.task_id,
        "bucket_id": terms.bucket_id,
        "queue": terms.queue,
        **terms.statuses,
        "disk_mb": bounds.disk_mb,
        "spare_mb": bounds.spare_mb,
        "out_kb_per_event": bounds.out_kb_per_event,
        "max_events": bounds.max_events,
        "floor": floor,
        "rows": rows,
    }


def _given_several(bounds: Bounds) -> dict[str, Any]:
    return {
        "limit": bounds.limit,
        "min_units": bounds.min_units,
        "aim_events": bounds.aim_events,
        "aim_mb": bounds.aim_mb,
    }


def claim(
    connection: Connection, terms: ClaimTerms, values: dict[str, Any], detail: str, floor: int, rows: int
) -> Sequence[Row[Any]]:
    """Reserve units and make their job, if there are any: rows of job id, first seq, unit id, seq, the unit's detail.

    ``values`` are the job's own columns; ``detail`` ends the event's JSON after the number of units; of the ready units
    from ``floor`` on, ``rows`` are looked at.
    """
    given = {**_given(terms, floor, rows), **values, "detail": detail}
    return _CLAIM.run(connection, {**given, **_given_several(terms.bounds)})


def claim_more(
    connection: Connection, terms: ClaimTerms, job_id: int, pilot_id: int, floor: int, rows: int
) -> Sequence[Row[Any]]:
    """Reserve further units for a job that the transaction holds."""
    given = {**_given(terms, floor, rows), **_given_several(terms.bounds), "job_id": job_id, "pilot_id": pilot_id}
    return _MORE.run(connection, given)
