"""A pilot asks for work."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from common.states import FINAL_JOB_STATES
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
from server.dispatch import heartbeat
from server.dispatch.assign import assigned_unit, assignment, facts_of
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import Conflict, Gone, NotFound, Unauthenticated
from server.engine.matching import Candidate, Match, Slot, effective_offer, gpu_fits
from server.engine.reservations import whole_slot
from server.engine.sizing import Bounds, SlotSize, job_bounds, without_input
from server.store import claims, jobs, measurements, pilots, retry_rules, units
from server.store.claims import Asked, Claimant, ClaimedJob, ClaimTerms
from server.store.codes import PilotState
from server.store.database import Connection, IntegrityError
from server.store.jobs import JobFacts
from server.store.pilots import PilotRow

MAX_UNITS = 10_000
"""Units of one claim at the most, whatever the task says: a message lists them all."""
FOREIGN_CHANGE_S = 0.5
"""How often a waiting request looks for what other processes changed."""
MIN_RETRY_S = 0.5
AT_ONCE = 4
"""Buckets that are picked at once, to be tried one after another, when the best had no unit."""
EMPTY_S = 1.0
"""How long a bucket in which nothing more was found is left alone by this process: some may have been locked."""


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
    if not (reply.jobs or reply.drain or request.wait_s <= 0) and dispatcher.polls.acquire(blocking=False):
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
        with dispatcher.database.read() as connection:
            pilot = dispatcher.pilots.get(connection, pilot_id)
    if pilot is None:
        raise Unauthenticated("the pilot of this token is not known")
    return pilot


def _nothing_found(dispatcher: Dispatcher, pilot: PilotRow, request: AcquireRequest) -> AcquireReply | None:
    """An answer without jobs stands only if this request got none before, and its pilot may still ask."""
    with dispatcher.database.read() as connection:
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
    if queue is None or look.world.pilots_leave(queue):
        return AcquireReply(drain=True)
    if look.bans.bans_host(pilot.host):
        return AcquireReply(drain=True)
    slot = _slot_of(dispatcher, look, pilot, queue, request.offer)
    started = dispatcher.clock.monotonic()
    try:
        if request.max_jobs == 1:
            found, refusals = _claim_one(dispatcher, look, pilot, slot, (request.request_id, 0), None)
        else:
            with dispatcher.database.write() as connection:
                found, refusals = _claim_several(dispatcher, connection, look, pilot, slot, request)
    except IntegrityError:
        # The same request was served at the same moment, or before.
        with dispatcher.database.read() as connection:
            earlier = claims.request_of(connection, pilot.id, request.request_id)
        return _again(dispatcher, pilot, earlier)
    finally:
        dispatcher.watch.claim(dispatcher.clock.monotonic() - started)
    for job, _ in found:
        dispatcher.jobs.put(job.job_id, JobFacts(job.task_id, job.bucket_id, pilot.id, queue.name, queue.site))
    if not found:
        rate = look.knobs.idle_requests_per_s / look.processes
        wait_s = dispatcher.idle.wait_of(pilot.id, pilot.queue, rate, dispatcher.clock.monotonic())
        return AcquireReply(refusals=refusals, retry_after_s=wait_s)
    return AcquireReply(
        jobs=[
            assignment(dispatcher, look, queue.site, job, facts_of(of.traits), of.memory_mb, of.wall_s, queue)
            for job, of in found
        ]
    )


def _slot_of(dispatcher: Dispatcher, look: Look, pilot: PilotRow, queue: QueueSpec, offer: Offer) -> Slot:
    """What a pilot offers, cut to what its records allow, to the next downtime, and to what it is reserved for."""
    now = dispatcher.now()
    slot = Slot(queue, effective_offer(offer, queue, pilot.shape), pilot.host).before_downtime(look.world, now)
    if min(pilot.shape.cores, queue.cores or pilot.shape.cores) <= slot.offer.cores or not look.knobs.reserve_s:
        dispatcher.reservations.drop(pilot.id)
        return slot
    buckets = dispatcher.looks.buckets()
    if buckets.most_cores <= slot.offer.cores:
        return slot
    whole = whole_slot(slot, pilot.shape)
    with dispatcher.looks.mutex:
        first, _ = buckets.find(whole, look.moment(now), look.share_use, 1)
    wanted = first[0].candidate if first else None
    return dispatcher.reservations.cut(pilot.id, slot, wanted, look.knobs.reserve_s, now)


Found = list[tuple[ClaimedJob, Candidate]]


def _claim_several(
    dispatcher: Dispatcher, connection: Connection, look: Look, pilot: PilotRow, slot: Slot, request: AcquireRequest
) -> tuple[Found, list[Refusal]]:
    """Jobs for one request, all in one transaction, so that its repeat finds all of them or none."""
    found: Found = []
    told: list[Refusal] = []
    while len(found) < request.max_jobs:
        one, refusals = _claim_one(dispatcher, look, pilot, slot, (request.request_id, len(found)), connection)
        if not one:
            told = refusals if not found else []
            break
        found += one
        rest = remaining(slot.offer, one[0][1])
        if rest is None:
            break
        slot = replace(slot, offer=rest)
    return found, told


def _claim_one(
    dispatcher: Dispatcher,
    look: Look,
    pilot: PilotRow,
    slot: Slot,
    request: tuple[str, int],
    connection: Connection | None,
) -> tuple[Found, list[Refusal]]:
    """One job from the first bucket that has units for it; in a transaction of its own unless one is given."""
    tried: set[int] = set()
    buckets = dispatcher.looks.buckets()
    moment = look.moment(dispatcher.now())
    while True:
        with dispatcher.looks.mutex:
            matches, refusals = buckets.find(slot, moment, look.share_use, AT_ONCE if tried else 1, frozenset(tried))
        if not matches:
            return [], refusals
        for match in matches:
            candidate = match.candidate
            asked = _asked(dispatcher, look, pilot, slot, match, request)
            scouting = candidate.traits.scouting is not None
            if connection is not None:
                job = _claim_in(dispatcher, connection, asked, scouting, look)
            elif scouting:
                with dispatcher.database.write() as own:
                    job = _claim_in(dispatcher, own, asked, scouting, look)
            else:
                job = dispatcher.claims.claim(asked)
            if job is not None:
                with dispatcher.looks.mutex:
                    look.share_use.claim(candidate.traits.share, candidate.traits.requirements.cores)
                    if job.emptied:
                        buckets.set_aside(candidate.bucket_id, dispatcher.clock.monotonic() + EMPTY_S)
                return [(job, candidate)], []
            tried.add(candidate.bucket_id)
            with dispatcher.looks.mutex:
                buckets.set_aside(candidate.bucket_id, dispatcher.clock.monotonic() + EMPTY_S)


def _asked(
    dispatcher: Dispatcher, look: Look, pilot: PilotRow, slot: Slot, match: Match, request: tuple[str, int]
) -> Asked:
    candidate = match.candidate
    detail = {"queue": slot.queue.name, "pilot": pilot.id, "host": pilot.host}
    told = "," + msgspec.json.encode(detail).decode()[1:]
    claimant = Claimant(pilot.id, slot.queue.name, slot.queue.site, pilot.host, told)
    terms = terms_of(candidate, slot, look.knobs, match.direct)
    return Asked(terms, claimant, *request, candidate.traits.requirements.cores, dispatcher.now())


def _claim_in(
    dispatcher: Dispatcher, connection: Connection, asked: Asked, scouting: bool, look: Look
) -> ClaimedJob | None:
    """Claim inside a transaction; a scout job only while there are fewer than there may be."""
    task_id = asked.terms.task_id
    if scouting and not measurements.take_scout(connection, task_id, look.knobs.scout_count):
        return None
    job = claims.claim_job(connection, asked, dispatcher.floors)
    if job is None and scouting:
        measurements.give_back_scout(connection, task_id)
    return job


def terms_of(candidate: Candidate, slot: Slot, knobs: Knobs, direct: bool = False) -> ClaimTerms:
    """What may be claimed from a bucket by a slot. Input that is read ``direct`` takes no disk."""
    traits, offer, queue = candidate.traits, slot.offer, slot.queue
    size = SlotSize(offer.disk_mb, float(offer.wall_s), queue.core_power, queue.cpu_efficiency)
    bounds = job_bounds(traits.spec, traits.measured, size, knobs)
    merge = traits.spec.merge
    limit = min(merge.max_files if merge else bounds.limit, MAX_UNITS)
    aim_mb = merge.target_mb or None if merge else bounds.aim_mb
    if direct:
        bounds = without_input(bounds)
    bounds = replace(bounds, limit=limit, min_units=min(traits.min_units, MAX_UNITS), aim_mb=aim_mb)
    return ClaimTerms(candidate.bucket_id, traits.task_id, queue.name, bounds, traits.probe)


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
    )


def _again(dispatcher: Dispatcher, pilot: PilotRow, job_ids: list[int]) -> AcquireReply:
    look = dispatcher.looks.get()
    found = []
    for job_id in job_ids:
        with dispatcher.database.read() as connection:
            row = jobs.get(connection, job_id)
            task = dispatcher.task(connection, row.task_id) if row is not None else None
            taken = units.taken_by(connection, job_id)
            place = retry_rules.places(connection, [row.bucket_id])[row.bucket_id] if row is not None else None
        if row is not None and task is not None and place is not None and row.state not in FINAL_JOB_STATES:
            job = ClaimedJob(job_id, row.task_id, row.bucket_id, taken)
            queue = look.world.queues.get(pilot.queue)
            facts = facts_of(task)
            found.append(assignment(dispatcher, look, pilot.site, job, facts, place.memory_mb, place.wall_s, queue))
    return AcquireReply(jobs=found)


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
        if earlier:
            taken = [each for each in units.taken_by(connection, job_id) if each.id in earlier]
        else:
            bounds = Bounds(limit=min(request.count, MAX_UNITS))
            task = dispatcher.task(connection, job.task_id)
            probe = task is not None and task.spec.probe
            terms = ClaimTerms(job.bucket_id, job.task_id, job.queue, bounds, probe)
            holder = (job_id, pilot_id)
            taken = list(claims.claim_more(connection, terms, holder, dispatcher.floors, request.request_id, now))
    return UnitsAcquireReply(units=[assigned_unit(each, look.world, job.site) for each in taken])


def not_held(row: jobs.JobRow | None, pilot_id: int, job_id: int) -> NotFound | Gone:
    """Why a pilot does not hold a job: it is over, or was never its."""
    if row is None or row.pilot_id != pilot_id:
        return NotFound(f"this pilot holds no job {job_id}")
    return Gone(job_id, row.state, row.error_code)
