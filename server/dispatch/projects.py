"""People make projects, look at them, and command them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
from msgspec import UNSET

from common.states import FINAL_TASK_STATES, TaskState, UnitState
from common.wire import DatasetInput, FilesInput, InputsRequest, StageSpec, WorkflowRequest
from common.wire.projects import (
    ProjectCopy,
    ProjectFile,
    ProjectFilePage,
    ProjectFilesRequest,
    ProjectFileView,
    ProjectPage,
    ProjectRequest,
    ProjectRestart,
    ProjectState,
    ProjectView,
)
from server.dispatch import cloning, inputs, reserve, rights
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, Invalid, NotFound
from server.dispatch.reserve import known
from server.dispatch.submit import default_scope
from server.engine.access import Caller, may_command, may_submit_for
from server.engine.projects import BadCondition, Facts, conditions, project_state, replica_views, restart_target
from server.engine.workflow_inputs import Means, Problem, attributes_problem, check_file_list, unknown
from server.store import events, moves, project_moves, projects, workflows
from server.store.database import Connection
from server.store.moves import MoveKind
from server.store.project_moves import Restart
from server.store.projects import Copy, FileRow, Wanted
from server.store.workflows import TaskRow

STAGE = "project"
"""The name of the one stage of a project's workflow."""
SLICE = 2000
"""Files moved in one transaction."""
SLICES_AT_ONCE = 2
"""Slices that a request carries out itself; an agent does the rest."""


# ---------------------------------------------------------------- making


def create(dispatcher: Dispatcher, caller: Caller, request: ProjectRequest) -> ProjectView:
    """Make a project; an agent makes units of its files. The same ``request_id`` of a person gets the same project.

    Raises:
        Invalid: it names every field that is wrong; nothing is kept.
        Forbidden: for this group the caller may not.
    """
    if not may_submit_for(caller, request.group, rights.isolation_of(dispatcher)):
        raise Forbidden(f"{caller.name} does not belong to group {request.group}", [("$.group", "name one of yours")])
    _refuse(_problems(dispatcher, request))
    return _add(dispatcher, caller, request)


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise Invalid(
            f"there are {len(problems)} mistakes" if len(problems) > 1 else problems[0].message,
            [(problem.path, problem.message) for problem in problems],
        )


def _problems(dispatcher: Dispatcher, request: ProjectRequest) -> list[Problem]:
    found = []
    for name in ("attributes", "file_attributes"):
        odd = attributes_problem(getattr(request, name))
        if odd:
            found.append(Problem(f"$.{name}", odd))
    catalogs = dispatcher.plugins.catalogs
    if (request.catalog is None) != (request.query is None):
        found.append(Problem("$.query", "a query needs the catalogue that is asked: give both or none"))
    elif request.catalog is not None and request.catalog not in catalogs:
        found.append(Problem("$.catalog", unknown("catalogue", request.catalog, catalogs)))
    if request.query is not None and request.files:
        found.append(Problem("$.files", "give either files or a query"))
    if request.query is None and not request.files and not request.open:
        found.append(Problem("$.files", "the list is empty: name at least one file"))
    return found + _file_problems(dispatcher, request.files, request.virtual)


def _file_problems(dispatcher: Dispatcher, files: Sequence[ProjectFile], virtual: bool) -> list[Problem]:
    means = Means(dispatcher.looks.fresh().world, stagers=frozenset(dispatcher.plugins.stagers))
    found = list(check_file_list(files, "$.files", means, recall=True))
    if not virtual:
        words = "say where it lies, or make the project virtual"
        bare = [number for number, file in enumerate(files) if not file.replicas]
        found += [Problem(f"$.files[{number}].replicas", words) for number in bare[:100]]
    return found


