"""Outputs: recorded, confirmed, or abandoned and swept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, func, insert, or_, select, update

from common.wire import OutputRecord, OutputView
from server.engine.world import World
from server.store.codes import FIRST_FINAL_JOB_CODE, OutputState
from server.store.schema import job, output


@dataclass(frozen=True)
class OutputRow:
    """A recorded output."""

    id: int
    job_id: int
    task_id: int
    name: str
    did: str
    role: str
    storage: str
    path: str
    size: int
    checksum: str
    events: int | None
    state: OutputState


def of_job(connection: Connection, job_id: int) -> list[OutputRow]:
    """All outputs that a job recorded."""
    return _rows(connection, select(output).where(output.c.job_id == job_id).order_by(output.c.id))


def _rows(connection: Connection, query) -> list[OutputRow]:  # type: ignore[no-untyped-def]
    return [
        OutputRow(
            row.id, row.job_id, row.task_id, row.name, row.did, row.role, row.storage, row.path, row.size,
            row.checksum, row.events, OutputState(row.state),
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def record(
    connection: Connection,
    job_id: int,
    task_id: int,
    files: Sequence[tuple[OutputRecord, str, str, str]],
    now: float,
) -> None:
    """Reserve names: each file with its DID, storage and path."""
    if files:
        connection.execute(
            insert(output),
            [
                {
                    "job_id": job_id,
                    "task_id": task_id,
                    "name": file.name,
                    "did": did,
                    "role": file.role.value,
                    "storage": storage,
                    "path": path,
                    "size": file.size,
                    "checksum": file.checksum,
                    "events": file.events,
                    "attributes": msgspec.json.encode(file.attributes).decode() if file.attributes else None,
                    "state": int(OutputState.RECORDED),
                    "recorded": now,
                }
                for file, did, storage, path in files
            ],
        )


def amend(connection: Connection, output_id: int, file: OutputRecord) -> None:
    """The same name recorded again with other content, before it was confirmed."""
    connection.execute(
        update(output)
        .where(output.c.id == output_id, output.c.state == OutputState.RECORDED)
        .values(
            size=file.size,
            checksum=file.checksum,
            events=file.events,
            attributes=msgspec.json.encode(file.attributes).decode() if file.attributes else None,
        )
    )


def settle(connection: Connection, job_id: int, confirmed: Iterable[int]) -> None:
    """At a job's end: these outputs become visible, all others that it recorded are abandoned."""
    ids = list(confirmed)
    if ids:
        connection.execute(update(output).where(output.c.id.in_(ids)).values(state=int(OutputState.CONFIRMED)))
    connection.execute(
        update(output)
        .where(output.c.job_id == job_id, output.c.state == OutputState.RECORDED)
        .values(state=int(OutputState.ABANDONED))
    )


def unfed(connection: Connection, task_id: int, limit: int) -> list[OutputRow]:
    """Confirmed outputs of a task that were not given to the stages behind it yet; rows are locked."""
    query = (
        select(output)
        .where(output.c.task_id == task_id, output.c.state == OutputState.CONFIRMED, ~output.c.fed)
        .order_by(output.c.id)
        .limit(limit)
        .with_for_update()
    )
    return _rows(connection, query)


def mark_fed(connection: Connection, ids: Sequence[int]) -> None:
    """They were given to the stages behind."""
    if ids:
        connection.execute(update(output).where(output.c.id.in_(ids)).values(fed=True))


def unswept(connection: Connection, before: float, storages: Collection[str], limit: int) -> list[OutputRow]:
    """Outputs on these storages, recorded before a moment, that no live job can confirm any more.

    In no order, so that some that cannot be removed don't keep the others from their turn.
    """
    query = (
        select(output)
        .join(job, job.c.id == output.c.job_id)
        .where(output.c.state.in_([int(OutputState.RECORDED), int(OutputState.ABANDONED)]))
        .where(output.c.recorded < before, job.c.state >= FIRST_FINAL_JOB_CODE)
        .where(or_(job.c.ended.is_(None), job.c.ended < before))
        .where(output.c.storage.in_(list(storages)))
        .order_by(func.random())
        .limit(limit)
    )
    return _rows(connection, query)


def mark_removed(connection: Connection, ids: Sequence[int]) -> None:
    """They were removed from their storage."""
    if ids:
        connection.execute(
            update(output)
            .where(output.c.id.in_(ids), output.c.state != OutputState.CONFIRMED)
            .values(state=int(OutputState.REMOVED))
        )


def page(
    connection: Connection, task_id: int, world: World, *, role: str | None, after: int, limit: int
) -> tuple[Sequence[OutputView], int | None]:
    """Confirmed outputs of a task, and the id to go on from."""
    query = (
        select(output)
        .where(output.c.task_id == task_id, output.c.id > after, output.c.state == OutputState.CONFIRMED)
        .order_by(output.c.id)
        .limit(limit)
    )
    if role is not None:
        query = query.where(output.c.role == role)
    rows = connection.execute(query).all()
    views = []
    for row in rows:
        urls = world.urls(row.storage, row.path, "", write=False) if row.storage in world.storages else []
        views.append(
            OutputView(
                did=row.did,
                task_id=row.task_id,
                job_id=row.job_id,
                role=row.role,
                storage=row.storage,
                url=urls[0] if urls else "",
                size=row.size,
                checksum=row.checksum,
                events=row.events,
                attributes=msgspec.json.decode(row.attributes) if row.attributes else {},
            )
        )
    return views, rows[-1].id if len(rows) == limit else None
