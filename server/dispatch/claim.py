"""One job for a pilot: its slot, the bucket that comes first for it, the units that it may take."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import msgspec

from common.wire import Offer, QueueSpec, Refusal
from server.config import Knobs
from server.dispatch.context import Dispatcher, Look
from server.engine.matching import Candidate, Match, Slot, effective_offer
from server.engine.reservations import whole_slot
from server.engine.sizing import SlotSize, job_bounds, without_input
from server.store import claims, measurements, pilots
from server.store.claim_terms import CLAIMING
from server.store.claims import Asked, Claimant, ClaimedJob, ClaimTerms
from server.store.database import Connection
from server.store.pilots import PilotRow

MAX_UNITS = 10_000
"""Units of one claim at the most, whatever the task says: a message lists them all."""
AT_ONCE = 4
"""Buckets that are picked at once, to be tried one after another, when the best had no unit."""
EMPTY_S = 1.0
"""How long a bucket in which nothing more was found is left alone by this process: some may have been locked."""

AHEAD = "ahead"
"""The name of the filter of claims ahead of time."""

Found = list[tuple[ClaimedJob, Candidate]]


def slot_of(dispatcher: Dispatcher, look: Look, pilot: PilotRow, queue: QueueSpec, offer: Offer) -> Slot:
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
            asked = asked_for(dispatcher, look, pilot, slot, match, request)
            scouting = candidate.traits.scouting is not None
            if connection is not None:
                job = _claim_in(dispatcher, connection, asked, scouting, look)
            elif scouting:
                with dispatcher.database.write() as own:
                    job = _claim_in(dispatcher, own, asked, scouting, look)
            else:
                job = dispatcher.database.together(partial(claims.claim_job, asked=asked, floors=dispatcher.floors))
            if job is not None:
                with dispatcher.looks.mutex:
                    look.share_use.claim(candidate.traits.share, candidate.traits.requirements.cores)
                return [(job, candidate)], []
            if not tried - without and not _may_claim(dispatcher, connection, pilot):
                return [], []
            tried.add(candidate.bucket_id)
            set_aside(dispatcher, candidate.bucket_id)


def set_aside(dispatcher: Dispatcher, bucket_id: int) -> None:
    """Nothing more was found in a bucket: others come first for a while."""
    with dispatcher.looks.mutex:
        dispatcher.looks.buckets().set_aside(bucket_id, dispatcher.clock.monotonic() + EMPTY_S)


def _may_claim(dispatcher: Dispatcher, connection: Connection | None, pilot: PilotRow) -> bool:
    """Whether it was not the pilot's own fault that it got nothing: no bucket is left alone because of one that has ended."""
    if connection is not None:
        found = pilots.get(connection, pilot.id)
    else:
        with dispatcher.database.one_read() as own:
            found = pilots.get(own, pilot.id)
    return found is not None and found.state in CLAIMING


def asked_for(
    dispatcher: Dispatcher, look: Look, pilot: PilotRow, slot: Slot, match: Match, request: tuple[str, int]
) -> Asked:
    """The claim of a match: ``request`` is the pilot's request and the job's place in the answer to it."""
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