def _add(dispatcher: Dispatcher, caller: Caller, request: ProjectRequest, copy: Copy | None = None) -> ProjectView:
    now = dispatcher.now()
    workflow = WorkflowRequest(
        name=request.name, stages=[_stage(request)], group=request.group, request_id=request.request_id
    )
    with dispatcher.database.write() as connection:
        workflow_id = None
        if request.request_id is not None:
            workflow_id = workflows.by_request(connection, caller.name, request.request_id)
        new = workflow_id is None
        if workflow_id is None:
            workflow_id = workflows.add(connection, workflow, caller.name, default_scope(caller.name), now)
        made = workflows.view_workflow(connection, workflow_id)
        assert made is not None
        project_id = made.tasks[0].id
        if new:
            projects.add(connection, project_id, request, now, copy)
        view = projects.view(connection, project_id)
    if view is None:
        words = "give another one"
        raise Conflict(f"request_id {request.request_id!r} made a workflow, no project", [("$.request_id", words)])
    dispatcher.changed()
    return view


def _stage(request: ProjectRequest) -> StageSpec:
    given: FilesInput | DatasetInput
    if request.catalog is not None and request.query is not None:
        given = DatasetInput(catalog=request.catalog, query=request.query, open=request.open)
    else:
        given = FilesInput(files=list(request.files), open=request.open)
    return StageSpec(name=STAGE, input=given, attributes=request.attributes, scouts=False)


def add_files(dispatcher: Dispatcher, caller: Caller, project_id: int, request: ProjectFilesRequest) -> ProjectView:
    """Give an open project more files; those that it has already are left out.

    Raises:
        Invalid: it names every file that is wrong; nothing is taken.
        Conflict: the project takes no more.
    """
    facts = _commanded(dispatcher, caller, project_id)
    with dispatcher.database.read() as connection:
        virtual = projects.is_virtual(connection, project_id)
    _refuse(_file_problems(dispatcher, request.files, virtual))
    inputs.add_files(dispatcher, caller, project_id, InputsRequest(list(request.files)))
    reserve.revive(dispatcher, facts, dispatcher.now(), caller.name)
    return look(dispatcher, caller, project_id)


def close_files(dispatcher: Dispatcher, caller: Caller, project_id: int) -> ProjectView:
    """No more files will come. Asked again, it is answered alike.

    Raises:
        Conflict: the project was never open.
    """
    _commanded(dispatcher, caller, project_id)
    inputs.close_input(dispatcher, caller, project_id)
    return look(dispatcher, caller, project_id)


def copy(dispatcher: Dispatcher, caller: Caller, project_id: int, request: ProjectCopy) -> ProjectView:
    """Make a project of the same files; an agent copies them.

    Raises:
        Conflict: the files of the original are not all known yet.
    """
    old = look(dispatcher, caller, project_id)
    if old.open:
        raise Conflict(f"the files of project {project_id} are not all there yet: copy it when it is no longer open")
    own = old.owner == caller.name
    made = ProjectRequest(
        name=request.name or old.name,
        open=True,
        attributes={**old.attributes, **request.attributes},
        file_attributes={**old.file_attributes, **request.file_attributes},
        worker_timeout_s=old.worker_timeout_s if request.worker_timeout_s is UNSET else request.worker_timeout_s,
        idle_timeout_s=old.idle_timeout_s if request.idle_timeout_s is UNSET else request.idle_timeout_s,
        retry_on_timeout=old.retry_on_timeout if request.retry_on_timeout is None else request.retry_on_timeout,
        virtual=old.virtual,
        users=(old.users if own else []) if request.users is None else request.users,
        roles=(old.roles if own else []) if request.roles is None else request.roles,
        group=old.group if own or old.group in caller.groups else None,
        request_id=request.request_id,
    )
    _refuse(_problems(dispatcher, made))
    return _add(dispatcher, caller, made, Copy(project_id, request.file_attributes))


# ---------------------------------------------------------------- looking


def look(dispatcher: Dispatcher, caller: Caller, project_id: int) -> ProjectView:
    """One project."""
    known(dispatcher, caller, project_id)
    with dispatcher.database.read() as connection:
        view = projects.view(connection, project_id)
    if view is None:
        dispatcher.projects.drop(project_id)
        raise NotFound(f"there is no project {project_id}")
    return view


