"""Making units of files: for the agents that resolve input and feed the next stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.states import FINAL_TASK_STATES, TaskState, UnitState
from common.wire import CounterInput, FileSpec, SingleInput
from server.dispatch.context import Dispatcher
from server.engine.inputs import Cutter, Piece
from server.engine.world import World
from server.store import inputs, outputs, projects, recalls, units, workflows
from server.store.database import Connection
from server.store.recalls import Wanted
from server.store.units import NewUnit
from server.store.workflows import TaskRow


def make_units(
    dispatcher: Dispatcher, connection: Connection, task: TaskRow, files: Sequence[FileSpec], now: float
) -> int:
    """Make units of files, behind those that the task has; how many.

    The task's row must be held, and has still to be told their number.
    """
    # A storage that was described a moment ago must not be taken for unknown: its units would be lost.
    world = dispatcher.looks.fresh().world
    cutter = cutter_of(dispatcher, task, world)
    if task.outside:
        cutter = replace(cutter, virtual=projects.is_virtual(connection, task.id))
    pieces = [piece for file in files for piece in cutter.pieces(file)]
    if not pieces:
        return 0
    ids = units.create(
        connection, task.id, [_unit(task.resolved + index, piece) for index, piece in enumerate(pieces)], now
    )
    if task.outside:
        projects.know_files(connection, task.id, zip((piece.file.did for piece in pieces), ids, strict=True))
    waiting = [
        _wanted(unit_id, piece, world, cutter.stagers)
        for unit_id, piece in zip(ids, pieces, strict=True)
        if piece.on_tape
    ]
    recalls.want(connection, task.id, waiting, now)
    return len(ids)


def cutter_of(dispatcher: Dispatcher, task: TaskRow, world: World) -> Cutter:
    """How a task's files become units."""
    given = task.spec.input
    per_unit = None if isinstance(given, (CounterInput, SingleInput)) else given.events_per_unit
    return Cutter(world, task.spec.merge, per_unit, frozenset(dispatcher.plugins.stagers))


def _unit(seq: int, piece: Piece) -> NewUnit:
    state = UnitState.LOST if piece.problem else UnitState.PENDING if piece.on_tape else UnitState.READY
    return NewUnit(
        seq,
        piece.locations,
        file=piece.file,
        events=piece.events,
        state=state,
        first_event=piece.first_event,
        grouping=piece.grouping,
        problem=piece.problem,
    )


def _wanted(unit_id: int, piece: Piece, world: World, stagers: frozenset[str]) -> Wanted:
    """The copy to be recalled: the first that a stager can bring back."""
    able = [each for each in piece.file.replicas if _recallable(each.storage, world, stagers)]
    first = min(able, key=lambda replica: replica.storage)
    return Wanted(unit_id, first.storage, first.path)


def _recallable(storage: str, world: World, stagers: frozenset[str]) -> bool:
    spec = world.storages.get(storage)
    return spec is not None and spec.tape and spec.stager in stagers


def missing_stages(connection: Connection, task: TaskRow) -> list[str]:
    """The stages of secondary inputs that may still give files: until they are over, no job of the task is complete."""
    wanted = {each.stage for each in task.spec.secondary_inputs if each.stage is not None}
    if not wanted:
        return []
    found = workflows.parents(connection, task.id)
    return [
        stage
        for parent_id, (stage, state) in found.items()
        if stage in wanted and not is_over(connection, parent_id, state)
    ]


def is_over(connection: Connection, task_id: int, state: TaskState) -> bool:
    """Whether a task will give no more outputs to the stages behind it."""
    return state in FINAL_TASK_STATES and not outputs.unfed(connection, task_id, 1)


def empty_streams(connection: Connection, task: TaskRow) -> str:
    """What is wrong with a task's secondary inputs once their stages are over, if so."""
    if not task.spec.secondary_inputs:
        return ""
    counts = inputs.secondary_counts(connection, task.id)
    empty = [each.name for each in task.spec.secondary_inputs if not counts.get(each.name)]
    return f"secondary input {', '.join(empty)} has no files" if empty else ""
