"""Workers and their pilots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, exists, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from common.states import FINAL_WORKER_STATES, WorkerState
from common.wire import Offer, Shape, WorkerReport
from server.store.codes import FIRST_FINAL_JOB_CODE, PilotState
from server.store.schema import job, pilot, worker


@dataclass(frozen=True)
class WorkerRow:
    """A worker as recorded."""

    mark: str
    harvester: str
    queue: str
    state: WorkerState
    shape: Shape
    nodes: int
    starts: int
    expires: float


@dataclass(frozen=True)
class PilotRow:
    """A pilot as recorded, with the shape of its worker."""

    id: int
    worker: str
    queue: str
    site: str
    host: str
    nonce: str
    state: PilotState
    heartbeat: float
    shape: Shape


def worker_by_secret(connection: Connection, secret_hash: str) -> WorkerRow | None:
    """The worker that this secret was minted for."""
    row = connection.execute(select(worker).where(worker.c.secret_hash == secret_hash)).mappings().first()
    return None if row is None else _worker(dict(row))


def worker_by_mark(connection: Connection, mark: str) -> WorkerRow | None:
    """The worker of that mark, its row locked until the transaction ends."""
    row = connection.execute(select(worker).where(worker.c.mark == mark).with_for_update()).mappings().first()
    return None if row is None else _worker(dict(row))


def _worker(row: dict[str, object]) -> WorkerRow:
    return WorkerRow(
        mark=str(row["mark"]),
        harvester=str(row["harvester"]),
        queue=str(row["queue"]),
        state=WorkerState(row["state"]),
        shape=msgspec.json.decode(str(row["shape"]), type=Shape),
        nodes=int(str(row["nodes"])),
        starts=int(str(row["starts"])),
        expires=float(str(row["expires"])),
    )


def add_worker(connection: Connection, harvester: str, report: WorkerReport, now: float) -> None:
    """Write down a worker that harvester means to submit, or found."""
    connection.execute(
        insert(worker).values(
            mark=report.mark,
            harvester=harvester,
            queue=report.queue,
            state=report.state.value,
            batch_id=report.batch_id,
            secret_hash=report.secret_hash,
            shape=msgspec.json.encode(report.shape).decode(),
            nodes=report.nodes,
            created=now,
            updated=now,
            expires=now + report.valid_s,
            reason=report.reason,
        )
    )


def update_worker(connection: Connection, report: WorkerReport, requeued: bool, now: float) -> None:
    """Write down what harvester says of a worker. A requeued one may start its pilots again."""
    values: dict[str, object] = {"state": report.state.value, "reason": report.reason, "updated": now}
    if report.batch_id is not None:
        values["batch_id"] = report.batch_id
    if requeued:
        values["starts"] = worker.c.starts + 1
    if report.state in FINAL_WORKER_STATES:
        values["secret_hash"] = None
    connection.execute(update(worker).where(worker.c.mark == report.mark).values(**values))


def pilots_alive(connection: Connection, mark: str, since: float) -> int:
    """How many pilots of a worker have reported since a moment."""
    query = select(func.count()).where(
        pilot.c.worker == mark, pilot.c.state == PilotState.ACTIVE, pilot.c.heartbeat >= since
    )
    return int(connection.execute(query).scalar_one())


def find_registered(connection: Connection, mark: str, node: int, start: int) -> PilotRow | None:
    """The pilot that registered for this node and start of a worker."""
    query = _PILOT.where(pilot.c.worker == mark, pilot.c.node == node, pilot.c.start == start)
    row = connection.execute(query).mappings().first()
    return None if row is None else _pilot(dict(row))


def register(
    connection: Connection, owner: WorkerRow, site: str, values: dict[str, object], offer: Offer, now: float
) -> int:
    """Write down a new pilot; its id."""
    result = connection.execute(
        insert(pilot)
        .values(
            worker=owner.mark,
            start=owner.starts,
            queue=owner.queue,
            site=site,
            state=int(PilotState.ACTIVE),
            registered=now,
            heartbeat=now,
            offer=msgspec.json.encode(offer).decode(),
            **values,
        )
        .returning(pilot.c.id)
    )
    return int(result.scalar_one())


_PILOT = select(pilot, worker.c.shape).join(worker, worker.c.mark == pilot.c.worker)


def get(connection: Connection, pilot_id: int) -> PilotRow | None:
    """A pilot by its id."""
    row = connection.execute(_PILOT.where(pilot.c.id == pilot_id)).mappings().first()
    return None if row is None else _pilot(dict(row))


def _pilot(row: dict[str, object]) -> PilotRow:
    return PilotRow(
        id=int(str(row["id"])),
        worker=str(row["worker"]),
        queue=str(row["queue"]),
        site=str(row["site"]),
        host=str(row["host"]),
        nonce=str(row["nonce"]),
        state=PilotState(int(str(row["state"]))),
        heartbeat=float(str(row["heartbeat"])),
        shape=msgspec.json.decode(str(row["shape"]), type=Shape),
    )


def beat(connection: Connection, pilot_id: int, offer: Offer | None, now: float) -> None:
    """A pilot was heard of."""
    values: dict[str, object] = {"heartbeat": now}
    if offer is not None:
        values["offer"] = msgspec.json.encode(offer).decode()
    connection.execute(update(pilot).where(pilot.c.id == pilot_id, pilot.c.state == PilotState.ACTIVE).values(**values))


def end(connection: Connection, pilot_id: int, reason: str, log_tail: str, now: float) -> bool:
    """A pilot has left; False if that was known already."""
    return _end(connection, pilot.c.id == pilot_id, PilotState.ENDED, reason, log_tail, now)


def lose(connection: Connection, pilot_id: int, before: float, reason: str, now: float) -> bool:
    """A pilot is taken for lost; False if it was heard of since ``before``, or has ended."""
    return _end(connection, (pilot.c.id == pilot_id) & (pilot.c.heartbeat < before), PilotState.LOST, reason, "", now)


def _end(
    connection: Connection, which: ColumnElement[bool], state: PilotState, reason: str, log_tail: str, now: float
) -> bool:
    result = connection.execute(
        update(pilot)
        .where(which, pilot.c.state == PilotState.ACTIVE)
        .values(state=int(state), ended=now, end_reason=reason, log_tail=log_tail)
    )
    return bool(result.rowcount)


_HAS_JOB = exists().where(job.c.pilot_id == pilot.c.id, job.c.state < FIRST_FINAL_JOB_CODE)


def silent(connection: Connection, before: float, limit: int) -> Sequence[PilotRow]:
    """Active pilots that were not heard of since ``before``."""
    query = _PILOT.where(pilot.c.state == PilotState.ACTIVE, pilot.c.heartbeat < before).limit(limit)
    return [_pilot(dict(row)) for row in connection.execute(query).mappings()]


def silent_of_ended_workers(connection: Connection, before: float, limit: int) -> Sequence[PilotRow]:
    """Active pilots, silent since ``before``, whose worker has ended for the batch system."""
    query = (
        _PILOT.where(pilot.c.state == PilotState.ACTIVE, pilot.c.heartbeat < before)
        .where(worker.c.state.in_([state.value for state in FINAL_WORKER_STATES]))
        .limit(limit)
    )
    return [_pilot(dict(row)) for row in connection.execute(query).mappings()]


def idle_by_queue(connection: Connection) -> dict[str, int]:
    """Active pilots without a job, by queue."""
    query = (
        select(pilot.c.queue, func.count().label("n"))
        .where(pilot.c.state == PilotState.ACTIVE, ~_HAS_JOB)
        .group_by(pilot.c.queue)
    )
    return {row.queue: int(row.n) for row in connection.execute(query)}


def last_offer(connection: Connection, queue: str) -> tuple[Offer, Shape] | None:
    """What the pilot of a queue that was heard of last offered, and its worker's shape."""
    query = (
        select(pilot.c.offer, worker.c.shape)
        .join(worker, worker.c.mark == pilot.c.worker)
        .where(pilot.c.queue == queue)
        .order_by(pilot.c.heartbeat.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return msgspec.json.decode(row.offer, type=Offer), msgspec.json.decode(row.shape, type=Shape)
