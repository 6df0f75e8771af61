"""Tasks without their descriptions: what the agent that moves them on needs, for thousands of them at a time.

Whatever may move a task on (units that are over, a first job, an input that closed, a command) appends a row to
:data:`task_touched`; the agent looks at those tasks only. A slow pass over all finds what a crash left untouched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, and_, case, delete, func, or_, select, update

from common.states import FINAL_TASK_STATES, FINAL_UNIT_STATES, TaskState
from server.engine.scouts import NO_SCOUTS
from server.store import inputs, job_counts
from server.store.codes import UNIT_CODES
from server.store.lists import among, put
from server.store.schema import job, task, unit_count, unit_delta, workflow
from server.store.schema_commands import task_move, task_touched

if TYPE_CHECKING:
    from server.store.workflows import TaskRow

OPEN_UNIT_CODES = sorted(code for state, code in UNIT_CODES.items() if state not in FINAL_UNIT_STATES)
FINAL_UNIT_CODES = frozenset(UNIT_CODES[state] for state in FINAL_UNIT_STATES)
MOVED_BY_ANY = frozenset({TaskState.READY, TaskState.FINISHING})
"""Tasks that any move of a unit may move on: by their first job, or by a unit that came back to where it is cancelled.
The others end with a unit that is over."""


@dataclass(frozen=True)
class TaskBrief:
    """A task's id, state, and whether its input is closed."""

    id: int
    state: TaskState
    input_closed: bool


def touch(connection: Connection, task_ids: Iterable[int]) -> None:
    """Have tasks looked at soon."""
    put(connection, task_touched, [{"task_id": task_id} for task_id in sorted(set(task_ids))])


def touch_moved(connection: Connection, ended: Collection[int], moved: Collection[int]) -> None:
    """Units of ``ended`` tasks are over; those of ``moved`` ones only went on, which moves few tasks."""
    some = [each.id for each in briefs(connection, moved) if each.state in MOVED_BY_ANY]
    touch(connection, {*ended, *some})


@dataclass(frozen=True)
class Touched:
    """Tasks to look at: in any case, and if they are in a state of :data:`MOVED_BY_ANY`.

    ``drained`` is how many open units any of them lost, all in all, by changes that were not rolled up yet, at the most;
    ``marks`` are for :func:`forget_touched`.
    """

    ids: set[int]
    moved: set[int]
    drained: int
    marks: list[int]


def touched(connection: Connection, limit: int = 10_000) -> Touched:
    """Tasks to look at.

    Those whose changes of counts were not rolled up yet are among them; their rows stay for the roll-up.
    """
    marks = connection.execute(select(task_touched).order_by(task_touched.c.id).limit(limit)).all()
    final = sorted(FINAL_UNIT_CODES)
    over = unit_delta.c.state.in_(final)
    was_open = and_(unit_delta.c.source.is_not(None), unit_delta.c.source.not_in(final))
    opened = case((over, 0), else_=unit_delta.c.n) - case((was_open, unit_delta.c.n), else_=0)
    news = connection.execute(
        select(
            unit_delta.c.task_id,
            func.max(case((over, 1), else_=0)).label("ended"),
            func.sum(opened).label("opened"),
        ).group_by(unit_delta.c.task_id)
    ).all()
    ids = {row.task_id for row in marks} | {row.task_id for row in news if row.ended}
    return Touched(
        ids,
        {row.task_id for row in news} - ids,
        max((-int(row.opened) for row in news if row.opened < 0), default=0),
        [row.id for row in marks],
    )


def surely_open(connection: Connection, task_ids: Sequence[int], drained: int) -> set[int]:
    """Those of the tasks that have an open unit even if they have lost ``drained`` of them since the last roll-up.

    It ends at the first such count of each, where counting all would read dozens.
    """
    some = (
        select(unit_count.c.n)
        .where(unit_count.c.task_id == task.c.id, unit_count.c.state.in_(OPEN_UNIT_CODES), unit_count.c.n > drained)
        .limit(1)
        .scalar_subquery()
    )
    query = select(task.c.id).where(among(connection, task.c.id, task_ids), some.is_not(None))
    return {row.id for row in connection.execute(query)}


def forget_touched(connection: Connection, ids: Sequence[int]) -> None:
    """These rows were looked at: by id, as others may have been committed between them meanwhile."""
    for start in range(0, len(ids), 1000):
        some = ids[start : start + 1000]
        connection.execute(delete(task_touched).where(among(connection, task_touched.c.id, some)))


