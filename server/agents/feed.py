"""Feed the next stage: confirmed outputs become units, or secondary input, of the tasks that wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from common.states import FINAL_TASK_STATES, TaskState
from common.wire import FileSpec, OutputRole, ReplicaSpec, StageInput
from server.agents.making import empty_streams, is_over, make_units, missing_stages
from server.dispatch.context import Dispatcher
from server.engine.inputs import sources_of
from server.store import inputs, outputs, workflows
from server.store.database import Connection
from server.store.outputs import OutputRow
from server.store.workflows import TaskRow

SLICE = 1000
FED_STATES = (TaskState.PENDING, TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING, TaskState.PAUSED)


def feed_next_stage(dispatcher: Dispatcher) -> int:
    """A slice of outputs of each task that feeds others; how many units were made, inputs closed and tasks moved."""
    with dispatcher.database.read() as connection:
        parents = workflows.feeding(connection, FED_STATES)
    handled = sum(_feed(dispatcher, parent_id) for parent_id in parents)
    if handled:
        dispatcher.changed()
    return handled


def _feed(dispatcher: Dispatcher, parent_id: int) -> int:
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        # The parent's end is read before its outputs: an output confirmed later than that cannot exist.
        parent = workflows.get_task(connection, parent_id, lock=True)
        if parent is None:
            return 0
        rows = outputs.unfed(connection, parent_id, SLICE)
        over = parent.state in FINAL_TASK_STATES and len(rows) < SLICE
        handled = 0
        for child in workflows.children(connection, parent_id):
            if child.state not in FINAL_TASK_STATES:
                handled += _feed_child(dispatcher, connection, parent, child, rows, over, now)
        outputs.mark_fed(connection, [row.id for row in rows])
        return handled


def _feed_child(
    dispatcher: Dispatcher,
    connection: Connection,
    parent: TaskRow,
    child: TaskRow,
    rows: Sequence[OutputRow],
    over: bool,
    now: float,
) -> int:
    """Give outputs to one child, close its input when all its parents are over, and move it on; how much was done."""
    made = 0
    closed = False
    if isinstance(child.spec.input, StageInput) and not child.input_closed:
        files = _matching(rows, [each.pattern for each in sources_of(child.spec.input) if each.stage == parent.stage])
        made = make_units(dispatcher, connection, child, files, now)
        closed = over and _all_over(connection, child, parent)
        if made or closed:
            workflows.set_resolved(connection, child.id, child.resolved + made, closed)
    added = _add_secondary(connection, parent, child, rows)
    moved = _move_on(connection, child, child.resolved + made, now)
    return made + closed + added + moved


def _all_over(connection: Connection, child: TaskRow, ended: TaskRow) -> bool:
    """Whether the last of the stages that give units is over; ``ended`` is."""
    given = child.spec.input
    names = {each.stage for each in sources_of(given)} if isinstance(given, StageInput) else set()
    return all(
        parent_id == ended.id or stage not in names or is_over(connection, parent_id, state)
        for parent_id, (stage, state) in workflows.parents(connection, child.id).items()
    )


def _add_secondary(connection: Connection, parent: TaskRow, child: TaskRow, rows: Sequence[OutputRow]) -> int:
    streams = [each for each in child.spec.secondary_inputs if each.stage == parent.stage]
    if not streams or not rows:
        return 0
    counts = inputs.secondary_counts(connection, child.id)
    added = 0
    for stream in streams:
        files = _matching(rows, [stream.pattern])
        inputs.add_secondary(connection, child.id, stream.name, counts.get(stream.name, 0), files)
        added += len(files)
    return added


def _move_on(connection: Connection, child: TaskRow, units: int, now: float) -> bool:
    """From pending to ready, with the first unit and all secondary input there."""
    if child.state != TaskState.PENDING or missing_stages(connection, child):
        return False
    problem = empty_streams(connection, child)
    if problem:
        return workflows.move(connection, child, TaskState.BROKEN, now, reason=problem, final=True)
    return units > 0 and workflows.move(connection, child, TaskState.READY, now)


def _matching(rows: Sequence[OutputRow], patterns: Sequence[str]) -> list[FileSpec]:
    return [
        FileSpec(
            did=row.did,
            size=row.size,
            events=row.events,
            checksum=row.checksum,
            replicas=[ReplicaSpec(row.storage, row.path)],
            attributes=dict(row.attributes),
        )
        for row in rows
        if row.role == OutputRole.OUTPUT.value and any(fnmatchcase(row.name, pattern) for pattern in patterns)
    ]
