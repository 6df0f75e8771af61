"""Units: their making, their moves, their counts.

Every move appends to :data:`unit_delta`, in the same transaction; an agent rolls those rows up into
:data:`unit_count`. A count is the sum of both, so it is exact at any moment without a hot counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    bindparam,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from common.states import UnitState
from common.wire import FileSpec, ReplicaSpec, StageSpec, UnitView
from server.engine.outcomes import Attempts, Fate
from server.engine.sizing import number_of, raised
from server.store import deltas, tasks
from server.store.claim_terms import DETAIL_COLUMNS, TakenUnit, taken_unit, usable_replicas
from server.store.codes import UNIT_CODES, UNIT_READY, UNIT_STATES
from server.store.lists import Insert, among, put
from server.store.prepared import Prepared
from server.store.schema import bucket, task, unit, unit_count, unit_delta, unit_detail

MEBIBYTE = 1024 * 1024
ROLLED_UP = 50_000
"""Changes of counts that are rolled up in one go."""
MOST_MB = 2**31 - 1
"""The largest size that the narrow row holds: larger than any slot's disk in any case."""


@dataclass(frozen=True)
class NewUnit:
    """A unit to be made: a file, ``events`` events of one from ``first_event`` on, a counter, or neither.

    ``grouping`` keeps apart what a merge must not mix; ``problem`` says why a unit is lost from the beginning.
    """

    seq: int
    locations: tuple[str, ...] = ()
    file: FileSpec | None = None
    counter: int | None = None
    events: int | None = None
    state: UnitState = UnitState.READY
    first_event: int | None = None
    grouping: str = ""
    problem: str = ""

    @property
    def event_count(self) -> int | None:
        """How many events it has, if known."""
        return self.events if self.file is None or self.first_event is not None else self.file.events


@dataclass(frozen=True)
class UnitRow:
    """The narrow row."""

    id: int
    task_id: int
    bucket_id: int
    seq: int
    state: UnitState
    job_id: int | None
    generation: int
    attempts: Attempts


def create(connection: Connection, task_id: int, units: Sequence[NewUnit], now: float) -> list[int]:
    """Make units of a task, in its buckets; their ids."""
    buckets = {
        key: bucket_for(connection, task_id, key[0], now, grouping=key[1])
        for key in dict.fromkeys((each.locations, each.grouping) for each in units)
    }
    rows = [
        {
            "task_id": task_id,
            "bucket_id": buckets[each.locations, each.grouping],
            "seq": each.seq,
            "state": UNIT_CODES[each.state],
            "size_mb": _mebibytes(each.file),
            "events": min(MOST_MB, each.event_count or 0),
        }
        for each in units
    ]
    returned = connection.execute(insert(unit).returning(unit.c.id, sort_by_parameter_order=True), rows)
    ids = [row.id for row in returned]
    connection.execute(insert(unit_detail), [_detail(unit_id, each) for unit_id, each in zip(ids, units, strict=True)])
    sizes: dict[int, int] = {}
    for row in rows:
        sizes[row["bucket_id"]] = max(row["size_mb"], sizes.get(row["bucket_id"], 0))
    for bucket_id, largest in sorted(sizes.items()):
        connection.execute(
            update(bucket).where(bucket.c.id == bucket_id, bucket.c.unit_mb < largest).values(unit_mb=largest)
        )
    add_deltas(connection, Counter((task_id, buckets[each.locations, each.grouping], each.state) for each in units))
    wake(connection, buckets.values(), now)
    return ids