def listed(
    dispatcher: Dispatcher,
    caller: Caller,
    *,
    owner: str | None,
    states: Sequence[ProjectState],
    where: str,
    after: int,
    limit: int,
) -> ProjectPage:
    """Projects that the caller may see, by id; with ``where`` those whose attributes meet all its conditions.

    Raises:
        Invalid: a condition cannot be read.
    """
    try:
        found = conditions(where)
    except BadCondition as error:
        raise Invalid(str(error), [("where", str(error))]) from error
    return found_by(dispatcher, caller, Wanted(owner, states, found), after=after, limit=limit)


def found_by(dispatcher: Dispatcher, caller: Caller, wanted: Wanted, *, after: int, limit: int) -> ProjectPage:
    """Projects that are wanted and that the caller may see, by id."""
    wanted = replace(wanted, sight=rights.sight_of(dispatcher, caller))
    with dispatcher.database.read() as connection:
        items = projects.page(connection, wanted, after=after, limit=limit)
    return ProjectPage(next=items[-1].id if len(items) == limit else None, items=items)


def files(
    dispatcher: Dispatcher,
    caller: Caller,
    project_id: int,
    *,
    state: UnitState | None,
    did: str | None,
    cpu_site: str | None,
    after: int,
    limit: int,
) -> ProjectFilePage:
    """Files of a project, with all their replicas, available or not, as seen from a site."""
    facts = known(dispatcher, caller, project_id)
    world = dispatcher.looks.get().world
    with dispatcher.database.read() as connection:
        rows = projects.page_files(connection, facts, state=state, did=did, after=after, limit=limit)

    def shown(row: FileRow) -> ProjectFileView:
        replicas = replica_views(row.replicas, world, cpu_site, all_=True)
        return msgspec.structs.replace(row.view, replicas=replicas)

    items = [shown(row) for row in rows]
    return ProjectFilePage(next=items[-1].id if len(items) == limit else None, items=items)


# ---------------------------------------------------------------- commanding


def _commanded(dispatcher: Dispatcher, caller: Caller, project_id: int) -> Facts:
    facts = known(dispatcher, caller, project_id)
    if not may_command(caller, facts.owner, facts.group):
        raise Forbidden(f"project {project_id} belongs to {facts.owner}")
    return facts


def _hold(connection: Connection, project_id: int) -> TaskRow:
    row = workflows.get_task(connection, project_id, lock=True)
    if row is None or not row.outside:
        raise NotFound(f"there is no project {project_id}")
    return row


def activate(dispatcher: Dispatcher, caller: Caller, project_id: int) -> ProjectView:
    """Bring an abandoned project back; one that is active stays so.

    Raises:
        Conflict: it is over.
        Forbidden: the caller may not work on it.
    """
    facts = reserve.mine(dispatcher, caller, project_id)
    reserve.revive(dispatcher, facts, dispatcher.now(), caller.name)
    view = look(dispatcher, caller, project_id)
    if view.state is not ProjectState.ACTIVE:
        raise Conflict(f"project {project_id} is {view.state.value}: restart files of it, or copy it")
    return view


def cancel(dispatcher: Dispatcher, caller: Caller, project_id: int) -> ProjectView:
    """End a project for good; files that are not over are cancelled. Asked again, it is answered alike.

    Raises:
        Conflict: it is over otherwise.
    """
    facts = _commanded(dispatcher, caller, project_id)
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        row = _hold(connection, project_id)
        if row.state in FINAL_TASK_STATES and row.state is not TaskState.ABORTED:
            raise Conflict(f"project {project_id} is {project_state(row.state).value} already")
        if row.state is not TaskState.ABORTED:
            reason = f"cancelled by {caller.name}"
            workflows.move(connection, row, TaskState.ABORTED, now, reason=reason, final=True, who=caller.name)
            moves.begin(connection, project_id, MoveKind.CANCEL, now)
            project_moves.end_restart(connection, project_id)
    for _ in range(SLICES_AT_ONCE):
        with dispatcher.database.write() as connection:
            if moves.work_slice(connection, project_id, SLICE, now).ended:
                break
    dispatcher.projects.forget(facts.id)
    dispatcher.changed()
    return look(dispatcher, caller, project_id)


