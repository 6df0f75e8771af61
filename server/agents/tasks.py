"""Move tasks on: to running when they have jobs, to their end when all units are over; pause those that do harm.

Ten thousand open tasks cost nothing while nothing happens to them: the agents look at what was touched since they last
looked. :func:`advance_all` goes over all now and then, for what a crash left untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.states import TaskState, UnitState
from common.wire import CounterInput
from server.dispatch.commands import SLICE, move_units
from server.dispatch.context import Dispatcher
from server.engine import problems as rules
from server.engine.tasks import ENDING, Verdict, ending
from server.store import inputs, moves, problems, tasks, units, workflows
from server.store.database import Connection
from server.store.moves import MoveKind
from server.store.tasks import TaskBrief

CHUNK = 1000
"""Tasks whose counts are read at once."""
PAUSABLE = (TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING)
KEEP_PROBLEMS_S = 7 * 86400.0
UNCLAIMED = (UnitState.PENDING, UnitState.READY)


def advance_tasks(dispatcher: Dispatcher) -> int:
    """Move on the tasks that were touched, and the units that commands move; how many tasks and units moved."""
    moved = move_units(dispatcher)
    with dispatcher.database.read() as connection:
        touched = tasks.touched(connection)
        briefs = tasks.briefs(connection, touched.ids | touched.moved)
    briefs = [each for each in briefs if each.id in touched.ids or each.state in tasks.MOVED_BY_ANY]
    advanced = _advance_all_of(dispatcher, briefs, touched.drained)
    if touched.marks:
        with dispatcher.database.write(durable=False) as connection:
            tasks.forget_touched(connection, touched.marks)
    return moved + advanced


def advance_all(dispatcher: Dispatcher) -> int:
    """Move on every task that should have moved and was not touched; how many."""
    with dispatcher.database.read() as connection:
        briefs = tasks.briefs(connection, tasks.suspects(connection))
    return _advance_all_of(dispatcher, briefs, 0)


def _advance_all_of(dispatcher: Dispatcher, briefs: Sequence[TaskBrief], drained: int) -> int:
    """Move on those of the tasks that have to; ``drained`` is how many open units any has lost since the roll-up."""
    moved = 0
    for start in range(0, len(briefs), CHUNK):
        chunk = briefs[start : start + CHUNK]
        with dispatcher.database.read() as connection:
            ids = _with_jobs(connection, chunk) | _at_their_end(connection, chunk, drained)
        for task_id in sorted(ids):
            with dispatcher.database.write() as connection:
                moved += _advance(connection, task_id, dispatcher.now())
    if moved:
        dispatcher.changed()
    return moved


def _with_jobs(connection: Connection, briefs: Sequence[TaskBrief]) -> set[int]:
    ready = [each.id for each in briefs if each.state == TaskState.READY]
    return tasks.with_jobs(connection, ready) if ready else set()


def _at_their_end(connection: Connection, briefs: Sequence[TaskBrief], drained: int) -> set[int]:
    """Those of the tasks that end now, or were told to finish and have units to let go of."""
    closed = [each.id for each in briefs if each.state in ENDING and each.input_closed]
    still = tasks.surely_open(connection, closed, drained) if closed else set()
    asked = [
        each
        for each in briefs
        if each.state == TaskState.FINISHING or (each.state in ENDING and each.input_closed and each.id not in still)
    ]
    counts = units.counts(connection, [each.id for each in asked]) if asked else {}
    return {each.id for each in asked if _has_to_move(each, counts[each.id])}


def _has_to_move(brief: TaskBrief, counts: Mapping[UnitState, int]) -> bool:
    return _left_over(brief, counts) or ending(brief.state, counts, brief.input_closed) is not None


def _left_over(brief: TaskBrief, counts: Mapping[UnitState, int]) -> bool:
    """Whether a task that was told to finish has units that came back from their jobs."""
    return brief.state == TaskState.FINISHING and any(counts.get(state, 0) > 0 for state in UNCLAIMED)


def _advance(connection: Connection, task_id: int, now: float) -> bool:
    # Looked at again with its row held: a person may have had failed units tried again meanwhile.
    brief = tasks.hold(connection, task_id)
    if brief is None or moves.of_task(connection, task_id) is not None:
        return False  # while a command moves its units, no count is the last
    counts = units.counts(connection, [task_id])[task_id]
    if _left_over(brief, counts):
        moves.begin(connection, task_id, MoveKind.TRIM, now)
        return moves.work_slice(connection, task_id, SLICE, now).moved > 0
    verdict = ending(brief.state, counts, brief.input_closed)
    if verdict is not None:
        if brief.state == TaskState.FINISHING and verdict.state == TaskState.DONE and _cut_short(connection, task_id):
            verdict = Verdict(TaskState.FINISHED, "told to finish before all of its input was units")
        return workflows.move(connection, brief, verdict.state, now, reason=verdict.reason, final=True)
    if brief.state != TaskState.READY or not tasks.with_jobs(connection, [task_id]):
        return False
    return workflows.move(connection, brief, TaskState.RUNNING, now)


def _cut_short(connection: Connection, task_id: int) -> bool:
    """Whether a task has input that never became units."""
    task = workflows.get_task(connection, task_id)
    given = task.spec.input if task is not None else None
    if task is not None and isinstance(given, CounterInput):
        return task.resolved < given.count
    return inputs.untaken(connection, task_id)


def pause_problem_tasks(dispatcher: Dispatcher) -> int:
    """Pause tasks most of whose last jobs went wrong in the same way; how many. Looks at tasks with new bad ends only."""
    jobs = dispatcher.looks.get().knobs.problem_jobs
    with dispatcher.database.read() as connection:
        ids = problems.unlooked(connection)
    paused = 0
    for task_id in ids:
        with dispatcher.database.write() as connection:
            paused += _pause_problem(connection, task_id, jobs, dispatcher.now())
    with dispatcher.database.write(durable=False) as connection:
        problems.purge(connection, dispatcher.now() - KEEP_PROBLEMS_S)
    if paused:
        dispatcher.changed()
    return paused


def _pause_problem(connection: Connection, task_id: int, jobs: int, now: float) -> bool:
    brief = tasks.hold(connection, task_id)
    problems.mark_looked(connection, task_id)
    if brief is None or brief.state not in PAUSABLE:
        return False
    reason = rules.problem(problems.last_ends(connection, task_id, rules.window(jobs)), jobs)
    if not reason:
        return False
    state = TaskState.RUNNING if brief.state == TaskState.READY else brief.state
    return workflows.move(connection, brief, TaskState.PAUSED, now, reason=reason, resume_state=state)
