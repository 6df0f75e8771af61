"""Old things put away: jobs into their archive; replays, pilots and workers for good.

All in slices with a transaction each. A live job, and one that the books don't know yet, is never touched, whatever an
admin sets.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, exists, insert, select

from common.states import FINAL_WORKER_STATES
from server.store import beats, foreign
from server.store.codes import FIRST_FINAL_JOB_CODE, OutputState, PilotState
from server.store.schema import job, output, pilot, replay, worker
from server.store.schema_archive import job_archive
from server.store.schema_outputs import job_ended, registration

_UNSETTLED = [int(OutputState.RECORDED), int(OutputState.ABANDONED)]


def archive_jobs(connection: Connection, before: float, after: int, limit: int) -> tuple[int, int | None]:
    """Look at the next ``limit`` jobs behind id ``after``; archive those that ended before a moment.

    How many were archived, and the id to go on from: None when the jobs from there on were claimed too late to be old
    (ids rise with the time of the claim), so that a walk does not go through all of them.
    """
    query = select(job.c.id, job.c.claimed).where(job.c.id > after).order_by(job.c.id).limit(limit)
    rows = connection.execute(query).all()
    if not rows:
        return 0, None
    # Locked, and looked at again under the lock.
    old = (
        select(job.c.id)
        .where(job.c.id > after, job.c.id <= rows[-1].id)
        .where(job.c.state >= FIRST_FINAL_JOB_CODE, job.c.ended < before)
        .where(~exists().where(job_ended.c.job_id == job.c.id))
        .where(~exists().where(registration.c.job_id == job.c.id))
        .where(~exists().where(output.c.job_id == job.c.id, output.c.state.in_(_UNSETTLED)))
        .with_for_update(skip_locked=True)
    )
    ids = list(connection.execute(old).scalars())
    if ids:
        names = [each.name for each in job_archive.columns]
        moved = select(*(job.c[name] for name in names)).where(job.c.id.in_(ids))
        connection.execute(insert(job_archive).from_select(names, moved))
        connection.execute(delete(job).where(job.c.id.in_(ids)))
    over = len(rows) < limit or rows[-1].claimed >= before
    return len(ids), None if over else rows[-1].id


def delete_archived(connection: Connection, before: float, limit: int) -> int:
    """Delete a slice of archived jobs that ended before a moment; the first ``limit`` tell whether there are any."""
    query = select(job_archive.c.id, job_archive.c.ended).order_by(job_archive.c.id).limit(limit)
    old = [row.id for row in connection.execute(query) if row.ended is not None and row.ended < before]
    return _delete(connection, job_archive, job_archive.c.id, old)


def delete_replays(connection: Connection, before: float, limit: int) -> int:
    """Forget a slice of what repeats of old requests would get."""
    query = select(replay.c.holder, replay.c.request_id).where(replay.c.time < before).limit(limit)
    rows = connection.execute(query).all()
    for row in rows:
        connection.execute(delete(replay).where(replay.c.holder == row.holder, replay.c.request_id == row.request_id))
    return len(rows)


def delete_pilots(connection: Connection, before: float, after: int, limit: int) -> tuple[int, int | None]:
    """Look at the next pilots behind id ``after``; delete those that ended before a moment and hold no live job.

    How many, and the id to go on from, as with jobs.
    """
    query = select(pilot.c.id, pilot.c.registered).where(pilot.c.id > after).order_by(pilot.c.id).limit(limit)
    rows = connection.execute(query).all()
    if not rows:
        return 0, None
    old = (
        select(pilot.c.id)
        .where(pilot.c.id > after, pilot.c.id <= rows[-1].id)
        .where(pilot.c.state != PilotState.ACTIVE, pilot.c.ended < before)
        .where(~exists().where(job.c.pilot_id == pilot.c.id, job.c.ended.is_(None)))
    )
    ids = list(connection.execute(old).scalars())
    _delete(connection, pilot, pilot.c.id, ids)
    beats.forget(connection, ids)
    foreign.forget(connection, ids)
    over = len(rows) < limit or rows[-1].registered >= before
    return len(ids), None if over else rows[-1].id


def delete_workers(connection: Connection, before: float, limit: int) -> int:
    """Delete a slice of workers that ended before a moment and have no pilots left."""
    query = (
        select(worker.c.mark)
        .where(worker.c.state.in_([state.value for state in FINAL_WORKER_STATES]), worker.c.updated < before)
        .where(~exists().where(pilot.c.worker == worker.c.mark))
        .limit(limit)
    )
    return _delete(connection, worker, worker.c.mark, list(connection.execute(query).scalars()))


def _delete(connection: Connection, table: object, key: object, ids: list[object]) -> int:
    for start in range(0, len(ids), 1000):
        connection.execute(delete(table).where(key.in_(ids[start : start + 1000])))  # type: ignore[arg-type, attr-defined]
    return len(ids)
