"""Routes of people: workflows, tasks, units, jobs, outputs, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.states import JobState, TaskState, UnitState
from common.wire import (
    JobPage,
    JobView,
    OutputPage,
    OutputRole,
    TaskPage,
    TaskView,
    UnitPage,
    WhyList,
    WorkflowPage,
    WorkflowRequest,
    WorkflowView,
)
from server.api.routing import Call, Role, Route, allow, page_of
from server.dispatch import look, rights, submit
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.store import jobs, outputs, units, workflows

_USER = allow(Role.USER)


def _next(items: Sequence[Any], limit: int) -> int | None:
    return items[-1].id if len(items) == limit else None


def _submit(dispatcher: Dispatcher, call: Call) -> WorkflowView:
    rights.check_submission(dispatcher, call.caller, call.body)
    return submit.submit(dispatcher, call.caller.name, call.body)


def _workflows(dispatcher: Dispatcher, call: Call) -> WorkflowPage:
    after, limit = page_of(call)
    sight = rights.sight_of(dispatcher, call.caller)
    with dispatcher.database.read() as connection:
        items = workflows.page_workflows(
            connection, owner=call.query.get("owner"), after=after, limit=limit, sight=sight
        )
    return WorkflowPage(next=_next(items, limit), items=items)


def _workflow(dispatcher: Dispatcher, call: Call) -> WorkflowView:
    workflow_id = call.number("workflow_id")
    with dispatcher.database.read() as connection:
        found = workflows.view_workflow(connection, workflow_id)
    if found is None:
        raise NotFound(f"there is no workflow {workflow_id}")
    return found


def _tasks(dispatcher: Dispatcher, call: Call) -> TaskPage:
    after, limit = page_of(call)
    workflow_id = call.count("workflow", 0) or None
    state = call.choice("state", TaskState)
    sight = rights.sight_of(dispatcher, call.caller)
    with dispatcher.database.read() as connection:
        items = workflows.page_tasks(
            connection, workflow_id=workflow_id, state=state, after=after, limit=limit, sight=sight
        )
    return TaskPage(next=_next(items, limit), items=items)


def _task(dispatcher: Dispatcher, call: Call) -> TaskView:
    with dispatcher.database.read() as connection:
        return workflows.view_tasks(connection, [_existing(connection, call)])[0]


def _existing(connection: Any, call: Call) -> workflows.TaskRow:
    task_id = call.number("task_id")
    row = workflows.get_task(connection, task_id)
    if row is None:
        raise NotFound(f"there is no task {task_id}")
    return row


def _units(dispatcher: Dispatcher, call: Call) -> UnitPage:
    after, limit = page_of(call)
    state = call.choice("state", UnitState)
    with dispatcher.database.read() as connection:
        task = _existing(connection, call)
        items = list(units.page(connection, task.id, state=state, after=after, limit=limit))
    return UnitPage(next=_next(items, limit), items=items)


def _outputs(dispatcher: Dispatcher, call: Call) -> OutputPage:
    after, limit = page_of(call)
    role = call.choice("role", OutputRole)
    world = dispatcher.looks.get().world
    with dispatcher.database.read() as connection:
        task = _existing(connection, call)
        word = role.value if role else None
        items, following = outputs.page(connection, task.id, world, role=word, after=after, limit=limit)
    return OutputPage(next=following, items=list(items))


def _jobs(dispatcher: Dispatcher, call: Call) -> JobPage:
    after, limit = page_of(call)
    task_id = call.count("task", 0) or None
    states = [state] if (state := call.choice("state", JobState)) else []
    sight = rights.sight_of(dispatcher, call.caller)
    with dispatcher.database.read() as connection:
        items = list(jobs.page(connection, task_id=task_id, states=states, after=after, limit=limit, sight=sight))
    return JobPage(next=_next(items, limit), items=items)


def _job(dispatcher: Dispatcher, call: Call) -> JobView:
    job_id = call.number("job_id")
    with dispatcher.database.read() as connection:
        found = jobs.view(connection, job_id)
    if found is None:
        raise NotFound(f"there is no job {job_id}")
    return found


def _why(dispatcher: Dispatcher, call: Call) -> WhyList:
    return WhyList(look.why_task(dispatcher, call.number("task_id")))


_PAGE = ("after", "limit")

ROUTES = [
    Route("POST", "/v1/workflows", _USER, _submit, "Submit a workflow", WorkflowRequest, WorkflowView, 201),
    Route("GET", "/v1/workflows", _USER, _workflows, "List workflows", reply=WorkflowPage, query=("owner", *_PAGE)),
    Route("GET", "/v1/workflows/{workflow_id}", _USER, _workflow, "Look at a workflow", reply=WorkflowView),
    Route("GET", "/v1/tasks", _USER, _tasks, "List tasks", reply=TaskPage, query=("workflow", "state", *_PAGE)),
    Route("GET", "/v1/tasks/{task_id}", _USER, _task, "Look at a task", reply=TaskView),
    Route("GET", "/v1/tasks/{task_id}/units", _USER, _units, "List units", reply=UnitPage, query=("state", *_PAGE)),
    Route(
        "GET", "/v1/tasks/{task_id}/outputs", _USER, _outputs, "List confirmed outputs", reply=OutputPage,
        query=("role", *_PAGE),
    ),
    Route("GET", "/v1/tasks/{task_id}/why", _USER, _why, "Why no slot takes its units", reply=WhyList),
    Route("GET", "/v1/jobs", _USER, _jobs, "List jobs", reply=JobPage, query=("task", "state", *_PAGE)),
    Route("GET", "/v1/jobs/{job_id}", _USER, _job, "Look at a job", reply=JobView),
]  # fmt: skip
