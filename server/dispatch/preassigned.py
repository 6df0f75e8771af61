"""Jobs that were claimed for a pilot before it was there (:mod:`server.dispatch.push`).

They wait for it, in the state ``sent``, under a pilot that is *expected*. It gets them as the answers to its first
questions; those that it never gets go back untouched when it can't come any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, ResourceState
from common.wire import AcquireReply, AcquireRequest, Assignment, Offer, QueueMode, QueueSpec
from server.dispatch.assign import assignment, facts_of
from server.dispatch.context import Dispatcher, Look
from server.dispatch.reap import end_held, give_up
from server.engine.matching import effective_offer
from server.engine.pushing import Demanded, misfit, rest_of
from server.engine.sizing import needed
from server.store import claims, events, jobs, pushed, retry_rules, units
from server.store.claims import ClaimedJob
from server.store.codes import PUSHED_ORDINAL
from server.store.pilots import PilotRow

BATCH = 500
"""Expected pilots and killed jobs that one round of the agent looks at."""
MB = 1024 * 1024


@dataclass(frozen=True)
class Described:
    """A live job as its pilot is told of it, and what a slot must have for it."""

    assignment: Assignment
    demanded: Demanded


def described(
    dispatcher: Dispatcher, look: Look, site: str, queue: QueueSpec | None, job_ids: Sequence[int]
) -> list[Described]:
    """Those of the jobs that live, in their order."""
    found = []
    for job_id in job_ids:
        with dispatcher.database.read() as connection:
            row = jobs.get(connection, job_id)
            task = dispatcher.task(connection, row.task_id) if row is not None else None
            taken = units.taken_by(connection, job_id)
            place = retry_rules.places(connection, [row.bucket_id])[row.bucket_id] if row is not None else None
        if row is None or task is None or place is None or row.state in FINAL_JOB_STATES:
            continue
        job = ClaimedJob(job_id, row.task_id, row.bucket_id, taken)
        facts = facts_of(task)
        made = assignment(dispatcher, look, site, job, facts, place.memory_mb, place.wall_s, queue)
        made.preassigned = row.ordinal >= PUSHED_ORDINAL
        least = needed(facts.spec, facts.measured, look.knobs, sum(each.events or 1 for each in taken))
        least = structs.replace(
            least, memory_mb=place.memory_mb or least.memory_mb, wall_s=place.wall_s or least.wall_s
        )
        found.append(Described(made, Demanded(least, _input_mb(made), facts.spec.image is not None)))
    return found


def _input_mb(made: Assignment) -> int:
    """Disk that a job's input takes."""
    files = [] if made.remote_io else [each.file for each in made.units if each.file is not None]
    files += [*made.common_input, *(file for stream in made.secondary.values() for file in stream)]
    return -(-sum({file.did: file.size or 0 for file in files}.values()) // MB)


def hand_out(
    dispatcher: Dispatcher, look: Look, pilot: PilotRow, queue: QueueSpec, request: AcquireRequest
) -> AcquireReply | None:
    """What of the jobs that wait for a pilot fits its offer; None if it is to look for others.

    A job that does not fit the whole slot, with nothing else in it, fails by the slot's fault.
    """
    with dispatcher.database.read() as connection:
        earlier = claims.request_of(connection, pilot.id, request.request_id)
        waiting = pushed.waiting(connection, [pilot.id])
    if earlier:
        return AcquireReply(jobs=[each.assignment for each in described(dispatcher, look, pilot.site, queue, earlier)])
    for killed in (each for each in waiting if each.kill_reason is not None):
        give_up(dispatcher, killed.id, ErrorCode.KILLED_BY_SERVER, killed.kill_reason or "")
    alive = [each.id for each in waiting if each.kill_reason is None]
    if not alive or queue.status == ResourceState.OFFLINE:
        return None
    offer = effective_offer(request.offer, queue, pilot.shape)
    fitting, refused = _fitting(described(dispatcher, look, pilot.site, queue, alive), offer, request.max_jobs)
    with dispatcher.database.write() as connection:
        ids = [each.job_id for each in fitting]
        given = set(pushed.hand_out(connection, pilot.id, ids, request.request_id, dispatcher.now()) if ids else ())
        busy = bool(given) or pushed.works(connection, pilot.id)
    if given:
        return AcquireReply(jobs=[each for each in fitting if each.job_id in given])
    if not (busy or fitting or request.ahead):
        for job_id, words in refused.items():
            give_up(dispatcher, job_id, ErrorCode.SLOT_TOO_SMALL, words)
        return None
    return AcquireReply(retry_after_s=look.knobs.acquire_wait_s or 1.0)


def _fitting(found: Sequence[Described], offer: Offer, most: int) -> tuple[list[Assignment], dict[int, str]]:
    """The jobs that fit side by side, ``most`` at the most; and why the others do not."""
    fitting: list[Assignment] = []
    refused: dict[int, str] = {}
    left: Offer | None = offer
    for each in found:
        if len(fitting) == most or left is None:
            break
        words = misfit(each.demanded, left)
        if words:
            refused[each.assignment.job_id] = words
            continue
        fitting.append(each.assignment)
        left = rest_of(left, each.demanded)
    return fitting, refused


def leaves(queue: QueueSpec) -> bool:
    """Whether a pilot of a queue that has none of the jobs that were claimed for it left is to go."""
    return queue.mode == QueueMode.PUSH and not queue.pull_more


def release(dispatcher: Dispatcher, pilot_ids: Sequence[int], reason: str) -> int:
    """Expect these pilots no more, unless they have come: their jobs go back untouched; how many of both."""
    return sum(_release(dispatcher, pilot_id, reason) for pilot_id in pilot_ids)


def _release(dispatcher: Dispatcher, pilot_id: int, reason: str) -> int:
    now = dispatcher.now()
    look = dispatcher.looks.get()
    with dispatcher.database.write() as connection:
        alive = jobs.alive_of_pilot(connection, pilot_id)
        held = [job for job_id in alive if (job := jobs.hold_any(connection, job_id)) is not None]
        if not pushed.give_up(connection, pilot_id, reason, now):
            return 0
        for job in held:
            end_held(connection, look, job, ErrorCode.WORKER_LOST, reason, now)
        detail = {"reason": reason, "jobs": len(held)}
        events.add(connection, events.Event(now, "PILOT_ENDED", "pilot", pilot_id, detail=detail))
    for job in held:
        dispatcher.came_back(job.bucket_id)
    return 1 + len(held)


def release_ended(dispatcher: Dispatcher, marks: Sequence[str]) -> int:
    """These workers have ended: their pilots will not come."""
    if not marks:
        return 0
    with dispatcher.database.read() as connection:
        found = pushed.of_workers(connection, marks)
    return release(dispatcher, found, "its worker ended before its pilot came")


def release_forsaken(dispatcher: Dispatcher) -> int:
    """What the server did not get to when a worker ended, or a secret's time was over; and jobs that were killed."""
    with dispatcher.database.read() as connection:
        over = pushed.forsaken(connection, dispatcher.now(), BATCH)
        killed = pushed.killed(connection, BATCH)
    done = release(dispatcher, over, "its worker ended, or can't begin any more")
    return done + sum(give_up(dispatcher, job_id, ErrorCode.KILLED_BY_SERVER, "") for job_id in killed)
