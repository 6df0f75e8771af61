"""A pilot asks for work."""

from __future__ import annotations

from dataclasses import replace

from common.wire import (
    AcquireReply,
    AcquireRequest,
    Offer,
    QueueSpec,
    Refusal,
    UnitsAcquireReply,
    UnitsAcquireRequest,
)
from server.config import Knobs
from server.dispatch import heartbeat, together
from server.dispatch.assign import assigned_unit, assignment, facts_of, read_directly
from server.dispatch.claim import AHEAD, MAX_UNITS, Found, claim_one, slot_of
from server.dispatch.claim_together import Got, Wish
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import Conflict, Gone, NotFound, Unauthenticated
from server.dispatch.preassigned import described, hand_out, leaves
from server.engine.matching import Candidate, Slot, gpu_fits
from server.engine.sizing import Bounds
from server.store import claims, jobs, pilots, units
from server.store.claims import ClaimTerms
from server.store.codes import PilotState
from server.store.database import Connection, IntegrityError
from server.store.jobs import JobFacts
from server.store.pilots import PilotRow

FOREIGN_CHANGE_S = 0.5
"""How often a waiting request looks for what other processes changed."""
MIN_RETRY_S = 0.5


def acquire(dispatcher: Dispatcher, pilot_id: int, request: AcquireRequest) -> AcquireReply:
    """Jobs for a pilot's offer, at most ``max_jobs``; or none, and why.

    Waits up to ``wait_s`` for work, if one of the few places for waiting is free. The same ``request_id`` gets the same
    jobs again. A pilot that was taken for lost, or has said that it leaves, gets nothing any more.

    Raises:
        Unauthenticated: there is no such pilot.
    """
    seen = dispatcher.changes()
    pilot = known_pilot(dispatcher, pilot_id)
    heartbeat.heard(dispatcher, pilot_id, request.offer)
    reply = _try(dispatcher, pilot, request)
    if not reply.jobs and not reply.drain:
        earlier = _nothing_found(dispatcher, pilot, request)
        if earlier is not None:
            return earlier
    if not (reply.jobs or reply.drain or request.ahead or request.wait_s <= 0) and dispatcher.polls.acquire(
        blocking=False
    ):
        try:
            reply = _wait(dispatcher, pilot, request, reply, seen)
        finally:
            dispatcher.polls.release()
    if reply.jobs or reply.drain:
        dispatcher.idle.busy(pilot_id)
    return reply


def known_pilot(dispatcher: Dispatcher, pilot_id: int) -> PilotRow:
    """The pilot of a token, as it registered.

    Raises:
        Unauthenticated: there is none.
    """
    pilot = dispatcher.pilots.known(pilot_id)
    if pilot is None:
        with dispatcher.database.one_read() as connection:
            pilot = dispatcher.pilots.get(connection, pilot_id)
    if pilot is None:
        raise Unauthenticated("the pilot of this token is not known")
    return pilot


def _nothing_found(dispatcher: Dispatcher, pilot: PilotRow, request: AcquireRequest) -> AcquireReply | None:
    """An answer without jobs stands only if this request got none before, and its pilot may still ask."""
    with dispatcher.database.one_read() as connection:
        earlier = claims.request_of(connection, pilot.id, request.request_id)
        now = pilots.get(connection, pilot.id)
    if now is None or now.state != PilotState.ACTIVE:
        return AcquireReply(drain=True)
    return _again(dispatcher, pilot, earlier) if earlier else None


def _wait(
    dispatcher: Dispatcher, pilot: PilotRow, request: AcquireRequest, reply: AcquireReply, seen: int
) -> AcquireReply:
    knobs = dispatcher.looks.get().knobs
    deadline = dispatcher.clock.monotonic() + min(request.wait_s, knobs.acquire_wait_s)
    while not (reply.jobs or reply.drain or dispatcher.stopping.is_set()):
        left = deadline - dispatcher.clock.monotonic()
        if left <= 0:
            # It has waited already: the next request may come at once and wait again.
            return AcquireReply(refusals=reply.refusals, retry_after_s=min(reply.retry_after_s, MIN_RETRY_S))
        dispatcher.wait_for_change(seen, min(left, FOREIGN_CHANGE_S))
        seen = dispatcher.changes()
        dispatcher.looks.get(FOREIGN_CHANGE_S)
        reply = _try(dispatcher, pilot, request)
    return reply


