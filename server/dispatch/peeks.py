"""Looking at running jobs: a person asks, the job's pilot is told with its next heartbeat, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from common.states import FINAL_JOB_STATES, JobState
from common.wire import PeekAnswer, PeekKind, PeekOrder, PeekRequest, PeekState, PeekView
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, NotFound, Unprocessable
from server.engine.access import Caller, may_command
from server.store import logs, peeks
from server.store.database import Connection
from server.store.logs import LogOwner
from server.store.peeks import PeekRow

BEAT_S = 2.0
"""The heartbeat of a pilot that somebody looks at."""
MOST_WAIT_S = 20.0
FOREIGN_S = 0.5
"""The answer may have come to another process: it is looked for this often."""
KEPT_S = 3600.0
"""How long requests and answers are kept; longer than any pilot's interval."""
_TAKES = {"path": (PeekKind.TAIL, PeekKind.LS), "pid": (PeekKind.GDB,), "after": (PeekKind.TAIL,)}


def ask(dispatcher: Dispatcher, caller: Caller, job_id: int, request: PeekRequest) -> PeekView:
    """Ask the pilot of a job to show something. A repeat while that is open joins the first.

    Raises:
        NotFound: there is no such job.
        Forbidden: it is another person's.
        Unprocessable: the request does not make sense.
        Conflict: the job has ended, or another person waits for something else of this kind.
    """
    _check(request)
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        owner = _owner(connection, caller, job_id)
        if owner.state in FINAL_JOB_STATES:
            words = f"job {job_id} is {owner.state.value}: there is nothing left to look at; see pilotage log {job_id}"
            raise Conflict(words)
        row = peeks.open_of(connection, job_id, request.kind.value)
        if row is not None and row.request != request:
            if row.who != caller.name:
                words = f"{row.who} waits for another {row.request.kind.value} of job {job_id}: try again when it is answered"
                raise Conflict(words)
            peeks.end(connection, row.id, PeekState.REPLACED, None, now)
            row = None
        if row is None:
            row = peeks.add(connection, job_id, owner.pilot_id, request, caller.name, now)
        view = _view(dispatcher, connection, row, owner.state)
    dispatcher.peeks.changed()
    return view


def _check(request: PeekRequest) -> None:
    for name, kinds in _TAKES.items():
        if getattr(request, name) and request.kind not in kinds:
            raise Unprocessable(f"{request.kind.value} takes no {name}", [(f"$.{name}", "leave it out")])
    if request.kind is PeekKind.GDB and request.pid is None:
        raise Unprocessable("gdb needs a process", [("$.pid", "give one that ps shows")])
    path = PurePosixPath(request.path)
    if path.is_absolute() or ".." in path.parts:
        words = "give a path below the payload's working directory, without .."
        raise Unprocessable(f"path {request.path!r} leads out of the job's folder", [("$.path", words)])


def view(dispatcher: Dispatcher, caller: Caller, job_id: int, peek_id: int, wait_s: float) -> PeekView:
    """What came of a request; waits for so long while it is open, if a thread can be had for that.

    Raises:
        NotFound: there is no such job or request (any more).
        Forbidden: the job is another person's.
    """
    seen = dispatcher.peeks.changes()
    found = _look(dispatcher, caller, job_id, peek_id)
    if found.state is not PeekState.WAITING or wait_s <= 0 or not dispatcher.polls.acquire(blocking=False):
        return found
    try:
        deadline = dispatcher.clock.monotonic() + min(wait_s, MOST_WAIT_S)
        while found.state is PeekState.WAITING and not dispatcher.stopping.is_set():
            left_s = deadline - dispatcher.clock.monotonic()
            if left_s <= 0:
                break
            dispatcher.peeks.wait_for_change(seen, min(left_s, FOREIGN_S))
            seen = dispatcher.peeks.changes()
            found = _look(dispatcher, caller, job_id, peek_id)
    finally:
        dispatcher.polls.release()
    return found


def _look(dispatcher: Dispatcher, caller: Caller, job_id: int, peek_id: int) -> PeekView:
    with dispatcher.database.read() as connection:
        owner = _owner(connection, caller, job_id)
        row = peeks.get(connection, job_id, peek_id)
        if row is None:
            raise NotFound(f"job {job_id} has no request {peek_id}, or it is too old")
        found = _view(dispatcher, connection, row, owner.state)
    if row.state is not PeekState.WAITING or owner.state not in FINAL_JOB_STATES:
        return found
    with dispatcher.database.write() as connection:
        peeks.end(connection, peek_id, PeekState.OVER, None, dispatcher.now())
        row = peeks.get(connection, job_id, peek_id)
        assert row is not None
        return _view(dispatcher, connection, row, owner.state)


def _owner(connection: Connection, caller: Caller, job_id: int) -> LogOwner:
    found = logs.owner_of(connection, job_id)
    if found is None:
        raise NotFound(f"there is no job {job_id}")
    if not may_command(caller, found.owner, found.group):
        raise Forbidden(f"job {job_id} belongs to {found.owner}")
    return found


def _view(dispatcher: Dispatcher, connection: Connection, row: PeekRow, state: JobState) -> PeekView:
    due_s = 0.0
    if row.state is PeekState.WAITING:
        heard = peeks.heard(connection, row.pilot_id) or row.asked
        due_s = max(0.0, heard + dispatcher.looks.get().knobs.heartbeat_s - dispatcher.now())
    return PeekView(
        peek_id=row.id,
        job_id=row.job_id,
        kind=row.request.kind,
        state=row.state,
        job_state=state,
        asked=row.asked,
        who=row.who,
        due_s=round(due_s, 1),
        answer=row.answer,
    )


def orders(rows: Sequence[PeekRow], job_id: int) -> list[PeekOrder]:
    """What a pilot is to be told about one of its jobs."""
    return [
        PeekOrder(
            peek_id=row.id,
            kind=row.request.kind.value,
            path=row.request.path,
            lines=row.request.lines,
            pid=row.request.pid,
            after=row.request.after,
        )
        for row in rows
        if row.job_id == job_id and row.state is PeekState.WAITING
    ]


def answer(dispatcher: Dispatcher, pilot_id: int, job_id: int, peek_id: int, said: PeekAnswer) -> None:
    """A pilot says what it saw; a repeat changes nothing.

    Raises:
        NotFound: this pilot was not asked that.
    """
    with dispatcher.database.write(durable=False) as connection:
        row = peeks.get(connection, job_id, peek_id)
        if row is None or row.pilot_id != pilot_id:
            raise NotFound(f"this pilot was not asked for {peek_id} of job {job_id}")
        peeks.end(connection, peek_id, PeekState.ANSWERED, said, dispatcher.now())
    dispatcher.peeks.changed()


def drop_old(dispatcher: Dispatcher) -> int:
    """Take away requests to look at jobs, and their answers, that are older than they are kept; how many."""
    with dispatcher.database.write() as connection:
        return peeks.drop_old(connection, dispatcher.now() - KEPT_S)
