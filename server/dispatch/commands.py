"""People command tasks and workflows, and change what may change of a task that lives.

A command sets the task's state first, in a short transaction, and writes down what becomes of the units. Their move
follows in slices: the first ones at once, so that a small task is moved when the request is answered, the rest by an
agent. A claim rechecks the task's state, so what is not moved yet is not claimed either.
"""

from __future__ import annotations

from common.states import FINAL_TASK_STATES, TaskState
from common.wire import TaskChange, TaskCommand, TaskRefusal, TaskView, WorkflowCommandReply
from server.dispatch import rights
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, Invalid, NotFound
from server.dispatch.reopening import reopen_children
from server.engine.access import Caller, may_command
from server.engine.tasks import COMMANDS, Effect, Facts, NotAllowed, Plan, plan
from server.store import deletions, events, jobs, moves, problems, tasks, workflows, world
from server.store import direct as store_direct
from server.store.database import Connection
from server.store.moves import MoveKind
from server.store.workflows import TaskRow

SLICE = 2000
"""Units moved in one transaction."""
SLICES_AT_ONCE = 2
"""Slices that a request carries out itself; an agent does the rest."""


def command(
    dispatcher: Dispatcher, caller: Caller, task_id: int, request: TaskCommand, *, direct: bool = False
) -> TaskView:
    """Command a task; ``direct``: in the name of a direct job, of which it is the task.

    Raises:
        Invalid: there is no such command, or it takes no such argument.
        Conflict: its state does not allow it; the words say why.
        Forbidden: it is somebody else's.
    """
    _check(request)
    with dispatcher.database.write() as connection:
        held = _mine(connection, caller, task_id, request.command, direct=direct)
        _obey(connection, caller, held, request, dispatcher.now())
    _move_some(dispatcher, task_id)
    dispatcher.changed()
    with dispatcher.database.read() as connection:
        row = workflows.get_task(connection, task_id)
        if row is None:
            raise NotFound(f"there is no task {task_id}")
        return workflows.view_tasks(connection, [row])[0]


def command_workflow(
    dispatcher: Dispatcher, caller: Caller, workflow_id: int, request: TaskCommand
) -> WorkflowCommandReply:
    """Command all tasks of a workflow, in the order of its stages; those whose state does not allow it are named.

    Raises:
        Invalid: there is no such command.
        Conflict: none of its tasks may do it.
    """
    _check(request)
    if request.units:
        raise Invalid("units belong to a task", [("$.units", "command the task that has them")])
    with dispatcher.database.read() as connection:
        ids = tasks.of_workflow(connection, workflow_id)
    if not ids:
        raise NotFound(f"there is no workflow {workflow_id}")
    refused: list[TaskRefusal] = []
    for task_id in ids:
        with dispatcher.database.write() as connection:
            row = _mine(connection, caller, task_id, request.command)
            try:
                _obey(connection, caller, row, request, dispatcher.now())
            except Conflict as error:
                refused.append(TaskRefusal(row.id, row.stage, row.state, error.detail))
        _move_some(dispatcher, task_id)
    dispatcher.changed()
    if len(refused) == len(ids):
        raise Conflict("; ".join(each.reason for each in refused))
    with dispatcher.database.read() as connection:
        view = workflows.view_workflow(connection, workflow_id)
    if view is None:
        raise NotFound(f"there is no workflow {workflow_id}")
    return WorkflowCommandReply(view, refused)


def _check(request: TaskCommand) -> None:
    if request.command not in COMMANDS:
        raise Invalid(f"there is no command {request.command!r}", [("$.command", f"give one of {', '.join(COMMANDS)}")])
    if request.hard and request.command != "finish":
        raise Invalid(f"{request.command} is neither hard nor soft", [("$.hard", "leave it out")])
    if request.units and request.command != "restart":
        raise Invalid(f"{request.command} is for the whole task", [("$.units", "leave them out")])


def _mine(connection: Connection, caller: Caller, task_id: int, word: str = "", *, direct: bool = False) -> TaskRow:
    """A task that the caller may command (or tell this word), its row held."""
    row = workflows.get_task(connection, task_id, lock=True)
    if row is None:
        raise NotFound(f"there is no task {task_id}")
    owner, group = tasks.owner_of(connection, row.workflow_id)
    if not may_command(caller, owner, group):
        raise Forbidden(f"task {task_id} belongs to {owner}")
    if deletions.is_asked(connection, row.workflow_id):
        raise Conflict(f"workflow {row.workflow_id} of task {task_id} is being deleted")
    if row.outside and not direct and not (word == "kill" and store_direct.is_direct(connection, task_id)):
        raise Conflict(
            f"task {task_id} is a project or a direct job, which have commands of their own: "
            "see pilotage project; a direct job can be killed"
        )
    return row


def _obey(connection: Connection, caller: Caller, row: TaskRow, request: TaskCommand, now: float) -> None:
    # Units alone make no task ready that waits for the end of other stages, too.
    resolved = 0 if any(each.stage for each in row.spec.secondary_inputs) else row.resolved
    facts = Facts(row.id, row.state, row.state_reason, row.resume_state, resolved)
    try:
        made = plan(request.command, facts, hard=request.hard)
    except NotAllowed as error:
        raise Conflict(str(error)) from error
    reason = request.reason or f"{request.command} by {caller.name}"
    if made.effect == Effect.RESTART:
        _check_restart(connection, row)
    _effect(connection, row, made, request, reason, now)
    if made.target is not None:
        _move(connection, row, made.target, reason, caller.name, now)
        if made.effect in (Effect.RETRY, Effect.RESTART):
            reopen_children(connection, row.id, now, caller.name)
    elif made.effect in (Effect.RETRY, Effect.RESTART):
        detail = {"command": request.command, "reason": reason, "who": caller.name}
        events.add(connection, events.Event(now, "TASK_COMMAND", "task", row.id, row.id, detail=detail))
    if request.command == "resume":
        problems.forget(connection, row.id)