def _try(dispatcher: Dispatcher, pilot: PilotRow, request: AcquireRequest) -> AcquireReply:
    look = dispatcher.looks.get()
    queue = look.world.queues.get(pilot.queue)
    if queue is None or look.bans.bans_host(pilot.host):
        return AcquireReply(drain=True)
    if pilot.pushed:
        given = hand_out(dispatcher, look, pilot, queue, request)
        if given is not None:
            return given
    if look.world.pilots_leave(queue) or leaves(queue):
        return AcquireReply(drain=True)
    started = dispatcher.clock.monotonic()
    try:
        got = _claim(dispatcher, look, pilot, queue, request)
    except IntegrityError:
        # The same request was served at the same moment, or before.
        with dispatcher.database.read() as connection:
            earlier = claims.request_of(connection, pilot.id, request.request_id)
        return _again(dispatcher, pilot, earlier)
    finally:
        dispatcher.watch.claim(dispatcher.clock.monotonic() - started)
    for job, _ in got.found:
        dispatcher.jobs.put(job.job_id, JobFacts(job.task_id, job.bucket_id, pilot.id, queue.name, queue.site))
    if not got.found and request.ahead:
        return AcquireReply(refusals=got.refusals)
    if not got.found:
        rate = look.knobs.idle_requests_per_s / look.processes
        wait_s = dispatcher.idle.wait_of(pilot.id, pilot.queue, rate, dispatcher.clock.monotonic())
        return AcquireReply(refusals=got.refusals, retry_after_s=wait_s)
    if got.assignment is not None:
        return AcquireReply(jobs=[got.assignment])
    return AcquireReply(
        jobs=[
            assignment(dispatcher, look, queue.site, job, facts_of(of.traits), of.memory_mb, of.wall_s, queue)
            for job, of in got.found
        ]
    )


def _claim(dispatcher: Dispatcher, look: Look, pilot: PilotRow, queue: QueueSpec, request: AcquireRequest) -> Got:
    if request.max_jobs > 1 and not request.ahead:
        slot = slot_of(dispatcher, look, pilot, queue, request.offer)
        with dispatcher.database.write() as connection:
            return Got(*_claim_several(dispatcher, connection, look, pilot, slot, request))
    task_id = None
    if request.ahead:
        task_id, refusals = _ahead(dispatcher, look, pilot, queue, request)
        if task_id is None:
            return Got([], refusals)
    got = together.claim(dispatcher, Wish(pilot, queue, request, task_id))
    if got is not None:
        return got
    slot = slot_of(dispatcher, look, pilot, queue, request.offer)
    return Got(*claim_one(dispatcher, look, pilot, slot, (request.request_id, 0), None))


def _ahead(
    dispatcher: Dispatcher, look: Look, pilot: PilotRow, queue: QueueSpec, request: AcquireRequest
) -> tuple[int | None, list[Refusal]]:
    """The task that a job which begins later may be of: the first in turn, if others who could begin now have enough.

    It must have more ready units than slots that run it, as each of those may ask next, and pilots of the queue that wait
    for work. So the last units of a task go to whoever is free first.
    """
    slot = slot_of(dispatcher, look, pilot, queue, request.offer)
    buckets = dispatcher.looks.buckets()
    with dispatcher.looks.mutex:
        matches, refusals = buckets.find(slot, look.moment(dispatcher.now()), look.share_use, 1)
    if not matches:
        return None, refusals
    candidate = matches[0].candidate
    task_id = candidate.traits.task_id
    tail = dispatcher.tails.of(task_id)
    waiting = dispatcher.idle.by_queue(dispatcher.clock.monotonic()).get(pilot.queue, 0) * look.processes
    if candidate.traits.scouting is not None or tail.ready <= tail.busy + waiting:
        detail = f"{tail.ready} units are ready, and {tail.busy + waiting} slots may begin one now"
        return None, [Refusal(task_id, candidate.bucket_id, AHEAD, detail)]
    return task_id, []