def briefs(connection: Connection, task_ids: Collection[int]) -> list[TaskBrief]:
    """Those of the tasks that are not over."""
    found: list[TaskBrief] = []
    ids = sorted(task_ids)
    for start in range(0, len(ids), 1000):
        query = select(task.c.id, task.c.state, task.c.input_closed).where(
            among(connection, task.c.id, ids[start : start + 1000]), task.c.state.in_(_OPEN)
        )
        found += [TaskBrief(row.id, TaskState(row.state), row.input_closed) for row in connection.execute(query)]
    return found


def hold(connection: Connection, task_id: int) -> TaskBrief | None:
    """A task, its row held until the transaction ends."""
    query = select(task.c.id, task.c.state, task.c.input_closed).where(task.c.id == task_id).with_for_update()
    row = connection.execute(query).first()
    return None if row is None else TaskBrief(row.id, TaskState(row.state), row.input_closed)


def with_jobs(connection: Connection, task_ids: Sequence[int]) -> set[int]:
    """Those of the tasks that have or had a job, and of which it was said that they don't scout."""
    found: set[int] = set()
    for start in range(0, len(task_ids), 1000):
        query = select(task.c.id).where(
            among(connection, task.c.id, task_ids[start : start + 1000]),
            task.c.scouts_left == NO_SCOUTS,
            select(job.c.id).where(job.c.task_id == task.c.id).exists(),
        )
        found |= {row.id for row in connection.execute(query)}
    return found


def suspects(connection: Connection, limit: int = 1000) -> set[int]:
    """Open tasks that look as if they should have moved on: no open unit by the counts, or ready with a job.

    One statement, whose cost is a look at an index for each open task.
    """
    open_unit = (
        select(unit_count.c.n)
        .where(unit_count.c.task_id == task.c.id, unit_count.c.state.in_(OPEN_UNIT_CODES), unit_count.c.n > 0)
        .exists()
    )
    any_job = select(job.c.id).where(job.c.task_id == task.c.id).exists()
    query = (
        select(task.c.id)
        .where(task.c.state.in_(_ENDING))
        .where(or_(task.c.input_closed & ~open_unit, (task.c.state == TaskState.READY.value) & any_job))
        .where(~select(task_move.c.task_id).where(task_move.c.task_id == task.c.id).exists())
        .limit(limit)
    )
    return {row.id for row in connection.execute(query)}


_OPEN = sorted(state.value for state in TaskState if state not in FINAL_TASK_STATES)
_ENDING = sorted(
    state.value
    for state in (TaskState.PENDING, TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING, TaskState.FINISHING)
)


def of_workflow(connection: Connection, workflow_id: int) -> list[int]:
    """The tasks of a workflow, in the order of its stages."""
    query = select(task.c.id).where(task.c.workflow_id == workflow_id).order_by(task.c.position)
    return [row.id for row in connection.execute(query)]


def owner_of(connection: Connection, workflow_id: int) -> tuple[str, str | None]:
    """Owner and group of a workflow that is there."""
    row = connection.execute(select(workflow.c.owner, workflow.c.group_name).where(workflow.c.id == workflow_id)).one()
    return row.owner, row.group_name


def change_spec(connection: Connection, row: TaskRow, changes: Mapping[str, Any]) -> None:
    """Change fields of a task's description; its row must be held by this transaction."""
    spec = msgspec.structs.replace(row.spec, **changes)
    values: dict[str, Any] = {"spec": msgspec.json.encode(spec).decode()}
    values |= {name: changes[name] for name in ("priority", "share") if name in changes}
    connection.execute(update(task).where(task.c.id == row.id).values(**values))
    if "share" in changes:
        job_counts.change_share(connection, row.id, row.spec.share, changes["share"])


def specs_of(connection: Connection, workflow_id: int) -> list[dict[str, Any]]:
    """The stages of a workflow as they were submitted, in their order."""
    query = select(task.c.id, task.c.spec).where(task.c.workflow_id == workflow_id).order_by(task.c.position)
    rows = connection.execute(query).all()
    stages = [inputs.restored(connection, row.id, msgspec.json.decode(row.spec)) for row in rows]
    return [msgspec.to_builtins(stage) for stage in stages]
