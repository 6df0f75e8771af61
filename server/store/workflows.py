"""Workflows and tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, Select, insert, or_, select, update

from common.states import TaskState, require
from common.wire import Measured, StageSpec, TaskView, WorkflowRequest, WorkflowView
from server.engine.inputs import feeding_order, feeding_stages
from server.store import events, inputs, job_counts, tasks, units
from server.store.access import Sight
from server.store.lists import among
from server.store.measurements import decoded
from server.store.schema import task, workflow
from server.store.schema_inputs import task_feed


@dataclass(frozen=True)
class TaskRow:
    """A task, with what the rules need of its workflow."""

    id: int
    workflow_id: int
    stage: str
    state: TaskState
    state_reason: str
    resume_state: TaskState | None
    spec: StageSpec
    resolved: int
    input_closed: bool
    created: float
    ended: float | None
    measuring: bool
    owner: str
    scope: str
    measured: Measured | None = None
    outside: bool = False


def add(connection: Connection, request: WorkflowRequest, owner: str, scope: str, now: float) -> int:
    """Write down a checked workflow and its tasks; its id."""
    workflow_id = connection.execute(
        insert(workflow)
        .values(
            name=request.name,
            owner=owner,
            group_name=request.group,
            scope=scope,
            labels=msgspec.json.encode(request.labels).decode(),
            created=now,
            request_id=request.request_id,
        )
        .returning(workflow.c.id)
    ).scalar_one()
    ids: dict[str, int] = {}
    positions = {stage.name: position for position, stage in enumerate(request.stages)}
    # Whoever feeds is written first, so that going by id goes with the flow: locks are taken in that order, too.
    for stage in feeding_order(request.stages):
        ids[stage.name] = connection.execute(
            insert(task)
            .values(
                workflow_id=workflow_id,
                stage=stage.name,
                position=positions[stage.name],
                state=TaskState.DEFINED.value,
                priority=stage.priority,
                share=stage.share,
                spec=msgspec.json.encode(inputs.lighter(stage)).decode(),
                created=now,
            )
            .returning(task.c.id)
        ).scalar_one()
        events.add(
            connection,
            events.Event(now, "TASK_DEFINED", "task", ids[stage.name], ids[stage.name], target=TaskState.DEFINED),
        )
        inputs.begin(connection, ids[stage.name], stage, now)
        feeds = [{"parent_id": ids[name], "child_id": ids[stage.name]} for name in feeding_stages(stage)]
        if feeds:
            connection.execute(insert(task_feed), feeds)
    return int(workflow_id)


def by_request(connection: Connection, owner: str, request_id: str) -> int | None:
    """The workflow that this request of this person made, if it did."""
    return connection.execute(
        select(workflow.c.id).where(workflow.c.owner == owner, workflow.c.request_id == request_id)
    ).scalar()


_TASKS = select(task, workflow.c.owner, workflow.c.scope).join(workflow, workflow.c.id == task.c.workflow_id)


def get_task(connection: Connection, task_id: int, *, lock: bool = False) -> TaskRow | None:
    """A task by its id; with ``lock`` its row is held until the transaction ends."""
    query = _TASKS.where(task.c.id == task_id)
    if lock:
        query = query.with_for_update(of=task)
    row = connection.execute(query).mappings().first()
    return None if row is None else _row(row)


def get_tasks(connection: Connection, task_ids: Sequence[int]) -> list[TaskRow]:
    """Those of the tasks that are there."""
    return _all(connection, _TASKS.where(among(connection, task.c.id, task_ids)))


def tasks_in(connection: Connection, states: Iterable[TaskState], limit: int = 10_000) -> list[TaskRow]:
    """Tasks in some states, oldest first."""
    wanted = [state.value for state in states]
    return _all(connection, _TASKS.where(task.c.state.in_(wanted)).order_by(task.c.id).limit(limit))


def children(connection: Connection, task_id: int) -> list[TaskRow]:
    """The tasks that a task feeds; their rows are held until the transaction ends, after the parent's."""
    fed = select(task_feed.c.child_id).where(task_feed.c.parent_id == task_id)
    query = _TASKS.where(task.c.id.in_(fed)).order_by(task.c.id)
    return _all(connection, query.with_for_update(of=task))


def parents(connection: Connection, task_id: int) -> dict[int, tuple[str, TaskState]]:
    """Stage and state of the tasks that feed a task, by their ids."""
    query = (
        select(task.c.id, task.c.stage, task.c.state)
        .join(task_feed, task_feed.c.parent_id == task.c.id)
        .where(task_feed.c.child_id == task_id)
        .order_by(task.c.id)
    )
    return {row.id: (row.stage, TaskState(row.state)) for row in connection.execute(query)}


def feeding(connection: Connection, states: Iterable[TaskState]) -> list[int]:
    """Tasks with a child in one of these states that may still get something of them."""
    query = (
        select(task_feed.c.parent_id)
        .join(task, task.c.id == task_feed.c.child_id)
        .where(task.c.state.in_([state.value for state in states]))
        .where(or_(~task.c.input_closed, task.c.state == TaskState.PENDING.value))
        .distinct()
        .order_by(task_feed.c.parent_id)
    )
    return [row.parent_id for row in connection.execute(query)]


def _all(connection: Connection, query: Select[Any]) -> list[TaskRow]:
    return [_row(row) for row in connection.execute(query).mappings()]