def _mebibytes(file: FileSpec | None) -> int:
    return min(MOST_MB, -(-(file.size or 0) // MEBIBYTE)) if file else 0


def _detail(unit_id: int, new: NewUnit) -> dict[str, Any]:
    file = new.file
    return {
        "unit_id": unit_id,
        "did": file.did if file else None,
        "size": file.size if file else None,
        "events": new.event_count,
        "first_event": new.first_event,
        "error_detail": new.problem or None,
        "checksum": file.checksum if file else None,
        "counter": new.counter,
        "attributes": msgspec.json.encode(file.attributes).decode() if file and file.attributes else None,
        "replicas": msgspec.json.encode(file.replicas).decode() if file else None,
    }


def bucket_for(
    connection: Connection,
    task_id: int,
    locations: tuple[str, ...],
    now: float,
    *,
    memory_mb: int = 0,
    wall_s: int = 0,
    grouping: str = "",
) -> int:
    """The task's bucket for a location set, made if it is not there.

    ``memory_mb`` and ``wall_s`` are what its units need beyond the task's own requirement (zero: those);
    ``grouping`` keeps apart what a merge must not mix.
    """
    key = {
        "task_id": task_id,
        "locations": ",".join(locations),
        "memory_mb": memory_mb,
        "wall_s": wall_s,
        "grouping": grouping,
    }
    query = select(bucket.c.id).where(*(bucket.c[name] == value for name, value in key.items()))
    found = connection.execute(query).scalar()
    if found is None:
        dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        values = {**key, "maybe_ready": False, "ready_since": now, "min_ready": _least(connection, task_id)}
        connection.execute(dialect_insert(bucket).values(**values).on_conflict_do_nothing())
        found = connection.execute(query).scalar_one()
    return int(found)


def _least(connection: Connection, task_id: int) -> int:
    """How many ready units a job of a task takes at the least: more than one while a merge waits for its parent."""
    row = connection.execute(select(task.c.spec, task.c.input_closed).where(task.c.id == task_id)).first()
    if row is None or row.input_closed:
        return 1
    merge = msgspec.json.decode(row.spec, type=StageSpec).merge
    return merge.min_files if merge else 1


def input_closes(connection: Connection, task_id: int) -> None:
    """No more units will come: a merge takes what is left over. To be called after the task's row says so."""
    where = (bucket.c.task_id == task_id) & (bucket.c.min_ready > 1)
    ids = [row.id for row in connection.execute(select(bucket.c.id).where(where))]
    if ids:
        connection.execute(update(bucket).where(where).values(min_ready=1))
        _hint(connection, ids)


def input_opens(connection: Connection, task_id: int) -> None:
    """More units will come after all. To be called after the task's row says so."""
    least = _least(connection, task_id)
    if least > 1:
        connection.execute(update(bucket).where(bucket.c.task_id == task_id).values(min_ready=least))


def grouping_of(connection: Connection, bucket_id: int) -> str:
    """What a bucket keeps apart, for a unit that moves on to another one."""
    return str(connection.execute(select(bucket.c.grouping).where(bucket.c.id == bucket_id)).scalar_one())


def wake(connection: Connection, bucket_ids: Iterable[int], now: float) -> None:
    """Say that buckets may have ready units. A row that says so already is not touched.

    A merge that waits for more than one is left to the recounting agent.

    Should the recounting agent clear the hint while this transaction is still open, it sets it again as soon as it
    reads this transaction's deltas.
    """
    ids = sorted(set(bucket_ids))
    if ids:
        connection.execute(
            update(bucket)
            .where(bucket.c.id.in_(ids), ~bucket.c.maybe_ready, bucket.c.min_ready <= 1)
            .values(maybe_ready=True, ready_since=now)
        )


def add_deltas(connection: Connection, changes: Counter[tuple[int, int, UnitState]]) -> None:
    """Append changes of counts: (task, bucket, state) → difference."""
    rows = [
        {"task_id": task_id, "bucket_id": bucket_id, "state": UNIT_CODES[state], "n": n}
        for (task_id, bucket_id, state), n in changes.items()
        if n
    ]
    if rows:
        connection.execute(insert(unit_delta), rows)


def of_job(connection: Connection, job_id: int) -> list[UnitRow]:
    """The units that a job holds or held last, by seq."""
    return [row_of(row) for row in _OF_JOB.run(connection, {"of_job": job_id})]


_OF_JOB = Prepared(select(unit).where(unit.c.job_id == bindparam("of_job", type_=BigInteger)).order_by(unit.c.seq))


def taken_by(connection: Connection, job_id: int) -> list[TakenUnit]:
    """The units that a job holds, as a claim gives them."""
    query = (
        select(unit.c.job_id, unit.c.seq, unit.c.id, unit.c.seq, *DETAIL_COLUMNS)
        .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
        .where(unit.c.job_id == job_id)
        .order_by(unit.c.seq)
    )
    return [taken_unit(row) for row in connection.execute(query)]


def states_of(connection: Connection, task_id: int, unit_ids: Sequence[int]) -> dict[int, UnitState]:
    """The states of those units that belong to a task."""
    query = select(unit.c.id, unit.c.state).where(unit.c.id.in_(unit_ids), unit.c.task_id == task_id)
    return {row.id: UNIT_STATES[row.state] for row in connection.execute(query)}


def row_of(row: Any) -> UnitRow:
    """A narrow row from a database row."""
    return UnitRow(
        id=row.id,
        task_id=row.task_id,
        bucket_id=row.bucket_id,
        seq=row.seq,
        state=UNIT_STATES[row.state],
        job_id=row.job_id,
        generation=row.generation,
        attempts=Attempts(row.payload_failures, row.site_failures, row.lost_pilots, row.preemptions),
    )


def settle(
    connection: Connection, fates: Sequence[tuple[UnitRow, Fate]], error: tuple[int | None, str], now: float
) -> None:
    """Move a job's units to where their fates say, and count. The job's row must be held by this transaction.

    ``error`` (number, words) is kept with each unit that did not get done. Units that go back to ready leave the job.
    """
    _check_owner(fates)
    done = [row.id for row, to in fates if to.state == UnitState.DONE]
    for start in range(0, len(done), 10_000):
        ids = done[start : start + 10_000]
        connection.execute(update(unit).where(unit.c.id.in_(ids)).values(state=UNIT_CODES[UnitState.DONE]))
    others = [(row, to) for row, to in fates if to.state != UnitState.DONE]
    if others:
        connection.execute(_SETTLE, [_settled(row, to) for row, to in others])
        details = [
            {"b_id": row.id, "b_code": error[0], "b_detail": error[1][:1000]}
            for row, to in others
            if error[0] is not None or to.state != UnitState.READY
        ]
        if details:
            connection.execute(_SETTLE_DETAIL, details)
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for row, to in fates:
        changes[row.task_id, row.bucket_id, row.state] -= 1
        changes[row.task_id, to.bucket_id or row.bucket_id, to.state] += 1
    add_deltas(connection, changes)
    wake(connection, [to.bucket_id or row.bucket_id for row, to in fates if to.state == UnitState.READY], now)


def _check_owner(fates: Sequence[tuple[UnitRow, Fate]]) -> None:
    if len({row.job_id for row, _ in fates}) > 1:
        raise AssertionError("units of several jobs settled at once")


_SETTLE = (
    update(unit)
    .where(unit.c.id == bindparam("b_id"))
    .values(
        state=bindparam("b_state"),
        seq=bindparam("b_seq"),
        bucket_id=bindparam("b_bucket"),
        job_id=bindparam("b_job"),
        payload_failures=bindparam("b_payload"),
        site_failures=bindparam("b_site"),
        lost_pilots=bindparam("b_pilot"),
        preemptions=bindparam("b_preemption"),
    )
)
_SETTLE_DETAIL = (
    update(unit_detail)
    .where(unit_detail.c.unit_id == bindparam("b_id"))
    .values(error_code=bindparam("b_code"), error_detail=bindparam("b_detail"))
)


def _settled(row: UnitRow, to: Fate) -> dict[str, object]:
    return {
        "b_id": row.id,
        "b_state": UNIT_CODES[to.state],
        "b_seq": to.seq,
        "b_bucket": to.bucket_id or row.bucket_id,
        "b_job": None if to.state == UnitState.READY else row.job_id,
        "b_payload": to.attempts.payload,
        "b_site": to.attempts.site,
        "b_pilot": to.attempts.pilot,
        "b_preemption": to.attempts.preemption,
    }


def move_all(connection: Connection, task_id: int, sources: Iterable[UnitState], target: UnitState, now: float) -> int:
    """Move all units of a task from some states to another; the number moved.

    Going to ready also forgets the job, the failures and the place behind others: another round of attempts.
    """
    codes = [UNIT_CODES[state] for state in sources]
    before = connection.execute(
        select(unit.c.id, unit.c.bucket_id, unit.c.state)
        .where(unit.c.task_id == task_id, unit.c.state.in_(codes))
        .order_by(unit.c.id)
        .with_for_update()
    ).all()
    values: dict[str, object] = {"state": UNIT_CODES[target]}
    if target == UnitState.READY:
        values |= {"job_id": None, "payload_failures": 0, "site_failures": 0, "lost_pilots": 0, "preemptions": 0}
        values["seq"] = unit.c.seq.bitwise_and(raised(-1, 0))
    for start in range(0, len(before), 10_000):
        ids = [row.id for row in before[start : start + 10_000]]
        connection.execute(update(unit).where(unit.c.id.in_(ids)).values(**values))
        if target == UnitState.READY:
            fresh = {"error_code": None, "error_detail": None, "bad_storages": None}
            connection.execute(update(unit_detail).where(unit_detail.c.unit_id.in_(ids)).values(**fresh))
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for row in before:
        changes[task_id, row.bucket_id, UNIT_STATES[row.state]] -= 1
        changes[task_id, row.bucket_id, target] += 1
    add_deltas(connection, changes)
    if target == UnitState.READY:
        wake(connection, {row.bucket_id for row in before}, now)
    return len(before)


def counts(connection: Connection, task_ids: Sequence[int]) -> dict[int, dict[UnitState, int]]:
    """How many units of each task are in each state, in one consistent look."""
    folded = select(unit_count.c.task_id, unit_count.c.state, unit_count.c.n).where(
        among(connection, unit_count.c.task_id, task_ids)
    )
    waiting = deltas.as_counts(unit_delta, ["task_id"], ["n"], among(connection, unit_delta.c.task_id, task_ids))
    parts = folded.union_all(*waiting.selects).subquery()
    query = select(parts.c.task_id, parts.c.state, func.sum(parts.c.n).label("n")).group_by(
        parts.c.task_id, parts.c.state
    )
    result: dict[int, dict[UnitState, int]] = {task_id: {} for task_id in task_ids}
    for row in connection.execute(query):
        if row.n:
            result[row.task_id][UNIT_STATES[row.state]] = int(row.n)
    return result


def roll_up(connection: Connection, limit: int = ROLLED_UP) -> int:
    """Fold deltas into the counts, and set each touched bucket's ``maybe_ready`` by them; rows folded.

    To be called by one agent at a time, under its lease.
    """
    rows, totals = _summed(connection, deltas.take(connection, unit_delta, limit).returning(unit_delta))
    if rows:
        _hint_by(connection, _add(connection, totals))
        ended = {task_id for task_id, _, state in totals if state in tasks.FINAL_UNIT_CODES}
        tasks.touch_moved(connection, ended, {task_id for task_id, _, _ in totals} - ended)
    return rows


def _add(connection: Connection, totals: Mapping[tuple[int, int, int], int]) -> dict[int, int]:
    """Add to the counts; of the buckets that got or lost ready units how many they have now."""
    ready, others = [], []
    for (task_id, bucket_id, state), n in sorted(totals.items()):
        row = {"task_id": task_id, "bucket_id": bucket_id, "state": state, "n": n}
        if state == UNIT_READY:
            ready.append(row)  # also if as many came as went: somebody may have set the hint meanwhile
        elif n:
            others.append(row)
    put(connection, unit_count, others, _add_counts)
    found = put(connection, unit_count, ready, _add_counts, (unit_count.c.bucket_id, unit_count.c.n))
    return {row.bucket_id: row.n for row in found}


def _summed(connection: Connection, gone: Any) -> tuple[int, dict[tuple[int, int, int], int]]:
    """Execute the deletion of deltas: how many, and their sums by (task, bucket, state)."""
    if connection.dialect.name != "sqlite":
        taken = gone.cte("gone")
        rows = deltas.as_counts(taken, ["task_id", "bucket_id"], ["n"]).subquery()
        key = (rows.c.task_id, rows.c.bucket_id, rows.c.state)
        query = select(*key, cast(func.sum(rows.c.n), BigInteger), deltas.count_of(taken)).group_by(*key)
        found = connection.execute(query).all()
        return (found[0][4] if found else 0), {(row[0], row[1], row[2]): row[3] for row in found}
    totals: Counter[tuple[int, int, int]] = Counter()
    moves = connection.execute(gone).all()
    for row in moves:
        for state, sign in deltas.sides(row):
            totals[row.task_id, row.bucket_id, state] += sign * row.n
    return len(moves), totals


def _add_counts(statement: Insert) -> Insert:
    key = [unit_count.c.task_id, unit_count.c.bucket_id, unit_count.c.state]
    return statement.on_conflict_do_update(index_elements=key, set_={"n": unit_count.c.n + statement.excluded.n})


def _hint_by(connection: Connection, ready: Mapping[int, int]) -> None:
    """Set the hints of buckets of which it is known how many ready units they have; most are as they should be."""
    drained = sorted(bucket_id for bucket_id, n in ready.items() if n <= 0)
    if drained:
        connection.execute(
            update(bucket)
            .where(among(connection, bucket.c.id, drained), bucket.c.maybe_ready)
            .values(maybe_ready=False)
        )
    _hint(connection, sorted(ready.keys() - drained), or_(~bucket.c.maybe_ready, bucket.c.min_ready > 1))


def _hint(connection: Connection, bucket_ids: list[int], *where: ColumnElement[bool]) -> None:
    ready = (
        select(literal(1))
        .where(unit_count.c.bucket_id == bucket.c.id, unit_count.c.task_id == bucket.c.task_id)
        .where(unit_count.c.state == UNIT_READY, unit_count.c.n >= bucket.c.min_ready)
        .exists()
    )
    for start in range(0, len(bucket_ids), 1000):
        ids = bucket_ids[start : start + 1000]
        connection.execute(
            update(bucket)
            .where(among(connection, bucket.c.id, ids), *where, bucket.c.maybe_ready != ready)
            .values(maybe_ready=ready)
        )


def mark_bad(connection: Connection, unit_id: int, storages: set[str]) -> list[ReplicaSpec]:
    """Note that a unit's replicas on these storages are missing or damaged; those that remain."""
    row = connection.execute(
        select(unit_detail.c.replicas, unit_detail.c.bad_storages)
        .where(unit_detail.c.unit_id == unit_id)
        .with_for_update()
    ).one()
    bad = storages | (set(row.bad_storages.split(",")) if row.bad_storages else set())
    connection.execute(
        update(unit_detail).where(unit_detail.c.unit_id == unit_id).values(bad_storages=",".join(sorted(bad)))
    )
    return usable_replicas(row.replicas, ",".join(bad))


def dids(connection: Connection, unit_ids: Sequence[int]) -> dict[int, str]:
    """The DIDs of those units that are files."""
    query = select(unit_detail.c.unit_id, unit_detail.c.did).where(
        unit_detail.c.unit_id.in_(unit_ids), unit_detail.c.did.is_not(None)
    )
    return {row.unit_id: row.did for row in connection.execute(query)}


def page(
    connection: Connection, task_id: int, *, state: UnitState | None, after: int, limit: int
) -> Sequence[UnitView]:
    """Units of a task as people see them, by id."""
    query = (
        select(unit, unit_detail)
        .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
        .where(unit.c.task_id == task_id, unit.c.id > after)
        .order_by(unit.c.id)
        .limit(limit)
    )
    if state is not None:
        query = query.where(unit.c.state == UNIT_CODES[state])
    return [
        UnitView(
            id=row["id"],
            task_id=row["task_id"],
            seq=number_of(row["seq"]),
            state=UNIT_STATES[row["state"]],
            did=row["did"],
            size=row["size"],
            events=row["events"],
            first_event=row["first_event"],
            counter=row["counter"],
            job_id=row["job_id"],
            payload_failures=row["payload_failures"],
            other_failures=row["site_failures"] + row["lost_pilots"] + row["preemptions"],
            generation=row["generation"],
            error_code=row["error_code"],
            error_detail=row["error_detail"] or "",
        )
        for row in connection.execute(query).mappings()
    ]
