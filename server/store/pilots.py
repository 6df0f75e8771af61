"""Workers and their pilots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, exists, func, insert, literal_column, null, or_, select, union_all, update
from sqlalchemy.sql.elements import ColumnElement

from common.states import FINAL_WORKER_STATES, WorkerState
from common.wire import NodeInfo, Offer, PilotView, Shape, WorkerReport
from server.store import beats
from server.store.beats import Beat
from server.store.codes import PilotState
from server.store.prepared import Prepared
from server.store.schema import job, pilot, pilot_beat, pilot_report, worker


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
    shape: Shape
    pushed: bool = False
    """Whether jobs were claimed for it before it was there."""


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
            host=report.host,
        )
    )


def update_worker(connection: Connection, report: WorkerReport, requeued: bool, now: float) -> None:
    """Write down what harvester says of a worker. A requeued one may start its pilots again."""
    values: dict[str, object] = {"state": report.state.value, "reason": report.reason, "updated": now}
    if report.batch_id is not None:
        values["batch_id"] = report.batch_id
    if report.host:
        values["host"] = report.host
    if report.log_url is not None:
        values.update(log_url=report.log_url, log_tail=report.log_tail)
    if requeued:
        values["starts"] = worker.c.starts + 1
    if report.state in FINAL_WORKER_STATES:
        values["secret_hash"] = None
    connection.execute(update(worker).where(worker.c.mark == report.mark).values(**values))


def pilots_alive(connection: Connection, mark: str, since: float) -> int:
    """How many pilots of a worker have reported since a moment."""
    query = (
        select(func.count())
        .select_from(pilot.join(pilot_beat, pilot_beat.c.pilot_id == pilot.c.id))
        .where(pilot.c.worker == mark, pilot.c.state == PilotState.ACTIVE, pilot_beat.c.time >= since)
    )
    return int(connection.execute(query).scalar_one())


def pilots_seen(connection: Connection, mark: str) -> int:
    """How many pilots of a worker ever registered; those that are only expected have no nonce."""
    query = select(func.count()).where(pilot.c.worker == mark, pilot.c.nonce != literal_column("''"))
    return int(connection.execute(query).scalar_one())


def find_registered(connection: Connection, mark: str, node: int, start: int) -> PilotRow | None:
    """The pilot that registered for this node and start of a worker."""
    query = _PILOT.where(pilot.c.worker == mark, pilot.c.node == node, pilot.c.start == start)
    row = connection.execute(query).first()
    return None if row is None else _pilot(row)


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
            **values,
        )
        .returning(pilot.c.id)
    )
    pilot_id = int(result.scalar_one())
    beats.write(connection, {pilot_id: Beat(now, offer=msgspec.json.encode(offer).decode())})
    return pilot_id


def page(connection: Connection, queue: str | None, failed: bool, after: int, limit: int) -> list[PilotView]:
    """Pilots in short, by id: of one queue, or those only that were lost or left because something was wrong."""
    query = (
        select(pilot, pilot_beat.c.time.label("heard"))
        .outerjoin(pilot_beat, pilot_beat.c.pilot_id == pilot.c.id)
        .where(pilot.c.id > after)
        .order_by(pilot.c.id)
        .limit(limit)
    )
    if queue is not None:
        query = query.where(pilot.c.queue == queue)
    if failed:
        query = query.where(or_(pilot.c.state == int(PilotState.LOST), pilot.c.log_tail != ""))
    return [_in_short(row) for row in connection.execute(query)]


def _in_short(row: Any) -> PilotView:
    return PilotView(
        id=row.id,
        worker=row.worker,
        node=row.node,
        queue=row.queue,
        site=row.site,
        host=row.host,
        version=row.version,
        state=PilotState(row.state).name.lower(),
        registered=row.registered,
        heard=row.heard,
        ended=row.ended,
        end_reason=row.end_reason,
    )


def view(connection: Connection, pilot_id: int) -> PilotView | None:
    """All that is known of a pilot, for people."""
    query = (
        select(pilot, pilot_beat.c.time.label("heard"), pilot_report.c.offer)
        .outerjoin(pilot_beat, pilot_beat.c.pilot_id == pilot.c.id)
        .outerjoin(pilot_report, pilot_report.c.pilot_id == pilot.c.id)
        .where(pilot.c.id == pilot_id)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return msgspec.structs.replace(
        _in_short(row),
        log_tail=row.log_tail,
        offer=msgspec.json.decode(row.offer, type=Offer) if row.offer else None,
        node_info=msgspec.json.decode(row.node_info, type=NodeInfo) if row.node_info else None,
    )


_COLUMNS = (pilot.c.id, pilot.c.worker, pilot.c.queue, pilot.c.site, pilot.c.host, pilot.c.nonce, pilot.c.state)
_PILOT = select(*_COLUMNS, worker.c.shape, pilot.c.pushed).join(worker, worker.c.mark == pilot.c.worker)
_BY_ID = Prepared(_PILOT.where(pilot.c.id == bindparam("pilot_id")))


def get(connection: Connection, pilot_id: int) -> PilotRow | None:
    """A pilot by its id."""
    found = _BY_ID.run(connection, {"pilot_id": pilot_id})
    return _pilot(found[0]) if found else None


def _pilot(row: Sequence[Any]) -> PilotRow:
    pilot_id, mark, queue, site, host, nonce, state, shape, pushed = row
    state, shape = PilotState(state), _SHAPE.decode(shape)
    return PilotRow(pilot_id, mark, queue, site, host, nonce, state, shape, bool(pushed))


_SHAPE = msgspec.json.Decoder(Shape)


def end(connection: Connection, pilot_id: int, reason: str, log_tail: str, now: float) -> bool:
    """A pilot has left; False if that was known already."""
    return _end(connection, pilot.c.id == pilot_id, PilotState.ENDED, reason, log_tail, now)


def lose(connection: Connection, pilot_id: int, before: float, reason: str, now: float) -> bool:
    """A pilot is taken for lost; False if it was heard of since ``before``, or has ended."""
    heard = exists().where(pilot_beat.c.pilot_id == pilot_id, pilot_beat.c.time >= before)
    return _end(connection, (pilot.c.id == pilot_id) & ~heard, PilotState.LOST, reason, "", now)


def _end(
    connection: Connection, which: ColumnElement[bool], state: PilotState, reason: str, log_tail: str, now: float
) -> bool:
    result = connection.execute(
        update(pilot)
        .where(which, pilot.c.state == PilotState.ACTIVE)
        .values(state=int(state), ended=now, end_reason=reason, log_tail=log_tail)
    )
    return bool(result.rowcount)


SLICE = 50_000
"""Pilots that are looked at in one go, in the order of their numbers."""


@dataclass(frozen=True, slots=True)
class SilentPilot:
    """An active pilot, when it was heard of last, if ever, and whether its worker has ended for the batch system."""

    id: int
    queue: str
    heard: float | None
    worker_ended: bool


def silent(
    connection: Connection, before: float, kept_since: float, after: int = 0
) -> tuple[Sequence[SilentPilot], int | None]:
    """Active pilots of a slice that were not heard of since ``before``, and the number to go on after, if any are left.

    One without a beat counts as heard of when the beats began to be kept (``kept_since``).
    """
    ids = (
        select(pilot.c.id).where(pilot.c.state == literal_column("0"), pilot.c.id > after).order_by(pilot.c.id)
    ).limit(SLICE)
    part = ids.subquery()
    last = connection.execute(select(func.max(part.c.id), func.count()).select_from(part)).one()
    if last[0] is None:
        return [], None
    mine = (pilot.c.state == literal_column("0"), pilot.c.id > after, pilot.c.id <= last[0])
    beats = (pilot_beat.c.pilot_id > after, pilot_beat.c.pilot_id <= last[0])
    columns = (pilot.c.id, pilot.c.queue, pilot.c.worker)
    # Beats by their own key first: of a slice few are old. Then the workers of these few.
    found_quiet: Any = (
        select(*columns, pilot_beat.c.time)
        .join(pilot_beat, pilot_beat.c.pilot_id == pilot.c.id)
        .where(*mine, *beats, pilot_beat.c.time < before)
    )
    if kept_since < before:
        unheard = ~exists().where(pilot_beat.c.pilot_id == pilot.c.id, *beats)
        found_quiet = union_all(found_quiet, select(*columns, null().label("time")).where(*mine, unheard))
    quiet = found_quiet.cte("quiet").prefix_with("MATERIALIZED", dialect="postgresql")
    query = (
        select(quiet.c.id, quiet.c.queue, quiet.c.time, worker.c.state)
        .join(worker, worker.c.mark == quiet.c.worker)
        .order_by(quiet.c.id)
    )
    found = [
        SilentPilot(pilot_id, queue, heard, state in _ENDED)
        for pilot_id, queue, heard, state in connection.execute(query)
    ]
    return found, int(last[0]) if last[1] == SLICE else None


_ENDED = frozenset(state.value for state in FINAL_WORKER_STATES)


def busy_by_shape(connection: Connection, queues: Sequence[str]) -> dict[str, list[tuple[Shape, int]]]:
    """Pilots of these queues that hold jobs, counted by the shape of their worker."""
    query = (
        select(pilot.c.queue, worker.c.shape, func.count().label("n"))
        .select_from(pilot.join(worker, worker.c.mark == pilot.c.worker))
        .where(pilot.c.state == literal_column("0"), pilot.c.queue.in_(queues))
        .where(exists().where(job.c.pilot_id == pilot.c.id, job.c.ended.is_(None)))
        .group_by(pilot.c.queue, worker.c.shape)
    )
    found: dict[str, list[tuple[Shape, int]]] = {queue: [] for queue in queues}
    for row in connection.execute(query):
        found[row.queue].append((msgspec.json.decode(row.shape, type=Shape), int(row.n)))
    return found


def waiting_by_queue(connection: Connection) -> dict[str, int]:
    """Workers of each queue that wait in its batch system, or are on their way there."""
    waiting = (WorkerState.PLANNED, WorkerState.SUBMITTING, WorkerState.SUBMITTED)
    started = exists().where(pilot.c.worker == worker.c.mark, pilot.c.state != PilotState.EXPECTED)
    query = (
        select(worker.c.queue, func.count().label("n"))
        .where(worker.c.state.in_([state.value for state in waiting]), ~started)
        .group_by(worker.c.queue)
    )
    return {row.queue: int(row.n) for row in connection.execute(query)}


def last_offer_of(connection: Connection, pilot_id: int) -> Offer | None:
    """What a pilot last offered."""
    text = connection.execute(select(pilot_report.c.offer).where(pilot_report.c.pilot_id == pilot_id)).scalar()
    return msgspec.json.decode(text, type=Offer) if text else None


def last_offer(connection: Connection, queue: str) -> tuple[Offer, Shape] | None:
    """What the pilot of a queue that was heard of last offered, and its worker's shape."""
    query = (
        select(pilot_report.c.offer, worker.c.shape)
        .select_from(pilot.join(worker, worker.c.mark == pilot.c.worker))
        .join(pilot_report, pilot_report.c.pilot_id == pilot.c.id)
        .join(pilot_beat, pilot_beat.c.pilot_id == pilot.c.id)
        .where(pilot.c.state == literal_column("0"), pilot.c.queue == queue, pilot_report.c.offer.is_not(None))
        .order_by(pilot_beat.c.time.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return msgspec.json.decode(row.offer, type=Offer), msgspec.json.decode(row.shape, type=Shape)
