"""Feed the next stage: confirmed outputs become units of the tasks that wait for them."""

from __future__ import annotations

from fnmatch import fnmatchcase

from common.states import FINAL_TASK_STATES, TaskState
from common.wire import FileSpec, OutputRole, ReplicaSpec, StageInput
from server.dispatch.context import Dispatcher
from server.engine.world import World
from server.store import outputs, units, workflows
from server.store.outputs import OutputRow
from server.store.units import NewUnit
from server.store.workflows import TaskRow

SLICE = 1000
FED_STATES = (TaskState.PENDING, TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING, TaskState.PAUSED)


def feed_next_stage(dispatcher: Dispatcher) -> int:
    """A slice of outputs for each task that waits for a stage; how many units were made or inputs closed."""
    with dispatcher.database.read() as connection:
        fed = [task for task in workflows.tasks_in(connection, FED_STATES) if task.parent_id is not None]
    parents = {task.parent_id for task in fed if not task.input_closed and task.parent_id is not None}
    handled = sum(_feed(dispatcher, parent_id) for parent_id in sorted(parents))
    if handled:
        dispatcher.changed()
    return handled


def _feed(dispatcher: Dispatcher, parent_id: int) -> int:
    now = dispatcher.now()
    look = dispatcher.looks.get()
    with dispatcher.database.write() as connection:
        # The parent's end is read before its outputs: an output confirmed later than that cannot exist.
        parent = workflows.get_task(connection, parent_id, lock=True)
        if parent is None:
            return 0
        rows = outputs.unfed(connection, parent_id, SLICE)
        made = 0
        closed = 0
        for child in workflows.children(connection, parent_id):
            if child.input_closed or child.state in FINAL_TASK_STATES:
                continue
            new = _units(child, rows, look.world)
            if new:
                units.create(connection, child.id, new, now)
            over = parent.state in FINAL_TASK_STATES and len(rows) < SLICE
            workflows.set_resolved(connection, child.id, child.resolved + len(new), over)
            if new and child.state == TaskState.PENDING:
                workflows.move(connection, child, TaskState.READY, now)
            made += len(new)
            closed += over
        outputs.mark_fed(connection, [row.id for row in rows])
        return made + closed


def _units(child: TaskRow, rows: list[OutputRow], world: World) -> list[NewUnit]:
    given = child.spec.input
    if not isinstance(given, StageInput):
        return []
    chosen = [row for row in rows if row.role == OutputRole.OUTPUT.value and fnmatchcase(row.name, given.pattern)]
    return [
        NewUnit(
            child.resolved + index,
            world.locations_of([row.storage]),
            file=FileSpec(
                did=row.did,
                size=row.size,
                events=row.events,
                checksum=row.checksum,
                replicas=[ReplicaSpec(row.storage, row.path)],
            ),
        )
        for index, row in enumerate(chosen)
    ]
