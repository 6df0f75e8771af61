"""Resolve input: make the units of new tasks, a slice at a time, so that a million-file task blocks nobody."""

from __future__ import annotations

from collections.abc import Iterator

from common.states import TaskState
from common.wire import CounterInput, FilesInput, SingleInput, StageInput
from server.dispatch.context import Dispatcher
from server.engine.world import World
from server.store import units, workflows
from server.store.units import NewUnit
from server.store.workflows import TaskRow

SLICE = 2000
"""Units made in one transaction."""


def resolve_input(dispatcher: Dispatcher) -> int:
    """One slice of each task whose input is not resolved yet; how many tasks."""
    with dispatcher.database.read() as connection:
        waiting = workflows.tasks_in(connection, [TaskState.DEFINED], limit=100)
    for task in waiting:
        _resolve(dispatcher, task.id)
    if waiting:
        dispatcher.changed()
    return len(waiting)


def _resolve(dispatcher: Dispatcher, task_id: int) -> None:
    now = dispatcher.now()
    look = dispatcher.looks.get()
    with dispatcher.database.write() as connection:
        task = workflows.get_task(connection, task_id, lock=True)
        if task is None or task.state != TaskState.DEFINED:
            return
        if isinstance(task.spec.input, StageInput):
            # It may have been fed already, before it was looked at here.
            target = TaskState.READY if task.resolved else TaskState.PENDING
            workflows.move(connection, task, target, now, reason=f"takes the outputs of stage {task.spec.input.stage}")
            return
        made = list(_slice(task, look.world))
        if made:
            units.create(connection, task.id, made, now)
        resolved = task.resolved + len(made)
        closed = resolved >= _total(task)
        workflows.set_resolved(connection, task.id, resolved, closed)
        if closed:
            workflows.move(connection, task, TaskState.READY, now)


def _total(task: TaskRow) -> int:
    given = task.spec.input
    if isinstance(given, FilesInput):
        return len(given.files)
    return given.count if isinstance(given, CounterInput) else 1


def _slice(task: TaskRow, world: World) -> Iterator[NewUnit]:
    given = task.spec.input
    first = task.resolved
    if isinstance(given, FilesInput):
        for seq, file in enumerate(given.files[first : first + SLICE], first):
            locations = world.locations_of(replica.storage for replica in file.replicas)
            yield NewUnit(seq, locations, file=file)
    elif isinstance(given, CounterInput):
        for seq in range(first, min(first + SLICE, given.count)):
            yield NewUnit(seq, counter=given.first + seq, events=given.events)
    elif isinstance(given, SingleInput):
        yield NewUnit(0)
