"""What the commit needs of a job's task."""

from __future__ import annotations

from common.wire import OutputPattern, OutputRecord, OutputRole, Registration
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.store.database import Connection
from server.store.workflows import TaskRow


def task_facts(dispatcher: Dispatcher, connection: Connection, task_id: int) -> TaskRow:
    """A task's scope and definition.

    Raises:
        NotFound: it is gone.
    """
    found = dispatcher.task(connection, task_id)
    if found is None:
        raise NotFound(f"task {task_id} is gone")
    return found


def pattern_of(task: TaskRow, file: OutputRecord) -> tuple[int | None, OutputPattern | None]:
    """The pattern of a task that an output says it matched, and its number from 1 on; none for a log."""
    if file.role == OutputRole.OUTPUT:
        for number, each in enumerate(task.spec.outputs, 1):
            if each.pattern == file.pattern:
                return number, each
    return None, None


def registration_of(task: TaskRow, file: OutputRecord, of_storage: Registration) -> Registration:
    """Who registers an output: as its task says, else as its storage does. Logs are never registered."""
    if file.role != OutputRole.OUTPUT:
        return Registration.NONE
    return of_storage if task.spec.registration is None else task.spec.registration
