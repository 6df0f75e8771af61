"""How many jobs of each task are in each state, by queue, and the cores they hold.

Every move of a job appends to :data:`job_delta` in the same transaction; an agent rolls those rows up into
:data:`job_count`. A count is the sum of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

from common.states import JobState
from server.store.codes import FIRST_FINAL_JOB_CODE, JOB_CODES, JOB_STATES
from server.store.prepared import Prepared
from server.store.schema import cores_in_use, job_count, job_delta, task, workflow


@dataclass(frozen=True, slots=True)
class Move:
    """A job of a task in a queue goes from one state to another."""

    task_id: int
    queue: str
    cores: int
    source: JobState
    target: JobState


_ADD = Prepared(
    insert(job_delta).values({name: bindparam(name) for name in ("task_id", "queue", "state", "n", "cores")})
)


def add(connection: Connection, *moves: Move) -> None:
    """Append moves of jobs."""
    rows = []
    for move in moves:
        for state, n in ((move.source, -1), (move.target, 1)):
            rows.append(
                {
                    "task_id": move.task_id,
                    "queue": move.queue,
                    "state": JOB_CODES[state],
                    "n": n,
                    "cores": n * move.cores,
                }
            )
    _ADD.many(connection, rows)


def by_task(connection: Connection, task_ids: Sequence[int]) -> dict[int, dict[JobState, int]]:
    """How many jobs of each task are in each state."""
    parts = union_all(
        *(
            select(table.c.task_id, table.c.state, table.c.n).where(table.c.task_id.in_(task_ids))
            for table in (job_count, job_delta)
        )
    ).subquery()
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


def roll_up(connection: Connection, limit: int = 50_000) -> int:
    """Fold the oldest deltas into the counts; rows folded. To be called by one agent at a time, under its lease."""
    ids = select(job_delta.c.id).order_by(job_delta.c.id).limit(limit)
    rows = connection.execute(
        delete(job_delta)
        .where(job_delta.c.id.in_(ids))
        .returning(job_delta.c.task_id, job_delta.c.queue, job_delta.c.state, job_delta.c.n, job_delta.c.cores)
    ).all()
    n: Counter[tuple[int, str, int]] = Counter()
    cores: Counter[tuple[int, str, int]] = Counter()
    for row in rows:
        n[row.task_id, row.queue, row.state] += row.n
        cores[row.task_id, row.queue, row.state] += row.cores
    values = [
        {"task_id": key[0], "queue": key[1], "state": key[2], "n": n[key], "cores": cores[key]} for key in sorted(n)
    ]
    if values:
        dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        statement: Any = dialect_insert(job_count)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[job_count.c.task_id, job_count.c.queue, job_count.c.state],
                set_={
                    "n": job_count.c.n + statement.excluded.n,
                    "cores": job_count.c.cores + statement.excluded.cores,
                },
            ),
            values,
        )
    return len(rows)


def sum_up(connection: Connection) -> None:
    """Write down the cores that each share and each owner uses now, from the roll-up."""
    alive = job_count.c.state < FIRST_FINAL_JOB_CODE
    cores = func.sum(job_count.c.cores).label("cores")
    joined = job_count.join(task, task.c.id == job_count.c.task_id)
    by_share = select(task.c.share.label("name"), cores).select_from(joined).where(alive).group_by(task.c.share)
    owners = joined.join(workflow, workflow.c.id == task.c.workflow_id)
    by_owner = select(workflow.c.owner.label("name"), cores).select_from(owners).where(alive).group_by(workflow.c.owner)
    for kind, query in (("share", by_share), ("owner", by_owner)):
        new = {row.name: int(row.cores) for row in connection.execute(query) if row.cores > 0}
        old = in_use(connection, kind)
        gone = [name for name in old if name not in new]
        if gone:
            connection.execute(delete(cores_in_use).where(cores_in_use.c.kind == kind, cores_in_use.c.name.in_(gone)))
        changed = [
            {"kind": kind, "name": name, "cores": used} for name, used in sorted(new.items()) if old.get(name) != used
        ]
        if changed:
            dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            statement: Any = dialect_insert(cores_in_use)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["kind", "name"], set_={"cores": statement.excluded.cores}
                ),
                changed,
            )


def in_use(connection: Connection, kind: str) -> Mapping[str, float]:
    """Cores in use by ``share`` or by ``owner``, as summed up last."""
    query = select(cores_in_use.c.name, cores_in_use.c.cores).where(cores_in_use.c.kind == kind)
    return {row.name: float(row.cores) for row in connection.execute(query)}
