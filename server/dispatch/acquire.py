"""A pilot asks for work."""

from __future__ import annotations

import random

from common.states import FINAL_JOB_STATES, ResourceState
from common.wire import (
    AcquireReply,
    AcquireRequest,
    Offer,
    UnitsAcquireReply,
    UnitsAcquireRequest,
)
from server.dispatch.assign import assigned_unit, assignment
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import Gone, NotFound
from server.engine.matching import Candidate, Match, Slot, effective_offer, gpu_fits, match
from server.store import claims, jobs, pilots, units
from server.store.claims import Claimant, ClaimedJob, ClaimTerms
from server.store.codes import PilotState
from server.store.database import Connection
from server.store.pilots import PilotRow

MAX_UNITS = 10_000
"""Units of one claim at the most, whatever the task says: a message lists them all."""
MAX_REFUSALS = 20
"""Refusals told to a pilot; ``why`` tells all."""
FOREIGN_CHANGE_S = 0.5
"""How often a waiting request looks for what other processes changed."""
MIN_RETRY_S = 0.5
MAX_RETRY_S = 900.0


class _Repeated(Exception):
    """The same request was served in another transaction at the same moment."""


def acquire(dispatcher: Dispatcher, pilot: PilotRow, request: AcquireRequest) -> AcquireReply:
    """Jobs for a pilot's offer, at most ``max_jobs``; or none, and why.

    Waits up to ``wait_s`` for work, if one of the few places for waiting is free. The same ``request_id`` gets the same
    jobs again. A pilot that was taken for lost, or has said that it leaves, gets nothing any more.
    """
    if pilot.state != PilotState.ACTIVE:
        return AcquireReply(drain=True)
    seen = dispatcher.changes()
    with dispatcher.database.write(durable=False) as connection:
        earlier = claims.replayed(connection, f"pilot:{pilot.id}", request.request_id)
        pilots.beat(connection, pilot.id, request.offer, dispatcher.now())
    if earlier:
        return _again(dispatcher, pilot, earlier)
    reply = _try(dispatcher, pilot, request)
    if reply.jobs or reply.drain or request.wait_s <= 0:
        return reply
    if not dispatcher.polls.acquire(blocking=False):
        return reply
    try:
        return _wait(dispatcher, pilot, request, reply, seen)
    finally:
        dispatcher.polls.release()


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
        reply = _try(dispatcher, pilot, request)
    return reply


def _try(dispatcher: Dispatcher, pilot: PilotRow, request: AcquireRequest) -> AcquireReply:
    look = dispatcher.looks.get()
    queue = look.world.queues.get(pilot.queue)
    if queue is None or queue.status in (ResourceState.DRAINING, ResourceState.OFFLINE):
        return AcquireReply(drain=True)
    slot = Slot(queue, effective_offer(request.offer, queue, pilot.shape))
    matches, refusals = match(look.candidates, slot, look.world, look.share_order, dispatcher.now())
    if not matches:
        return AcquireReply(refusals=refusals[:MAX_REFUSALS], retry_after_s=retry_after(look))
    found: list[ClaimedJob] = []
    try:
        with dispatcher.database.write() as connection:
            found += _claim(dispatcher, connection, look, pilot, slot, matches, request.max_jobs)
            ids = [job.job_id for job in found]
            holder = f"pilot:{pilot.id}"
            if ids and not claims.remember(connection, holder, request.request_id, ids, dispatcher.now()):
                raise _Repeated
    except _Repeated:
        for job in found:
            dispatcher.floors.reset(job.bucket_id)
        with dispatcher.database.read() as connection:
            earlier = claims.replayed(connection, f"pilot:{pilot.id}", request.request_id)
        return _again(dispatcher, pilot, earlier)
    if not found:
        return AcquireReply(refusals=refusals[:MAX_REFUSALS], retry_after_s=retry_after(look))
    return AcquireReply(jobs=[assignment(dispatcher, look.world, queue.site, job) for job in found])


