"""People add files to an input that is open, and close it."""

from __future__ import annotations

from common.states import TaskState
from common.wire import DatasetInput, FilesInput, InputsRequest, TaskView
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, Invalid, NotFound
from server.dispatch.reopening import reopen_children
from server.engine.access import Caller, may_command
from server.engine.workflow_inputs import Means, check_file_list
from server.store import deletions, events, inputs, tasks, workflows
from server.store.database import Connection
from server.store.inputs import Source
from server.store.workflows import TaskRow

ENDED = (TaskState.FAILED, TaskState.BROKEN, TaskState.ABORTED, TaskState.FINISHING)
"""States in which a task takes no more files."""
REOPENED = (TaskState.DONE, TaskState.FINISHED)
"""States that new files bring a task back from (incremental execution)."""


def add_files(dispatcher: Dispatcher, caller: Caller, task_id: int, request: InputsRequest) -> TaskView:
    """Give an open input more files; those that it has already are left out, so that a repeat does no harm.

    Raises:
        Invalid: it names every file that is wrong; nothing is taken.
        Conflict: the task takes no more.
        Forbidden: it is somebody else's.
    """
    look = dispatcher.looks.fresh()
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        task, source = _mine(connection, caller, task_id)
        given = task.spec.input
        if not isinstance(given, FilesInput):
            raise Conflict(f"the input of task {task_id} is a dataset: its catalogue is asked, files cannot be added")
        means = Means(look.world, stagers=frozenset(dispatcher.plugins.stagers))
        problems = list(
            check_file_list(request.files, "$.files", means, recall=True, events_per_unit=given.events_per_unit)
        )
        if problems:
            raise Invalid(
                f"the list has {len(problems)} mistakes" if len(problems) > 1 else problems[0].message,
                [(problem.path, problem.message) for problem in problems],
            )
        inputs.add_files(connection, source, request.files, given.events_per_unit, now)
        if task.input_closed:
            workflows.set_resolved(connection, task.id, task.resolved, False)
        if task.state in REOPENED:
            workflows.move(connection, task, TaskState.PENDING, now, reason="it was given more files", who=caller.name)
            reopen_children(connection, task.id, now, caller.name)
        _note(connection, "INPUT_ADDED", task, caller, len(request.files), now)
        view = _view(connection, task_id)
    dispatcher.changed()
    return view


def close_input(dispatcher: Dispatcher, caller: Caller, task_id: int) -> TaskView:
    """No more files will come: the task ends when those that it has are over. Asked again, it is answered alike.

    Raises:
        Conflict: its input was never open.
        Forbidden: it is somebody else's.
    """
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        task, source = _mine(connection, caller, task_id)
        if not source.closing:
            inputs.close(connection, source, now)
            _note(connection, "INPUT_CLOSED", task, caller, 0, now)
        view = _view(connection, task_id)
    dispatcher.changed()
    return view


def _mine(connection: Connection, caller: Caller, task_id: int) -> tuple[TaskRow, Source]:
    """A task with an open input that the caller may command, its row held."""
    task = workflows.get_task(connection, task_id, lock=True)
    if task is None:
        raise NotFound(f"there is no task {task_id}")
    owner, group = tasks.owner_of(connection, task.workflow_id)
    if not may_command(caller, owner, group):
        raise Forbidden(f"task {task_id} belongs to {owner}")
    if deletions.is_asked(connection, task.workflow_id):
        raise Conflict(f"workflow {task.workflow_id} of task {task_id} is being deleted")
    given = task.spec.input
    if not isinstance(given, (FilesInput, DatasetInput)) or not given.open:
        raise Conflict(f"the input of task {task_id} is not open: submit it with open = true to add files later")
    source = inputs.source_of(connection, task_id)
    if task.state in ENDED:
        raise Conflict(f"task {task_id} is {task.state.value}: it takes no more files")
    if source is None:
        limit = f": it has the {given.limit} files that it was limited to" if given.limit is not None else ""
        raise Conflict(f"task {task_id} takes no more files{limit}")
    return task, source


def _note(connection: Connection, kind: str, task: TaskRow, caller: Caller, files: int, now: float) -> None:
    detail = {"who": caller.name, "files": files}
    events.add(connection, events.Event(now, kind, "task", task.id, task.id, detail=detail))


def _view(connection: Connection, task_id: int) -> TaskView:
    row = workflows.get_task(connection, task_id)
    assert row is not None
    return workflows.view_tasks(connection, [row])[0]
