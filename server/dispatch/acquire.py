"""A pilot asks for work."""

from __future__ import annotations

from dataclasses import replace

import msgspec

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
from server.dispatch.assign import assigned_unit, assignment, facts_of, read_directly
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import Conflict, Gone, NotFound, Unauthenticated
from server.dispatch.preassigned import described, hand_out, leaves
from server.engine.matching import Candidate, Match, Slot, effective_offer, gpu_fits
from server.engine.reservations import whole_slot
from server.engine.sizing import Bounds, SlotSize, job_bounds, without_input
from server.store import claims, jobs, measurements, pilots, units
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
    slot = _slot_of(dispatcher, look, pilot, queue, request.offer)
    started = dispatcher.clock.monotonic()
    try:
        if request.ahead:
            found, refusals = _claim_ahead(dispatcher, look, pilot, slot, request)
        elif request.max_jobs == 1:
            found, refusals = claim_one(dispatcher, look, pilot, slot, (request.request_id, 0), None)
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
    if not found and request.ahead:
        return AcquireReply(refusals=refusals)
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


AHEAD = "ahead"
"""The name of the filter of claims ahead of time."""


def _claim_ahead(
    dispatcher: Dispatcher, look: Look, pilot: PilotRow, slot: Slot, request: AcquireRequest
) -> tuple[Found, list[Refusal]]:
    """A job that begins later: from the first bucket in turn, and only if others who could begin now have enough.

    Its task must have more ready units than slots that run it, as each of those may ask next, and pilots of the queue
    that wait for work. So the last units of a task go to whoever is free first.
    """
    buckets = dispatcher.looks.buckets()
    with dispatcher.looks.mutex:
        matches, refusals = buckets.find(slot, look.moment(dispatcher.now()), look.share_use, 1)
    if not matches:
        return [], refusals
    candidate = matches[0].candidate
    task_id = candidate.traits.task_id
    tail = dispatcher.tails.of(task_id)
    waiting = dispatcher.idle.by_queue(dispatcher.clock.monotonic()).get(pilot.queue, 0) * look.processes
    if candidate.traits.scouting is not None or tail.ready <= tail.busy + waiting:
        detail = f"{tail.ready} units are ready, and {tail.busy + waiting} slots may begin one now"
        return [], [Refusal(task_id, candidate.bucket_id, AHEAD, detail)]
    return claim_one(dispatcher, look, pilot, slot, (request.request_id, 0), None)


Found = list[tuple[ClaimedJob, Candidate]]


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


def claim_one(
    dispatcher: Dispatcher,
    look: Look,
    pilot: PilotRow,
    slot: Slot,
    request: tuple[str, int],
    connection: Connection | None,
    without: frozenset[int] = frozenset(),
) -> tuple[Found, list[Refusal]]:
    """One job from the first bucket that has units for it; in a transaction of its own unless one is given.

    Nothing is taken from the buckets ``without``.
    """
    tried = set(without)
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
    min_units = min(traits.min_units, MAX_UNITS)
    if (limit, min_units, aim_mb) != (bounds.limit, bounds.min_units, bounds.aim_mb):
        bounds = replace(bounds, limit=limit, min_units=min_units, aim_mb=aim_mb)
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
