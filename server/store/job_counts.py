"""How many jobs of each task are in each state, by queue, and the cores they hold.

Every move of a job appends to :data:`job_delta` in the same transaction; an agent rolls those rows up into
:data:`job_count`. A count is the sum of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, cast, delete, func, insert, select

from common.states import JobState
from server.store import deltas
from server.store.codes import FIRST_FINAL_JOB_CODE, JOB_CODES, JOB_STATES
from server.store.lists import Insert, among, put
from server.store.prepared import Prepared
from server.store.schema import cores_in_use, job_count, job_delta, task, workflow

FREE = JOB_CODES[JobState.HOLDING]
"""From this state on a job's payload is over: its cores are free, its pilot may run something else."""


@dataclass(frozen=True, slots=True)
class Move:
    """A job of a task in a queue goes from one state to another."""

    task_id: int
    queue: str
    cores: int
    source: JobState
    target: JobState


_MOVE = ("task_id", "queue", "source", "state", "n", "cores")
_ADD = Prepared(insert(job_delta).values({name: bindparam(name) for name in _MOVE}))


def add(connection: Connection, *moves: Move) -> None:
    """Append moves of jobs."""
    rows = [(each.task_id, each.queue, JOB_CODES[each.source], JOB_CODES[each.target], 1, each.cores) for each in moves]
    _ADD.many(connection, [dict(zip(_MOVE, row, strict=True)) for row in rows])


def by_task(connection: Connection, task_ids: Sequence[int]) -> dict[int, dict[JobState, int]]:
    """How many jobs of each task are in each state."""
    folded = select(job_count.c.task_id, job_count.c.state, job_count.c.n).where(job_count.c.task_id.in_(task_ids))
    waiting = deltas.as_counts(job_delta, ["task_id"], ["n"], job_delta.c.task_id.in_(task_ids))
    parts = folded.union_all(*waiting.selects).subquery()
    query = select(parts.c.task_id, parts.c.state, func.sum(parts.c.n).label("n")).group_by(
        parts.c.task_id, parts.c.state
    )
    result: dict[int, dict[JobState, int]] = {task_id: {} for task_id in task_ids}
    for row in connection.execute(query):
        if row.n:
            result[row.task_id][JOB_STATES[row.state]] = int(row.n)
    return result


def alive_by_queue(connection: Connection) -> dict[str, tuple[int, int]]:
    """Live jobs of each queue and the cores they hold, as rolled up last."""
    query = (
        select(job_count.c.queue, func.sum(job_count.c.n).label("n"), func.sum(job_count.c.cores).label("cores"))
        .where(job_count.c.state < FIRST_FINAL_JOB_CODE)
        .group_by(job_count.c.queue)
    )
    return {row.queue: (int(row.n), int(row.cores)) for row in connection.execute(query)}


def states_by_queue(connection: Connection) -> dict[str, dict[JobState, int]]:
    """How many live jobs of each queue are in each state, as rolled up last."""
    query = (
        select(job_count.c.queue, job_count.c.state, func.sum(job_count.c.n).label("n"))
        .where(job_count.c.state < FIRST_FINAL_JOB_CODE)
        .group_by(job_count.c.queue, job_count.c.state)
    )
    found: dict[str, dict[JobState, int]] = {}
    for row in connection.execute(query):
        found.setdefault(row.queue, {})[JOB_STATES[row.state]] = int(row.n)
    return found


_COLUMNS = ("task_id", "queue", "state", "n", "cores")


def roll_up(connection: Connection, limit: int = 50_000) -> int:
    """Fold deltas into the counts and into the cores in use; rows folded.

    To be called by one agent at a time, under its lease.
    """
    rows, sums = _summed(connection, deltas.take(connection, job_delta, limit).returning(job_delta))
    if rows:
        put(
            connection,
            job_count,
            [dict(zip(_COLUMNS, each, strict=True)) for each in sorted(sums) if each[3] or each[4]],
            _add_counts,
        )
        used: Counter[int] = Counter()
        for task_id, _, state, _, cores in sums:
            if state < FREE:
                used[task_id] += cores
        _use(connection, {task_id: cores for task_id, cores in used.items() if cores})
    return rows


