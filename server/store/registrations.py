"""Confirmed jobs whose outputs the server has to register."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from common.wire import RegistrationView
from server.store.access import Sight
from server.store.schema import job
from server.store.schema_outputs import registration


class Phase(IntEnum):
    """What is to be done next."""

    REGISTER = 0
    """Tell the catalogue of the outputs."""
    WITHDRAW = 1
    """Take out again what it knows of them: the job fails, or was killed."""
    CONFIRM = 2
    """Tell the catalogue that the job has ended well."""


@dataclass(frozen=True)
class Waiting:
    """A job that waits for its registration.

    ``killed`` says why nothing of it is wanted any more. One that is not ``alive`` was ended by somebody else, or its
    row is gone: nothing remains to be done for it.
    """

    job_id: int
    task_id: int
    phase: Phase
    tries: int
    error: str
    killed: str | None
    alive: bool


def add(connection: Connection, job_id: int, task_id: int, now: float) -> None:
    """A job was confirmed; its outputs are to be registered."""
    connection.execute(
        insert(registration).values(job_id=job_id, task_id=task_id, phase=int(Phase.REGISTER), since=now, next_try=now)
    )


_COLUMNS = (
    registration.c.job_id, registration.c.task_id, registration.c.phase, registration.c.tries, registration.c.error,
    job.c.kill_reason, and_(job.c.confirmed.is_not(None), job.c.ended.is_(None)).label("alive"),
)  # fmt: skip


def due(connection: Connection, now: float, limit: int) -> list[Waiting]:
    """Jobs whose next try is due, longest first."""
    query = (
        select(*_COLUMNS)
        .outerjoin(job, job.c.id == registration.c.job_id)
        .where(registration.c.next_try <= now)
        .order_by(registration.c.next_try, registration.c.job_id)
        .limit(limit)
    )
    return [
        Waiting(row.job_id, row.task_id, Phase(row.phase), row.tries, row.error, row.kill_reason, bool(row.alive))
        for row in connection.execute(query)
    ]


def still(connection: Connection, job_ids: Collection[int], phase: Phase) -> set[int]:
    """Those of the jobs that are in this phase, their rows here held. The jobs' own rows must be held already."""
    query = (
        select(registration.c.job_id)
        .where(registration.c.job_id.in_(list(job_ids)), registration.c.phase == int(phase))
        .order_by(registration.c.job_id)
        .with_for_update()
    )
    return {row.job_id for row in connection.execute(query)}


def reason(connection: Connection, job_id: int, phase: Phase) -> str | None:
    """Why a job is in this phase, its row here held; None when it is not in it."""
    query = select(registration.c.error).where(registration.c.job_id == job_id, registration.c.phase == int(phase))
    return connection.execute(query.with_for_update()).scalar()


def put_off(connection: Connection, later: Collection[tuple[int, float, str]]) -> None:
    """The next try of jobs: (job, when, what went wrong)."""
    if later:
        rows = [{"b_job": job_id, "b_next": when, "b_error": error[:1000]} for job_id, when, error in later]
        connection.execute(_PUT_OFF, rows)


_PUT_OFF = (
    update(registration)
    .where(registration.c.job_id == bindparam("b_job"))
    .values(tries=registration.c.tries + 1, next_try=bindparam("b_next"), error=bindparam("b_error"))
)


def withdraw(connection: Connection, job_ids: Collection[int], reasons: Collection[str], now: float) -> None:
    """Have the outputs of jobs taken out again, each for a reason."""
    rows = [{"b_job": job_id, "b_error": reason[:1000]} for job_id, reason in zip(job_ids, reasons, strict=True)]
    if rows:
        connection.execute(
            update(registration)
            .where(registration.c.job_id == bindparam("b_job"), registration.c.phase == int(Phase.REGISTER))
            .values(phase=int(Phase.WITHDRAW), tries=0, next_try=now, error=bindparam("b_error")),
            rows,
        )


def registered(connection: Connection, job_ids: Collection[int], now: float) -> None:
    """Jobs have ended well, and the catalogue is to be told so."""
    connection.execute(
        update(registration)
        .where(registration.c.job_id.in_(list(job_ids)))
        .values(phase=int(Phase.CONFIRM), tries=0, next_try=now, error="")
    )


def forget(connection: Connection, job_ids: Collection[int]) -> None:
    """Nothing remains to be done for these jobs."""
    connection.execute(delete(registration).where(registration.c.job_id.in_(list(job_ids))))


def page(
    connection: Connection, task_id: int | None, sight: Sight | None, *, after: int, limit: int
) -> list[RegistrationView]:
    """What waits, of a task or of all, by job."""
    query = select(registration).where(registration.c.job_id > after).order_by(registration.c.job_id).limit(limit)
    if task_id is not None:
        query = query.where(registration.c.task_id == task_id)
    if sight is not None:
        query = query.where(registration.c.task_id.in_(sight.tasks()))
    return [
        RegistrationView(
            job_id=row.job_id,
            task_id=row.task_id,
            withdrawing=row.phase == int(Phase.WITHDRAW),
            since=row.since,
            tries=row.tries,
            next_try=row.next_try,
            error=row.error,
        )
        for row in connection.execute(query)
    ]
