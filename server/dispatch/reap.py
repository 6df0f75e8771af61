"""Jobs whose pilot is not heard of any more are declared lost; their units go back."""

from __future__ import annotations

from common.errors import ERRORS, ErrorCode
from common.states import JobState
from server.dispatch.context import Dispatcher
from server.dispatch.settle import Said, held_units, settle_units
from server.store import events, jobs, outputs, pilots, units
from server.store.jobs import JobEnd

BATCH = 500


def reap_silent(dispatcher: Dispatcher, up_since: float, unnoticed_s: float) -> int:
    """Declare lost what was silent for too long while the server was up; the number of jobs.

    Pilots whose worker has ended for the batch system need to be silent for a shorter time only: the batch system's
    word alone loses nothing, as a heartbeat outranks it. The server may have been away for ``unnoticed_s`` without its
    books showing it, so that no shorter silence counts.
    """
    now = dispatcher.now()
    knobs = dispatcher.looks.get().knobs
    lost = 0
    long_ago = now - max(knobs.heartbeat_timeout_s, unnoticed_s + 2 * knobs.heartbeat_s)
    if up_since <= long_ago:
        with dispatcher.database.read() as connection:
            silent_jobs = jobs.silent(connection, long_ago, BATCH)
            silent_pilots = pilots.silent(connection, long_ago, BATCH)
        lost += sum(lose(dispatcher, job_id, long_ago, ErrorCode.HEARTBEAT_LOST, "") for job_id in silent_jobs)
        for pilot in silent_pilots:
            _forget(dispatcher, pilot.id, long_ago, "silent for too long")
    lately = now - max(knobs.worker_end_grace_s, 2 * knobs.heartbeat_s)
    if up_since <= lately:
        with dispatcher.database.read() as connection:
            orphans = pilots.silent_of_ended_workers(connection, lately, BATCH)
        for pilot in orphans:
            with dispatcher.database.read() as connection:
                alive = jobs.alive_of_pilot(connection, pilot.id)
            lost += sum(lose(dispatcher, job_id, lately, ErrorCode.WORKER_LOST, "") for job_id in alive)
            _forget(dispatcher, pilot.id, lately, "its worker has ended")
    return lost


def _forget(dispatcher: Dispatcher, pilot_id: int, before: float, reason: str) -> None:
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        if pilots.lose(connection, pilot_id, before, reason, now):
            events.add(connection, events.Event(now, "PILOT_LOST", "pilot", pilot_id, detail={"reason": reason}))


def lose_jobs(dispatcher: Dispatcher, pilot_id: int, detail: str) -> int:
    """Give up all live jobs of a pilot that has left; how many."""
    with dispatcher.database.read() as connection:
        alive = jobs.alive_of_pilot(connection, pilot_id)
    now = dispatcher.now() + 1.0  # whatever was heard of them until this moment
    return sum(lose(dispatcher, job_id, now, ErrorCode.WORKER_LOST, detail) for job_id in alive)


def lose(dispatcher: Dispatcher, job_id: int, before: float, code: ErrorCode, detail: str) -> bool:
    """Declare one job lost if it was still not heard of since ``before``: the write is conditional."""
    now = dispatcher.now()
    look = dispatcher.looks.get()
    with dispatcher.database.write() as connection:
        job = jobs.hold_silent(connection, job_id, before)
        if job is None:
            return False
        said = Said(JobState.FAILED, error_code=int(code), error_detail=detail or ERRORS[code].words)
        settle_units(connection, look, job, held_units(units.of_job(connection, job_id)), said, now)
        # A killed job whose pilot never answered is cancelled, as was asked for.
        state = JobState.CANCELLED if job.kill_reason is not None else JobState.FAILED
        jobs.finish(connection, job_id, JobEnd(state, int(code), said.error_detail), now)
        outputs.settle(connection, job_id, [])
        events.add(
            connection,
            events.Event(
                now, "JOB_LOST", "job", job_id, job.task_id, job_id, source=job.state, target=state,
                detail={"error_code": int(code), "silent_s": round(now - job.heartbeat, 1)},
            ),
        )  # fmt: skip
    dispatcher.floors.reset(job.bucket_id)
    dispatcher.changed()
    return True
