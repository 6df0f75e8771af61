"""Mind the projects: take files from silent workers, abandon idle projects, carry restarts and copies on."""

from __future__ import annotations

from collections import Counter

from common.events import EventKind
from common.states import TaskState, UnitState, allowed
from server.dispatch.context import Dispatcher
from server.dispatch.projects import carry_on_restart
from server.store import events, inputs, project_moves, projects, reservations, workflows
from server.store.project_moves import Copying
from server.store.reservations import Moved

COPY_SLICE = 5000
"""Files copied in one transaction."""


def time_out_workers(dispatcher: Dispatcher) -> int:
    """Take files back from workers that held them for too long; how many."""
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        overdue = reservations.overdue(connection, now)
    if not overdue:
        return 0
    with dispatcher.database.write() as connection:
        ids = projects.tasks_of(connection, overdue)
        failing = projects.failing(connection, ids)
        moved = reservations.time_out(connection, overdue, failing, now)
        _tell(dispatcher, moved)
        for project_id, n in Counter(each.task_id for each in moved).items():
            detail = {"files": n, "failed": project_id in failing}
            kind = EventKind.PROJECT_TIMED_OUT
            events.add(connection, events.Event(now, kind, "task", project_id, project_id, detail=detail))
    return len(overdue)


def _tell(dispatcher: Dispatcher, moved: list[Moved]) -> None:
    back = [each for each in moved if each.state is UnitState.READY]
    for each in back:
        dispatcher.projects.came_back(each.task_id, each.bucket_id, each.seq)
    if back:
        dispatcher.changed()


def mind_projects(dispatcher: Dispatcher) -> int:
    """Abandon projects of which nothing is heard, and carry on what takes several transactions; how much was done."""
    done = _begin(dispatcher) + _abandon(dispatcher)
    with dispatcher.database.read() as connection:
        restarting = project_moves.restarting(connection)
        copying = project_moves.copying(connection)
    done += sum(carry_on_restart(dispatcher, project_id) for project_id in restarting)
    done += sum(_copy(dispatcher, each) for each in copying)
    if done:
        dispatcher.changed()
    return done


def _begin(dispatcher: Dispatcher) -> int:
    """Projects that workers have begun with run."""
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        begun = projects.begun(connection)
    for project_id in begun:
        with dispatcher.database.write() as connection:
            row = workflows.get_task(connection, project_id, lock=True)
            if row is not None and row.state is TaskState.READY:
                workflows.move(connection, row, TaskState.RUNNING, now)
    return len(begun)


def _abandon(dispatcher: Dispatcher) -> int:
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        idle = projects.idle(connection, now)
    for project_id in idle:
        with dispatcher.database.write() as connection:
            row = workflows.get_task(connection, project_id, lock=True)
            if projects.still_idle(connection, project_id, now) and row and allowed(row.state, TaskState.PAUSED):
                reason = "abandoned: no worker was heard of for too long"
                workflows.move(connection, row, TaskState.PAUSED, now, reason=reason, resume_state=row.state)
    return len(idle)


def _copy(dispatcher: Dispatcher, of: Copying) -> int:
    """The next files of a copy; how many. A copy that was cancelled, or whose original is gone, ends with what it has."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        row = workflows.get_task(connection, of.task_id, lock=True)
        source = inputs.source_of(connection, of.task_id)
        if row is None or source is None or row.state is TaskState.ABORTED:
            project_moves.copied(connection, of, None)
            return 0
        files, after = project_moves.copy_slice(connection, of, COPY_SLICE)
        if not project_moves.copied(connection, of, after):
            return 0
        if files:
            source = inputs.add_files(connection, source, files, None, now)
        if after is None:
            inputs.close(connection, source, now)
    return len(files)
