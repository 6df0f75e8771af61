"""Jobs whose pilot is not heard of any more are declared lost; their units go back.

Silence counts only while the server was up, and a crash of the database that emptied the table of heartbeats counts as
having heard of everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import ERRORS, ErrorCode
from common.states import JobState
from server.dispatch.context import Dispatcher, Look
from server.dispatch.settle import Said, held_units, settle_units
from server.engine.outcomes import Fault, fault_of
from server.engine.timeouts import Silence
from server.store import beats, events, jobs, outputs, pilots, units, watches
from server.store.database import Connection
from server.store.jobs import JobEnd, JobRow
from server.store.pilots import SilentPilot

BATCH = 500
"""Pilots that one round gives up at the most; the next follows at once."""
CURSOR = "reap-silent"


@dataclass(frozen=True)
class _Silent:
    """A pilot that has been silent for too long, and what is said of its jobs."""

    pilot_id: int
    before: float
    code: ErrorCode
    reason: str


def reap_silent(dispatcher: Dispatcher, up_since: float, unnoticed_s: float) -> int:
    """Declare lost what was silent for too long while the server was up; the number of pilots and jobs.

    One round looks at one slice of the pilots, a transaction for each one that is given up.
    """
    now = dispatcher.now()
    look = dispatcher.looks.get()
    knobs = look.knobs
    silence = Silence(knobs.heartbeat_timeout_s, knobs.worker_end_grace_s, knobs.heartbeat_s, unnoticed_s)
    with dispatcher.database.write(durable=False) as connection:
        kept = min(now, beats.kept_since(connection, now))
        after = watches.cursor(connection, CURSOR)
    with dispatcher.database.read() as connection:
        found, following = pilots.silent(connection, now - silence.least_s, kept, after)
    overdue = _overdue(look, silence, found, max(up_since, kept), now)
    batch = overdue[:BATCH]
    lost = sum(_lose_pilot(dispatcher, each) for each in batch)
    with dispatcher.database.write(durable=False) as connection:
        watches.clamp_future(connection, after, following, now)
        going_on = following or 0
        if len(batch) < len(overdue):
            going_on = batch[-1].pilot_id
        if going_on != after:
            watches.set_cursor(connection, CURSOR, going_on)
    return lost


def _overdue(look: Look, silence: Silence, found: Sequence[SilentPilot], since: float, now: float) -> list[_Silent]:
    """Those of the silent pilots that their queue's limit gives up."""
    limits: dict[tuple[str, bool], float | None] = {}
    overdue = []
    for each in found:
        key = each.queue, each.worker_ended
        if key not in limits:
            limits[key] = silence.limit(look.world, *key)
        limit = limits[key]
        heard = since if each.heard is None else each.heard
        if limit is None or heard >= now - limit or since > now - limit:
            continue
        if each.worker_ended:
            overdue.append(_Silent(each.id, now - limit, ErrorCode.WORKER_LOST, "its worker has ended"))
        else:
            overdue.append(_Silent(each.id, now - limit, ErrorCode.HEARTBEAT_LOST, "silent for too long"))
    return overdue


def _lose_pilot(dispatcher: Dispatcher, silent: _Silent) -> int:
    """Give up a pilot and its jobs, unless it was heard of meanwhile; how many."""
    now = dispatcher.now()
    look = dispatcher.looks.get()
    pilot_id = silent.pilot_id
    with dispatcher.database.write() as connection:
        alive = jobs.alive_of_pilot(connection, pilot_id)
        held = [job for job_id in alive if (job := jobs.hold_any(connection, job_id)) is not None]
        if not pilots.lose(connection, pilot_id, silent.before, silent.reason, now):
            return 0
        for job in held:
            end_held(connection, look, job, silent.code, "", now)
        beats.forget(connection, [pilot_id])
        detail = {"reason": silent.reason, "silent_s": round(now - silent.before, 1), "jobs": len(held)}
        events.add(connection, events.Event(now, "PILOT_LOST", "pilot", pilot_id, detail=detail))
    for job in held:
        dispatcher.came_back(job.bucket_id)
    return 1 + len(held)


def lose_jobs(dispatcher: Dispatcher, pilot_id: int, detail: str) -> int:
    """Give up all live jobs of a pilot that has left; how many."""
    with dispatcher.database.read() as connection:
        alive = jobs.alive_of_pilot(connection, pilot_id)
    return sum(give_up(dispatcher, job_id, ErrorCode.WORKER_LOST, detail) for job_id in alive)


def lose(dispatcher: Dispatcher, job_id: int, before: float, code: ErrorCode, detail: str) -> bool:
    """Declare one live job lost that was claimed before a moment."""
    return give_up(dispatcher, job_id, code, detail, lambda job: job.claimed < before)


def give_up(
    dispatcher: Dispatcher,
    job_id: int,
    code: ErrorCode,
    detail: str,
    still: Callable[[JobRow], bool] = lambda _: True,
) -> bool:
    """Fail one live job whose row, once it is held, is ``still`` as the caller saw it; False if not."""
    now = dispatcher.now()
    look = dispatcher.looks.get()
    with dispatcher.database.write() as connection:
        job = jobs.hold_any(connection, job_id)
        if job is None or not still(job):
            return False
        end_held(connection, look, job, code, detail, now)
    dispatcher.came_back(job.bucket_id)
    return True


def end_held(connection: Connection, look: Look, job: JobRow, code: ErrorCode, detail: str, now: float) -> None:
    """End a job that this transaction holds. One that its pilot was never given goes back as it was if that is lost."""
    state = JobState.FAILED
    if job.waits and fault_of(int(code)) == Fault.PILOT:
        state, code = JobState.CLOSED, ErrorCode.GIVEN_BACK
    said = Said(state, error_code=int(code), error_detail=detail or ERRORS[code].words)
    settle_units(connection, look, job, held_units(units.of_job(connection, job.id)), said, now)
    # A killed job whose pilot never answered is cancelled, as was asked for.
    state = JobState.CANCELLED if job.kill_reason is not None else state
    jobs.finish(connection, job, JobEnd(state, int(code), said.error_detail), now)
    outputs.abandon(connection, [job.id], now)
    told = {"error_code": int(code), "detail": said.error_detail[:500]}
    kind = "JOB_CLOSED" if state == JobState.CLOSED else "JOB_LOST"
    event = events.Event(now, kind, "job", job.id, job.task_id, job.id, source=job.state, target=state, detail=told)
    events.add(connection, event)