def delete(dispatcher: Dispatcher, caller: Caller, project_id: int) -> None:
    """Take a project away, piece by piece; one that is active is cancelled first.

    Raises:
        Conflict: somebody copies its files just now.
    """
    _commanded(dispatcher, caller, project_id)
    with dispatcher.database.read() as connection:
        row = workflows.get_task(connection, project_id)
        copied = project_moves.has_copies_at_work(connection, project_id)
    if row is None:
        raise NotFound(f"there is no project {project_id}")
    if copied:
        raise Conflict(f"the files of project {project_id} are being copied: delete it in a while")
    if row.state not in FINAL_TASK_STATES:
        cancel(dispatcher, caller, project_id)
    cloning.ask_deletion(dispatcher, caller, row.workflow_id, force=False)
    dispatcher.projects.drop(project_id)


def restart(dispatcher: Dispatcher, caller: Caller, project_id: int, request: ProjectRestart) -> ProjectView:
    """Make files ready again: by their states, or single ones whatever their state. A project that was over goes on.

    Raises:
        Invalid: neither is given, or a file is not known.
        Conflict: the project was cancelled, or never had files.
    """
    facts = _commanded(dispatcher, caller, project_id)
    if bool(request.states) == bool(request.dids):
        raise Invalid("say what to restart: states or dids", [("$.states", "give either states or dids")])
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        row = _hold(connection, project_id)
        if row.state in (TaskState.ABORTED, TaskState.BROKEN):
            raise Conflict(f"project {project_id} is {project_state(row.state).value} ({row.state_reason}): copy it")
        if request.dids:
            moved, missing = project_moves.restart_files(connection, project_id, request.dids, now)
            if missing:
                words = f"project {project_id} has no file {missing[0]}"
                raise Invalid(words, [("$.dids", "name files of the project")])
        else:
            project_moves.begin_restart(connection, project_id, set(request.states))
            moved = _slice(connection, row, now)
        if moved:
            _reopen(connection, facts, row, caller.name, now)
        detail = {"command": "restart", "reason": _words(request), "who": caller.name}
        events.add(connection, events.Event(now, "TASK_COMMAND", "task", row.id, row.id, detail=detail))
    dispatcher.projects.forget(project_id)
    dispatcher.changed()
    return look(dispatcher, caller, project_id)


def _words(request: ProjectRestart) -> str:
    if request.dids:
        return f"{len(request.dids)} files by name"
    return ", ".join(sorted({each.value for each in request.states}))


def _slice(connection: Connection, row: TaskRow, now: float) -> int:
    at_work: Restart | None = project_moves.restart_of(connection, row.id)
    if at_work is None:
        return 0
    return project_moves.restart_slice(connection, row.id, at_work, SLICE, now)[0]


def _reopen(connection: Connection, facts: Facts, row: TaskRow, who: str, now: float) -> None:
    target = restart_target(row.state)
    if target is not None:
        workflows.move(connection, row, target, now, reason="files were restarted", who=who)
    projects.seen(connection, facts, now)


def carry_on_restart(dispatcher: Dispatcher, project_id: int) -> int:
    """The next slice of a restart that is at work; files restarted."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        row = workflows.get_task(connection, project_id, lock=True)
        facts = projects.facts(connection, project_id)
        if row is None or facts is None or row.state in (TaskState.ABORTED, TaskState.BROKEN):
            project_moves.end_restart(connection, project_id)
            return 0
        moved = _slice(connection, row, now)
        if moved:
            _reopen(connection, facts, row, "agent", now)
    dispatcher.projects.forget(project_id)
    return moved