def _claim(
    dispatcher: Dispatcher,
    connection: Connection,
    look: Look,
    pilot: PilotRow,
    slot: Slot,
    matches: list[Match],
    max_jobs: int,
) -> list[ClaimedJob]:
    """Jobs for one request, all in one transaction, so that its repeat finds all of them or none."""
    found: list[ClaimedJob] = []
    claimed = _claim_first(dispatcher, connection, pilot, slot, matches)
    while claimed is not None:
        job, candidate = claimed
        found.append(job)
        rest = remaining(slot.offer, candidate)
        if rest is None or len(found) == max_jobs:
            break
        slot = Slot(slot.queue, rest)
        matches, _ = match(look.candidates, slot, look.world, look.share_order, dispatcher.now())
        claimed = _claim_first(dispatcher, connection, pilot, slot, matches)
    return found


def _claim_first(
    dispatcher: Dispatcher, connection: Connection, pilot: PilotRow, slot: Slot, matches: list[Match]
) -> tuple[ClaimedJob, Candidate] | None:
    claimant = Claimant(pilot.id, slot.queue.name, slot.queue.site, pilot.host)
    for found in matches:
        candidate = found.candidate
        terms, cores = terms_of(candidate, slot), candidate.requirements.cores
        job = claims.claim_job(connection, terms, claimant, cores, dispatcher.floors, dispatcher.now())
        if job is not None:
            return job, candidate
    return None


def terms_of(candidate: Candidate, slot: Slot) -> ClaimTerms:
    """What may be claimed from a bucket by a slot: input and scratch must fit its disk together."""
    disk = slot.offer.disk_mb - candidate.requirements.disk_mb if slot.offer.disk_mb else None
    return ClaimTerms(
        bucket_id=candidate.bucket_id,
        task_id=candidate.task_id,
        queue=slot.queue.name,
        limit=min(candidate.units_per_job, MAX_UNITS),
        min_units=min(candidate.min_units, MAX_UNITS),
        disk_mb=disk,
    )


def remaining(offer: Offer, candidate: Candidate) -> Offer | None:
    """What an offer has left beside a job; None when not even a core."""
    needs = candidate.requirements
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
        memory_mb=max(1, offer.memory_mb - needs.memory_mb) if offer.memory_mb else 0,
        disk_mb=max(1, offer.disk_mb - needs.disk_mb) if offer.disk_mb else 0,
        wall_s=offer.wall_s,
        gpus=gpus,
        tags=offer.tags,
    )


def retry_after(look: Look) -> float:
    """Seconds after which an idle pilot asks again.

    All idle pilots together cost ``idle_requests_per_s`` at the most, however many they are, and are spread evenly.
    """
    even = sum(look.idle_pilots.values()) / look.knobs.idle_requests_per_s
    return min(MAX_RETRY_S, max(MIN_RETRY_S, even)) * random.uniform(0.75, 1.25)


def _again(dispatcher: Dispatcher, pilot: PilotRow, job_ids: list[int]) -> AcquireReply:
    look = dispatcher.looks.get()
    found = []
    for job_id in job_ids:
        with dispatcher.database.read() as connection:
            row = jobs.get(connection, job_id)
            taken = units.taken_by(connection, job_id)
        if row is not None and row.state not in FINAL_JOB_STATES:
            job = ClaimedJob(job_id, row.task_id, row.bucket_id, taken)
            found.append(assignment(dispatcher, look.world, pilot.site, job))
    return AcquireReply(jobs=found)


def acquire_units(
    dispatcher: Dispatcher, pilot: PilotRow, job_id: int, request: UnitsAcquireRequest
) -> UnitsAcquireReply:
    """Further units for a running job, from its own bucket (the get-file call)."""
    look = dispatcher.looks.get()
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        job = jobs.hold(connection, job_id, pilot.id)
        if job is None:
            raise not_held(jobs.get(connection, job_id), pilot.id, job_id)
        earlier = set(claims.replayed(connection, f"job:{job_id}", request.request_id))
        if earlier:
            taken = [each for each in units.taken_by(connection, job_id) if each.id in earlier]
        else:
            terms = ClaimTerms(job.bucket_id, job.task_id, job.queue, limit=min(request.count, MAX_UNITS))
            taken = list(claims.claim_more(connection, terms, job_id, dispatcher.floors, request.request_id, now))
    return UnitsAcquireReply(units=[assigned_unit(each, look.world, job.site) for each in taken])


def not_held(row: jobs.JobRow | None, pilot_id: int, job_id: int) -> NotFound | Gone:
    """Why a pilot does not hold a job: it is over, or was never its."""
    if row is None or row.pilot_id != pilot_id:
        return NotFound(f"this pilot holds no job {job_id}")
    return Gone(job_id, row.state, row.error_code)