def _summed(connection: Connection, gone: Any) -> tuple[int, list[tuple[int, str, int, int, int]]]:
    """Execute the deletion of deltas: how many, and their sums (task, queue, state, n, cores)."""
    if connection.dialect.name != "sqlite":
        taken = gone.cte("gone")
        rows = deltas.as_counts(taken, ["task_id", "queue"], ["n", "cores"]).subquery()
        key = (rows.c.task_id, rows.c.queue, rows.c.state)
        n, cores = cast(func.sum(rows.c.n), BigInteger), cast(func.sum(rows.c.cores), BigInteger)
        query = select(*key, n, cores, deltas.count_of(taken)).group_by(*key)
        found = connection.execute(query).all()
        return (found[0][5] if found else 0), [(row[0], row[1], row[2], row[3], row[4]) for row in found]
    sums: Counter[tuple[int, str, int]] = Counter()
    cores_of: Counter[tuple[int, str, int]] = Counter()
    moves = connection.execute(gone).all()
    for row in moves:
        for state, sign in deltas.sides(row):
            sums[row.task_id, row.queue, state] += sign * row.n
            cores_of[row.task_id, row.queue, state] += sign * row.cores
    return len(moves), [(*key, sums[key], cores_of[key]) for key in sums]


def _add_counts(statement: Insert) -> Insert:
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[job_count.c.task_id, job_count.c.queue, job_count.c.state],
        set_={"n": job_count.c.n + new.n, "cores": job_count.c.cores + new.cores},
    )


def _use(connection: Connection, more: Mapping[int, int]) -> None:
    """Add the cores that jobs of tasks use more to what their shares and owners use."""
    changes: Counter[tuple[str, str]] = Counter()
    ids = sorted(more)
    for start in range(0, len(ids), 1000):
        query = (
            select(task.c.id, task.c.share, workflow.c.owner)
            .join(workflow, workflow.c.id == task.c.workflow_id)
            .where(among(connection, task.c.id, ids[start : start + 1000]))
        )
        for row in connection.execute(query):
            changes["share", row.share] += more[row.id]
            changes["owner", row.owner] += more[row.id]
    _change_use(connection, changes)


def _change_use(connection: Connection, changes: Mapping[tuple[str, str], int]) -> None:
    put(
        connection,
        cores_in_use,
        [{"kind": kind, "name": name, "cores": n} for (kind, name), n in sorted(changes.items()) if n],
        lambda statement: statement.on_conflict_do_update(
            index_elements=["kind", "name"], set_={"cores": cores_in_use.c.cores + statement.excluded.cores}
        ),
    )


def change_share(connection: Connection, task_id: int, old: str, new: str) -> None:
    """A task goes from one share to another, and with it the cores that its jobs use."""
    query = select(func.sum(job_count.c.cores)).where(job_count.c.task_id == task_id, job_count.c.state < FREE)
    cores = int(connection.execute(query).scalar() or 0)
    if old != new:
        _change_use(connection, {("share", old): -cores, ("share", new): cores})


def sum_up(connection: Connection) -> None:
    """Sum up the cores that each share and each owner uses anew, from the roll-up: whatever was wrong is right again."""
    # Held before the counts are read, so that what is rolled up meanwhile is added behind it.
    held = select(cores_in_use).order_by(cores_in_use.c.kind, cores_in_use.c.name).with_for_update()
    old = {(row.kind, row.name): row.cores for row in connection.execute(held)}
    used = (
        select(job_count.c.task_id, func.sum(job_count.c.cores).label("cores"))
        .where(job_count.c.state < FIRST_FINAL_JOB_CODE, job_count.c.state < FREE)
        .group_by(job_count.c.task_id)
        .subquery()
    )
    query = (
        select(task.c.share, workflow.c.owner, func.sum(used.c.cores).label("cores"))
        .select_from(used.join(task, task.c.id == used.c.task_id).join(workflow, workflow.c.id == task.c.workflow_id))
        .group_by(task.c.share, workflow.c.owner)
    )
    new: Counter[tuple[str, str]] = Counter()
    for row in connection.execute(query):
        new["share", row.share] += int(row.cores)
        new["owner", row.owner] += int(row.cores)
    _change_use(connection, {key: new[key] - old.get(key, 0) for key in new.keys() | old.keys()})
    connection.execute(delete(cores_in_use).where(cores_in_use.c.cores <= 0))


def in_use(connection: Connection, kind: str) -> Mapping[str, float]:
    """Cores in use by ``share`` or by ``owner``, as rolled up last."""
    query = select(cores_in_use.c.name, cores_in_use.c.cores).where(
        cores_in_use.c.kind == kind, cores_in_use.c.cores > 0
    )
    return {row.name: float(row.cores) for row in connection.execute(query)}
