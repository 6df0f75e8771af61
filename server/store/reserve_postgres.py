"""Reserving and releasing on PostgreSQL: one statement each for many requests, ``FOR UPDATE SKIP LOCKED`` where workers
compete.

What several requests want of one bucket is looked for once, and given to them in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    CTE,
    BigInteger,
    Connection,
    Double,
    Integer,
    SmallInteger,
    String,
    Text,
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
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from server.engine.projects import LAST_TIER, Outcome
from server.engine.sizing import TIER_BITS
from server.store.prepared import Prepared, in_one_go
from server.store.reserve_terms import DETAIL_COLUMNS, MAY_RESERVE, READY, RESERVED, GivenBack, Terms
from server.store.schema import bucket, task, unit, unit_delta, unit_detail
from server.store.schema_projects import project_file, reservation

_COUNTED = ["task_id", "bucket_id", "source", "state", "n"]


class _Bucket(msgspec.Struct):
    """What is wanted of one bucket: ``wanted`` files with a place from ``floor`` to before ``ceiling``."""

    bucket_id: int
    task_id: int
    floor: int
    ceiling: int
    wanted: int


class _Request(msgspec.Struct):
    """One of those that want them: ``rows`` files, after the ``skip`` of those before it."""

    n: int
    bucket_id: int
    skip: int
    rows: int
    worker: str
    request_id: str
    first: int
    reserved: float
    expires: float | None


class _File(msgspec.Struct):
    """A file that a worker gives back; ``n`` is the request that says so, ``digest`` in hexadecimal."""

    n: int
    task_id: int
    worker: str
    digest: str
    outcome: int
    target: int
    now: float


_KINDS: dict[str, Any] = {
    "n": Integer,
    "bucket_id": BigInteger,
    "task_id": BigInteger,
    "floor": BigInteger,
    "ceiling": BigInteger,
    "wanted": Integer,
    "skip": Integer,
    "rows": Integer,
    "worker": String,
    "request_id": String,
    "first": Integer,
    "reserved": Double,
    "expires": Double,
    "digest": Text,
    "outcome": SmallInteger,
    "target": SmallInteger,
    "now": Double,
}


def _number(value: int) -> Any:
    return literal_column(str(value))


def _lines(name: str, kind: type[msgspec.Struct]) -> Any:
    """The parameter ``name``, a JSON list of ``kind``, as rows."""
    columns = (column(each, _KINDS[each]) for each in kind.__struct_fields__)
    given = func.json_to_recordset(cast(bindparam(name, type_=Text), postgresql.JSON)).table_valued(*columns)
    return given.render_derived(name=name, with_types=True)


# ---------------------------------------------------------------- reserving


def _found() -> CTE:
    """The files, each with its turn in its bucket."""
    buckets = _lines("buckets", _Bucket)
    ready = (
        select(unit.c.id, unit.c.seq)
        .where(unit.c.bucket_id == buckets.c.bucket_id, unit.c.state == READY)
        .where(unit.c.seq >= buckets.c.floor, unit.c.seq < buckets.c.ceiling)
        .order_by(unit.c.seq)
        .limit(buckets.c.wanted)
        .with_for_update(skip_locked=True)
        .correlate(buckets)
        .lateral("ready")
    )
    locked = (
        select(buckets.c.bucket_id, buckets.c.task_id, ready.c.id, ready.c.seq)
        .select_from(buckets.join(task, task.c.id == buckets.c.task_id).join(ready, true()))
        .where(MAY_RESERVE)
        .cte("locked")
        .prefix_with("MATERIALIZED")
    )
    turn = func.row_number().over(partition_by=locked.c.bucket_id, order_by=locked.c.seq)
    return select(locked, turn.label("turn")).cte("found").prefix_with("MATERIALIZED")


def _taken(found: CTE) -> CTE:
    """Who gets which."""
    requests = _lines("requests", _Request)
    its = and_(
        requests.c.bucket_id == found.c.bucket_id,
        found.c.turn > requests.c.skip,
        found.c.turn <= requests.c.skip + requests.c.rows,
    )
    ordinal = requests.c.first + cast(found.c.turn, Integer) - requests.c.skip - _number(1)
    return (
        select(
            requests.c.n, found.c.id.label("unit_id"), found.c.seq, found.c.task_id, found.c.bucket_id,
            requests.c.worker, requests.c.request_id, ordinal.label("ordinal"), requests.c.reserved, requests.c.expires,
        )
        .select_from(found.join(requests, its))
        .cte("taken")
        .prefix_with("MATERIALIZED")
    )  # fmt: skip


_RESERVATION = ("unit_id", "task_id", "worker", "request_id", "ordinal", "reserved", "expires")


def _held(taken: CTE) -> CTE:
    new = postgresql.insert(reservation).from_select(
        [*_RESERVATION, "attempts"], select(*(taken.c[name] for name in _RESERVATION), _number(1))
    )
    again = {name: new.excluded[name] for name in _RESERVATION[1:]}
    return (
        new.on_conflict_do_update(
            index_elements=["unit_id"],
            set_={
                **again,
                "attempts": reservation.c.attempts + _number(1),
                "released": null(),
                "outcome": null(),
            },
        )
        .returning(reservation.c.unit_id, reservation.c.attempts)
        .cte("held")
    )


def _counted(moves: Any) -> CTE:
    return insert(unit_delta).from_select(_COUNTED, moves).cte("counted")


def _reserve() -> Prepared:
    taken = _taken(_found())
    held = _held(taken)
    moved = update(unit).where(unit.c.id == taken.c.unit_id).values(state=RESERVED).cte("moved")
    of_bucket = (taken.c.task_id, taken.c.bucket_id)
    moves = select(*of_bucket, READY, RESERVED, func.count()).group_by(*of_bucket)
    rows = taken.join(held, held.c.unit_id == taken.c.unit_id).join(
        unit_detail, unit_detail.c.unit_id == taken.c.unit_id
    )
    return Prepared(
        select(taken.c.n, taken.c.unit_id, taken.c.seq, held.c.attempts, *DETAIL_COLUMNS)
        .select_from(rows)
        .order_by(taken.c.n, taken.c.seq)
        .add_cte(moved, _counted(moves))
    )


# ---------------------------------------------------------------- releasing


def _given_back() -> CTE:
    """The reservations that the workers hold: locked in one order."""
    files = _lines("files", _File)
    digest = func.decode(files.c.digest, literal_column("'hex'"))
    file = and_(project_file.c.task_id == files.c.task_id, project_file.c.digest == digest)
    return (
        select(reservation.c.unit_id, files)
        .select_from(files.join(project_file, file).join(reservation, reservation.c.unit_id == project_file.c.unit_id))
        .where(reservation.c.worker == files.c.worker, reservation.c.released.is_(None))
        .order_by(reservation.c.unit_id)
        .with_for_update(of=reservation)
        .cte("held")
        .prefix_with("MATERIALIZED")
    )


def _release() -> Prepared:
    held = _given_back()
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
        .returning(
            held.c.n, held.c.digest, held.c.outcome, held.c.now, unit.c.id, unit.c.task_id, unit.c.state,
            unit.c.bucket_id, unit.c.seq,
        )
        .cte("moved")
    )  # fmt: skip
    freed = (
        update(reservation)
        .where(reservation.c.unit_id == moved.c.id)
        .values(released=moved.c.now, outcome=moved.c.outcome, expires=null())
        .cte("freed")
    )
    of_bucket = (moved.c.task_id, moved.c.bucket_id)
    moves = select(*of_bucket, RESERVED, moved.c.state, func.count()).group_by(*of_bucket, moved.c.state)
    ready = select(moved.c.bucket_id, func.max(moved.c.now).label("now")).where(moved.c.state == READY)
    awake = ready.group_by(moved.c.bucket_id).cte("awake")
    woken = (
        update(bucket)
        .where(bucket.c.id == awake.c.bucket_id, ~bucket.c.maybe_ready)
        .values(maybe_ready=literal_column("true"), ready_since=awake.c.now)
        .cte("woken")
    )
    return Prepared(
        select(moved.c.n, moved.c.digest, moved.c.id, moved.c.state, moved.c.bucket_id, moved.c.seq).add_cte(
            freed, _counted(moves), woken
        )
    )


_RESERVE = _reserve()
_RELEASE = _release()


def carry_out(
    connection: Connection,
    wanted: Sequence[tuple[Terms, int, int]],
    given_back: Sequence[GivenBack],
    looks: Sequence[tuple[Prepared, Mapping[str, Any]]],
) -> tuple[list[list[Any]], list[list[Any]], list[Sequence[Any]]]:
    """Reserve and release in one transaction and one way there and back; ``connection`` must commit by itself.

    Args:
        wanted: what each request asks for, with the places to look from and up to. What one bucket is asked for is
            looked for from the first one's floor up to its ceiling.
        given_back: what each request says of the files that its worker holds.
        looks: queries to go along.

    Returns:
        For each that wants, rows of (unit id, seq, attempts, the file's detail); for each that gives back, rows of
        (digest, unit id, state, bucket, place); of each query its rows.

    Raises:
        IntegrityError: one of the requests got a file before; nothing was done for any.
    """
    steps: list[tuple[Prepared, Mapping[str, Any]]] = []
    if wanted:
        steps.append((_RESERVE, _wanted(wanted)))
    if given_back:
        steps.append((_RELEASE, {"files": _text(_files(given_back))}))
    steps += looks
    found = iter(in_one_go(connection, steps) if steps else [])
    reserved = _by_request(next(found), len(wanted)) if wanted else []
    moved = _by_request(next(found), len(given_back)) if given_back else []
    return reserved, [[(bytes.fromhex(row[0]), *row[1:]) for row in rows] for rows in moved], list(found)


def _wanted(wanted: Sequence[tuple[Terms, int, int]]) -> dict[str, Any]:
    buckets: dict[int, _Bucket] = {}
    requests = []
    for n, (terms, floor, ceiling) in enumerate(wanted):
        of = buckets.setdefault(terms.bucket_id, _Bucket(terms.bucket_id, terms.task_id, floor, ceiling, 0))
        requests.append(
            _Request(
                n, terms.bucket_id, of.wanted, terms.rows, _storable(terms.worker), _storable(terms.request_id), terms.first,
                terms.now, terms.expires,
            )
        )  # fmt: skip
        of.wanted += terms.rows
    return {"buckets": _text(list(buckets.values())), "requests": _text(requests)}


def _files(given_back: Sequence[GivenBack]) -> list[_File]:
    return [
        _File(n, each.task_id, _storable(each.worker), digest.hex(), outcome, target, each.now)
        for n, each in enumerate(given_back)
        for digest, outcome, target in each.files
    ]


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _storable(text: str) -> str:
    # A text of PostgreSQL keeps no NUL, and JSON's escape for it is refused.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _by_request(rows: Sequence[Any], n: int) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in range(n)]
    for row in rows:
        found[row[0]].append(tuple(row[1:]))
    return found
