"""Pilots that are expected, and the jobs that were claimed for them: see :mod:`server.dispatch.push`.

Whoever ends a job of an expected pilot holds the job's row before the pilot's; one that registers does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, delete, exists, func, insert, literal_column, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from common.states import FINAL_WORKER_STATES
from common.wire import Offer, Shape
from server.store import beats
from server.store.beats import Beat
from server.store.codes import PUSHED, PUSHED_ORDINAL, PilotState
from server.store.jobs import ALIVE
from server.store.pilots import WorkerRow
from server.store.schema import job, pilot, worker

IS_EXPECTED: ColumnElement[bool] = pilot.c.state == literal_column(str(int(PilotState.EXPECTED)))
_WAITS = job.c.request_id == PUSHED


@dataclass(frozen=True)
class StandIn:
    """What stands in for a worker's pilot on a node, or that pilot when it has come."""

    pilot_id: int
    node: int
    state: PilotState


def stand_ins(connection: Connection, mark: str) -> list[StandIn]:
    """Those of a worker for which jobs were claimed, by node."""
    query = select(pilot.c.id, pilot.c.node, pilot.c.state).where(pilot.c.worker == mark, pilot.c.pushed)
    rows = connection.execute(query.order_by(pilot.c.node))
    return [StandIn(row.id, row.node, PilotState(row.state)) for row in rows]


def expect(connection: Connection, owner: WorkerRow, site: str, node: int, now: float) -> int:
    """Write down a pilot that is expected on a node of a worker; its id."""
    result = connection.execute(
        insert(pilot)
        .values(
            worker=owner.mark,
            nonce="",
            node=node,
            start=owner.starts,
            queue=owner.queue,
            site=site,
            host="",
            version="",
            state=int(PilotState.EXPECTED),
            registered=now,
            pushed=True,
        )
        .returning(pilot.c.id)
    )
    return int(result.scalar_one())


def forget(connection: Connection, pilot_id: int) -> None:
    """Nothing was found for it: it is expected no more."""
    connection.execute(delete(pilot).where(pilot.c.id == pilot_id))


def adopt(
    connection: Connection, owner: WorkerRow, node: int, values: dict[str, object], offer: Offer, now: float
) -> int | None:
    """The pilot has come: it is the one that was expected there, whichever start it is; None if none was.

    What is said of the times of its jobs counts from now on.
    """
    which = (pilot.c.worker == owner.mark) & (pilot.c.node == node) & IS_EXPECTED
    pilot_id = connection.execute(select(pilot.c.id).where(which)).scalar()
    if pilot_id is None:
        return None
    connection.execute(
        update(job).where(job.c.pilot_id == pilot_id, ALIVE, _WAITS).values(claimed=now, host=values["host"])
    )
    more = {"state": int(PilotState.ACTIVE), "start": owner.starts, "registered": now}
    if not connection.execute(update(pilot).where(which).values(**values, **more)).rowcount:
        return None
    beats.write(connection, {pilot_id: Beat(now, offer=msgspec.json.encode(offer).decode())})
    return int(pilot_id)


def give_up(connection: Connection, pilot_id: int, reason: str, now: float) -> bool:
    """It is expected no more; False if it has come, or that was known."""
    result = connection.execute(
        update(pilot)
        .where(pilot.c.id == pilot_id, IS_EXPECTED)
        .values(state=int(PilotState.ENDED), ended=now, end_reason=reason)
    )
    return bool(result.rowcount)


@dataclass(frozen=True)
class WaitingJob:
    """A live job that its pilot has not been given; ``n`` counts those of its pilot from 0."""

    id: int
    task_id: int
    pilot_id: int
    n: int
    kill_reason: str | None


def waiting(connection: Connection, pilot_ids: Sequence[int]) -> list[WaitingJob]:
    """The jobs that wait for these pilots, in the order in which they were claimed."""
    query = (
        select(job.c.id, job.c.task_id, job.c.pilot_id, job.c.ordinal, job.c.kill_reason)
        .where(job.c.pilot_id.in_(pilot_ids), ALIVE, _WAITS)
        .order_by(job.c.pilot_id, job.c.ordinal)
    )
    return [
        WaitingJob(row.id, row.task_id, row.pilot_id, row.ordinal - PUSHED_ORDINAL, row.kill_reason)
        for row in connection.execute(query)
    ]


def works(connection: Connection, pilot_id: int) -> bool:
    """Whether a pilot holds jobs that it was given."""
    query = select(job.c.id).where(job.c.pilot_id == pilot_id, ALIVE, ~_WAITS).limit(1)
    return connection.execute(query).first() is not None


def hand_out(connection: Connection, pilot_id: int, job_ids: Sequence[int], request_id: str, now: float) -> list[int]:
    """Give a pilot those of the jobs that still wait for it, as the answer to a request; their ids."""
    active = exists().where(pilot.c.id == pilot_id, pilot.c.state == int(PilotState.ACTIVE))
    result = connection.execute(
        update(job)
        .where(job.c.id.in_(job_ids), job.c.pilot_id == pilot_id, ALIVE, _WAITS, job.c.kill_reason.is_(None), active)
        .values(request_id=request_id, claimed=now)
        .returning(job.c.id)
    )
    return sorted(row.id for row in result)


def forsaken(connection: Connection, now: float, limit: int) -> list[int]:
    """Expected pilots that cannot come any more: their worker has ended, or its secret is not valid any longer."""
    over = or_(worker.c.state.in_([state.value for state in FINAL_WORKER_STATES]), worker.c.expires < now)
    query = (
        select(pilot.c.id).join(worker, worker.c.mark == pilot.c.worker).where(IS_EXPECTED, over).order_by(pilot.c.id)
    )
    return [row.id for row in connection.execute(query.limit(limit))]


def of_workers(connection: Connection, marks: Sequence[str]) -> list[int]:
    """The pilots that are expected of these workers."""
    query = select(pilot.c.id).where(IS_EXPECTED, pilot.c.worker.in_(marks)).order_by(pilot.c.id)
    return [row.id for row in connection.execute(query)]


def killed(connection: Connection, limit: int) -> list[int]:
    """Jobs of expected pilots of which somebody asked for the end."""
    query = (
        select(job.c.id)
        .join(pilot, pilot.c.id == job.c.pilot_id)
        .where(IS_EXPECTED, ALIVE, job.c.kill_reason.is_not(None))
        .order_by(job.c.id)
    )
    return [row.id for row in connection.execute(query.limit(limit))]


def by_shape(connection: Connection) -> dict[str, list[tuple[Shape, int]]]:
    """Expected pilots of each queue for which jobs wait, counted by the shape of their worker."""
    query = (
        select(pilot.c.queue, worker.c.shape, func.count().label("n"))
        .join(worker, worker.c.mark == pilot.c.worker)
        .where(IS_EXPECTED, exists().where(job.c.pilot_id == pilot.c.id, ALIVE))
        .group_by(pilot.c.queue, worker.c.shape)
    )
    found: dict[str, list[tuple[Shape, int]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.queue, []).append((msgspec.json.decode(row.shape, type=Shape), int(row.n)))
    return found


def set_shape(connection: Connection, mark: str, shape: Shape) -> None:
    """A worker is to ask its batch system for this."""
    text = msgspec.json.encode(shape).decode()
    connection.execute(update(worker).where(worker.c.mark == mark).values(shape=text))