def _move(connection: Connection, row: TaskRow, target: TaskState, reason: str, who: str, now: float) -> None:
    resume_state = row.state if target == TaskState.PAUSED else None
    final = target in FINAL_TASK_STATES
    workflows.move(connection, row, target, now, reason=reason, resume_state=resume_state, final=final, who=who)
    if target == TaskState.FINISHING:
        workflows.set_resolved(connection, row.id, row.resolved, True)


def _check_restart(connection: Connection, row: TaskRow) -> None:
    if moves.fed_outputs(connection, row.id) and workflows.children(connection, row.id):
        raise Conflict(
            f"outputs of task {row.id} are input of a later stage already, which cannot be undone: "
            "clone the workflow to run it all again"
        )


def _effect(connection: Connection, row: TaskRow, made: Plan, request: TaskCommand, reason: str, now: float) -> None:
    """Write down what becomes of the units."""
    if made.effect == Effect.NOTHING:
        return
    if made.effect == Effect.CANCEL:
        jobs.ask_kill(connection, row.id, reason)
    kind = MoveKind(made.effect.value)
    at_work = moves.of_task(connection, row.id)
    if at_work is not None and kind in (MoveKind.RETRY, MoveKind.RESTART) and at_work.kind != kind:
        raise Conflict(
            f"task {row.id} is still at the {at_work.kind.value} that it was told before: repeat it in a while"
        )
    if at_work is not None and at_work.kind == MoveKind.CANCEL and kind == MoveKind.TRIM:
        return  # a soft finish repeated late must not soften the hard one
    if request.units:
        if not moves.restart_units(connection, row.id, request.units, now) and made.target is not None:
            raise Conflict(f"none of these units of task {row.id} is done")
        return
    moves.begin(connection, row.id, kind, now)


def _move_some(dispatcher: Dispatcher, task_id: int) -> None:
    for _ in range(SLICES_AT_ONCE):
        with dispatcher.database.write() as connection:
            done = moves.work_slice(connection, task_id, SLICE, dispatcher.now())
            if done.moved or done.ended:
                tasks.touch(connection, [task_id])
        if done.ended or done.again:
            return


def move_units(dispatcher: Dispatcher) -> int:
    """Carry the moves on that commands began, a slice of each task; units moved."""
    with dispatcher.database.read() as connection:
        at_work = moves.at_work(connection)
    moved = 0
    for move in at_work:
        with dispatcher.database.write() as connection:
            done = moves.work_slice(connection, move.task_id, SLICE, dispatcher.now())
            if done.moved or done.ended:
                tasks.touch(connection, [move.task_id])
        moved += done.moved
    if moved:
        dispatcher.changed()
    return moved


def change(dispatcher: Dispatcher, caller: Caller, task_id: int, request: TaskChange) -> TaskView:
    """Change priority, share, attempts or sites of a task that is not over.

    Raises:
        Conflict: it is over.
        Invalid: there is no such share or site.
    """
    changes = {
        name: value
        for name in ("priority", "share", "max_attempts", "sites", "exclude_sites")
        if (value := getattr(request, name)) is not None
    }
    if not changes:
        raise Invalid("nothing is to be changed", [("$", "give priority, share, max_attempts, sites or exclude_sites")])
    rights.check_urgency(dispatcher, caller, request.priority, request.share)
    with dispatcher.database.write() as connection:
        row = _mine(connection, caller, task_id)
        if row.state in FINAL_TASK_STATES:
            raise Conflict(f"task {task_id} is {row.state.value}: it cannot be changed")
        _check_places(connection, request)
        old = {name: getattr(row.spec, name) for name in changes}
        if old != changes:
            tasks.change_spec(connection, row, changes)
            detail = {"old": old, "new": changes, "reason": request.reason, "who": caller.name}
            event = events.Event(dispatcher.now(), "TASK_CHANGED", "task", task_id, task_id, detail=detail)
            events.add(connection, event)
        after = workflows.get_task(connection, task_id)
        if after is None:
            raise NotFound(f"there is no task {task_id}")
        view = workflows.view_tasks(connection, [after])[0]
    dispatcher.changed()
    return view


def _check_places(connection: Connection, request: TaskChange) -> None:
    wrong: list[tuple[str, str]] = []
    if request.share is not None:
        shares = {share.name for share in world.shares(connection)}
        if request.share not in shares:
            wrong.append(("$.share", f"there is no share {request.share!r}; known: {', '.join(sorted(shares)[:10])}"))
    known = world.load(connection).sites
    for field, names in (("sites", request.sites), ("exclude_sites", request.exclude_sites)):
        for name in names or ():
            if name not in known:
                wrong.append((f"$.{field}", f"there is no site {name!r}; known: {', '.join(sorted(known)[:10])}"))
    if wrong:
        raise Invalid(wrong[0][1], wrong)
