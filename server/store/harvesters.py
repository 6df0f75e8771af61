"""What admins have harvesters do, and what workers harvesters have."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, case, delete, func, insert, literal_column, select, update

from common.states import FINAL_WORKER_STATES, WorkerState
from common.wire import (
    HarvesterCommandRequest,
    HarvesterCommandResult,
    HarvesterCommandState,
    HarvesterCommandView,
    Shape,
    WorkerCount,
    WorkerView,
)
from server.store.schema import pilot, worker
from server.store.schema_harvesters import harvester_command as command

_REQUEST = msgspec.json.Decoder(HarvesterCommandRequest)
_SHAPE = msgspec.json.Decoder(Shape)
_LIVE = sorted(state.value for state in set(WorkerState) - FINAL_WORKER_STATES - {WorkerState.MISSING})


def _view(row: Any, now: float) -> HarvesterCommandView:
    request = _REQUEST.decode(row.spec)
    if row.ended is not None:
        state = HarvesterCommandState.DONE if row.ok else HarvesterCommandState.FAILED
    else:
        state = HarvesterCommandState.EXPIRED if row.expires <= now else HarvesterCommandState.WAITING
    return HarvesterCommandView(
        command_id=row.id,
        harvester=row.harvester,
        kind=request.kind.value,
        state=state,
        asked=row.asked,
        expires=row.expires,
        queue=request.queue,
        marks=request.marks,
        waiting_only=request.waiting_only,
        workers=request.workers,
        who=row.who,
        ended=row.ended,
        detail=row.detail,
    )


def add(
    connection: Connection, harvester: str, request: HarvesterCommandRequest, who: str, now: float
) -> HarvesterCommandView:
    """Write down a new command."""
    values = {
        "harvester": harvester,
        "request_id": request.request_id,
        "spec": msgspec.json.encode(request).decode(),
        "who": who,
        "asked": now,
        "expires": now + request.valid_s,
    }
    return _view(connection.execute(insert(command).values(**values).returning(command)).one(), now)


def requested(
    connection: Connection, harvester: str, request_id: str, now: float
) -> tuple[HarvesterCommandRequest, HarvesterCommandView] | None:
    """The command that a request made, and the request."""
    query = select(command).where(command.c.harvester == harvester, command.c.request_id == request_id)
    row = connection.execute(query).first()
    return None if row is None else (_REQUEST.decode(row.spec), _view(row, now))


def page(
    connection: Connection, harvester: str, *, is_open: bool, after: int, limit: int, now: float
) -> list[HarvesterCommandView]:
    """Commands of a harvester by id; with ``is_open`` those only that it should still carry out."""
    query = select(command).where(command.c.harvester == harvester, command.c.id > after)
    if is_open:
        query = query.where(command.c.ended.is_(None), command.c.expires > now)
    return [_view(row, now) for row in connection.execute(query.order_by(command.c.id).limit(limit))]


def end(connection: Connection, harvester: str, command_id: int, result: HarvesterCommandResult, now: float) -> bool:
    """Write down what came of a command, once: a repeat changes nothing. False if there is none of that id.

    It counts though the command has expired meanwhile: what was done was done.
    """
    mine = (command.c.id == command_id) & (command.c.harvester == harvester)
    values = {"ended": now, "ok": result.ok, "detail": result.detail}
    if connection.execute(update(command).where(mine, command.c.ended.is_(None)).values(**values)).rowcount:
        return True
    return connection.execute(select(command.c.id).where(mine)).first() is not None


def drop_old(connection: Connection, before: float) -> int:
    """Take away the commands that ended, or could no more be carried out, before a moment; how many."""
    gone = func.coalesce(command.c.ended, command.c.expires) < before
    return int(connection.execute(delete(command).where(command.c.asked < before, gone)).rowcount)


def other_workers(connection: Connection, queue: str, harvester: str, now: float) -> list[WorkerCount]:
    """Workers in a queue that other harvesters have, by shape.

    One whose secret has expired can hold no new pilot: its harvester has long been gone, or its worker soon will be.
    """
    runs = case((worker.c.state == WorkerState.RUNNING.value, 1), else_=0)
    query = (
        select(worker.c.shape, worker.c.nodes, func.count().label("n"), func.sum(runs).label("running"))
        .where(worker.c.queue == queue, worker.c.state.in_(_LIVE))
        .where(worker.c.harvester != harvester, worker.c.expires > now)
        .group_by(worker.c.shape, worker.c.nodes)
        .order_by(worker.c.shape, worker.c.nodes)
    )
    return [
        WorkerCount(_SHAPE.decode(row.shape), int(row.n - row.running), int(row.running), row.nodes)
        for row in connection.execute(query)
    ]


def live_workers(connection: Connection, harvester: str) -> list[tuple[str, Shape, WorkerState, int]]:
    """A harvester's workers that have not ended: queue, shape, state, and how many are of that."""
    query = (
        select(worker.c.queue, worker.c.shape, worker.c.state, func.count().label("n"))
        .where(worker.c.state.in_(_LIVE), worker.c.harvester == harvester)
        .group_by(worker.c.queue, worker.c.shape, worker.c.state)
        .order_by(worker.c.queue, worker.c.shape, worker.c.state)
    )
    return [(row.queue, _SHAPE.decode(row.shape), WorkerState(row.state), row.n) for row in connection.execute(query)]


def live_marks(connection: Connection, harvester: str, queue: str, waiting_only: bool, limit: int) -> list[str]:
    """The marks of a harvester's workers in a queue that have not ended; with ``waiting_only`` those that don't run."""
    states = [state for state in _LIVE if not (waiting_only and state == WorkerState.RUNNING.value)]
    query = select(worker.c.mark).where(worker.c.queue == queue, worker.c.state.in_(states))
    return list(
        connection.execute(query.where(worker.c.harvester == harvester).order_by(worker.c.mark).limit(limit)).scalars()
    )


def last_mark(connection: Connection, harvester: str, beginning: str) -> str | None:
    """Of the marks of a harvester with this beginning the last, by number: the longest first. For its start, not often."""
    mine = (worker.c.harvester == harvester) & worker.c.mark.startswith(beginning, autoescape=True)
    query = select(worker.c.mark).where(mine).order_by(func.length(worker.c.mark).desc(), worker.c.mark.desc())
    return connection.execute(query.limit(1)).scalar()


def workers(
    connection: Connection,
    *,
    queue: str | None,
    harvester: str | None,
    state: WorkerState | None,
    after: str,
    limit: int,
) -> list[WorkerView]:
    """Workers by mark, from behind ``after`` on."""
    came = select(func.count()).where(pilot.c.worker == worker.c.mark, pilot.c.nonce != literal_column("''"))
    query = select(worker, came.scalar_subquery().label("pilots")).where(worker.c.mark > after)
    for column, value in ((worker.c.queue, queue), (worker.c.harvester, harvester)):
        if value is not None:
            query = query.where(column == value)
    if state is not None:
        query = query.where(worker.c.state == state.value)
    return [_worker_view(row) for row in connection.execute(query.order_by(worker.c.mark).limit(limit))]


def _worker_view(row: Any) -> WorkerView:
    return WorkerView(
        mark=row.mark,
        harvester=row.harvester,
        queue=row.queue,
        state=WorkerState(row.state),
        shape=_SHAPE.decode(row.shape),
        nodes=row.nodes,
        batch_id=row.batch_id,
        host=row.host,
        pilots=int(row.pilots),
        created=row.created,
        updated=row.updated,
        reason=row.reason,
        log_url=row.log_url,
        log_tail=row.log_tail,
    )