def _row(row: RowMapping) -> TaskRow:
    return TaskRow(
        id=row["id"],
        workflow_id=row["workflow_id"],
        stage=row["stage"],
        state=TaskState(row["state"]),
        state_reason=row["state_reason"],
        resume_state=TaskState(row["resume_state"]) if row["resume_state"] else None,
        spec=msgspec.json.decode(row["spec"], type=StageSpec),
        resolved=row["resolved"],
        input_closed=row["input_closed"],
        created=row["created"],
        ended=row["ended"],
        measuring=bool(row["measuring"]),
        owner=row["owner"],
        scope=row["scope"],
        measured=decoded(row["measured"]),
        outside=bool(row["outside"]),
    )


def move(
    connection: Connection,
    row: TaskRow | tasks.TaskBrief,
    target: TaskState,
    now: float,
    *,
    reason: str = "",
    resume_state: TaskState | None = None,
    final: bool = False,
    who: str = "agent",
) -> bool:
    """Move a task on, if it is still in the state that ``row`` says; False if somebody else moved it.

    Raises:
        TransitionError: the table has no such move.
    """
    require(row.state, target)
    result = connection.execute(
        update(task)
        .where(task.c.id == row.id, task.c.state == row.state.value)
        .values(
            state=target.value,
            state_reason=reason,
            resume_state=resume_state.value if resume_state else None,
            ended=now if final else None,
        )
    )
    if result.rowcount:
        tasks.touch(connection, [row.id])
        events.add(
            connection,
            events.Event(
                now, f"TASK_{target.name}", "task", row.id, row.id, source=row.state, target=target,
                detail={"reason": reason, "who": who},
            ),
        )  # fmt: skip
    return bool(result.rowcount)


def explain(connection: Connection, row: TaskRow, reason: str) -> None:
    """Say why a task waits in the state that it is in."""
    if row.state_reason != reason:
        connection.execute(
            update(task).where(task.c.id == row.id, task.c.state == row.state.value).values(state_reason=reason)
        )


def set_resolved(connection: Connection, task_id: int, resolved: int, closed: bool) -> None:
    """How many units of the input were made, and whether no more will come."""
    connection.execute(update(task).where(task.c.id == task_id).values(resolved=resolved, input_closed=closed))
    if closed:
        units.input_closes(connection, task_id)
    else:
        units.input_opens(connection, task_id)
    tasks.touch(connection, [task_id])


def view_tasks(connection: Connection, rows: Sequence[TaskRow]) -> list[TaskView]:
    """Tasks as people see them."""
    ids = [row.id for row in rows]
    unit_counts = units.counts(connection, ids)
    jobs_by_state = job_counts.by_task(connection, ids)
    return [
        TaskView(
            id=row.id,
            workflow_id=row.workflow_id,
            stage=row.stage,
            state=row.state,
            state_reason=row.state_reason,
            priority=row.spec.priority,
            share=row.spec.share,
            requirements=row.spec.requirements,
            input_kind=str(row.spec.input.__struct_config__.tag),
            input_closed=row.input_closed,
            units={state.value: n for state, n in unit_counts[row.id].items()},
            jobs={state.value: n for state, n in jobs_by_state[row.id].items()},
            created=row.created,
            ended=row.ended,
            measured=row.measured,
        )
        for row in rows
    ]


def page_tasks(
    connection: Connection,
    *,
    workflow_id: int | None,
    state: TaskState | None,
    after: int,
    limit: int,
    sight: Sight | None = None,
) -> list[TaskView]:
    """Tasks by id, those in ``sight`` only."""
    query = _TASKS.where(task.c.id > after).order_by(task.c.id).limit(limit)
    if sight is not None:
        query = query.where(sight.workflows())
    if workflow_id is not None:
        query = query.where(task.c.workflow_id == workflow_id)
    if state is not None:
        query = query.where(task.c.state == state.value)
    return view_tasks(connection, _all(connection, query))


def view_workflow(connection: Connection, workflow_id: int) -> WorkflowView | None:
    """A workflow and its tasks as people see them."""
    found = page_workflows(connection, owner=None, after=workflow_id - 1, limit=1)
    return found[0] if found and found[0].id == workflow_id else None


def page_workflows(
    connection: Connection, *, owner: str | None, after: int, limit: int, sight: Sight | None = None
) -> list[WorkflowView]:
    """Workflows with their tasks, by id, those in ``sight`` only."""
    query = select(workflow).where(workflow.c.id > after).order_by(workflow.c.id).limit(limit)
    if sight is not None:
        query = query.where(sight.workflows())
    if owner is not None:
        query = query.where(workflow.c.owner == owner)
    rows = connection.execute(query).all()
    tasks: dict[int, list[TaskView]] = {row.id: [] for row in rows}
    found = _all(connection, _TASKS.where(task.c.workflow_id.in_(list(tasks))).order_by(task.c.position))
    for each in view_tasks(connection, found):
        tasks[each.workflow_id].append(each)
    return [
        WorkflowView(
            id=row.id,
            name=row.name,
            owner=row.owner,
            scope=row.scope,
            group=row.group_name,
            labels=msgspec.json.decode(row.labels),
            created=row.created,
            tasks=tasks[row.id],
        )
        for row in rows
    ]


def names(connection: Connection, workflow_ids: Iterable[int]) -> dict[int, str]:
    """The names of workflows."""
    query = select(workflow.c.id, workflow.c.name).where(among(connection, workflow.c.id, list(workflow_ids)))
    return {row.id: row.name for row in connection.execute(query)}