def _claim_several(
    dispatcher: Dispatcher, connection: Connection, look: Look, pilot: PilotRow, slot: Slot, request: AcquireRequest
) -> tuple[Found, list[Refusal]]:
    """Jobs for one request, all in one transaction, so that its repeat finds all of them or none."""
    found: Found = []
    told: list[Refusal] = []
    while len(found) < request.max_jobs:
        one, refusals = claim_one(dispatcher, look, pilot, slot, (request.request_id, len(found)), connection)
        if not one:
            told = refusals if not found else []
            break
        found += one
        rest = remaining(slot.offer, one[0][1])
        if rest is None:
            break
        slot = replace(slot, offer=rest)
    return found, told


def remaining(offer: Offer, candidate: Candidate) -> Offer | None:
    """What an offer has left beside a job; None when not even a core."""
    needs = candidate.traits.requirements
    cores = offer.cores - needs.cores
    if cores <= 0:
        return None
    gpus = list(offer.gpus)
    if needs.gpus is not None:
        wanted = needs.gpus
        for _ in range(wanted.count):
            gpus.remove(next(gpu for gpu in gpus if gpu_fits(gpu, wanted)))
    return Offer(
        cores=cores,
        # At least one, since zero says "not known" and would lift the limit.
        memory_mb=max(1, offer.memory_mb - candidate.memory_needed) if offer.memory_mb else 0,
        disk_mb=max(1, offer.disk_mb - needs.disk_mb) if offer.disk_mb else 0,
        wall_s=offer.wall_s,
        gpus=gpus,
        tags=offer.tags,
        foreign=offer.foreign,
    )


def _again(dispatcher: Dispatcher, pilot: PilotRow, job_ids: list[int]) -> AcquireReply:
    look = dispatcher.looks.get()
    found = described(dispatcher, look, pilot.site, look.world.queues.get(pilot.queue), job_ids)
    return AcquireReply(jobs=[each.assignment for each in found])


def acquire_units(
    dispatcher: Dispatcher, pilot_id: int, job_id: int, request: UnitsAcquireRequest
) -> UnitsAcquireReply:
    """Further units for a running job, from its own bucket (the get-file call)."""
    look = dispatcher.looks.get()
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        job = jobs.hold(connection, job_id, pilot_id)
        if job is None:
            raise not_held(jobs.get(connection, job_id), pilot_id, job_id)
        if job.confirmed is not None:
            raise Conflict(f"job {job_id} is confirmed: it takes no more units")
        earlier = set(claims.replayed(connection, f"job:{job_id}", request.request_id))
        task = dispatcher.task(connection, job.task_id)
        if earlier:
            taken = [each for each in units.taken_by(connection, job_id) if each.id in earlier]
        else:
            bounds = Bounds(limit=min(request.count, MAX_UNITS, _room(connection, look.knobs, job_id)))
            probe = task is not None and task.spec.probe
            terms = ClaimTerms(job.bucket_id, job.task_id, job.queue, bounds, probe)
            holder = (job_id, pilot_id)
            taken = []
            if bounds.limit > 0:
                taken = [*claims.claim_more(connection, terms, holder, dispatcher.floors, request.request_id, now)]
    more = [assigned_unit(each, look.world, job.site) for each in taken]
    queue = look.world.queues.get(job.queue)
    return UnitsAcquireReply(more, task is not None and read_directly(more, look.world, job.site, queue, task.spec))


def _room(connection: Connection, knobs: Knobs, job_id: int) -> int:
    """How many more units a job may take."""
    if not knobs.get_file_units:
        return MAX_UNITS
    return max(0, knobs.get_file_units - len(units.of_job(connection, job_id)))


def not_held(row: jobs.JobRow | None, pilot_id: int, job_id: int) -> NotFound | Gone:
    """Why a pilot does not hold a job: it is over, or was never its."""
    if row is None or row.pilot_id != pilot_id:
        return NotFound(f"this pilot holds no job {job_id}")
    return Gone(job_id, row.state, row.error_code)
