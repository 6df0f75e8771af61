"""Push mode: harvester claims jobs for a worker before it submits it (DESIGN section 3).

A pilot is written down as *expected* on each node of the worker, and the jobs are claimed by it like by any other: it
stands in for the one that will come, which takes its place (:mod:`server.dispatch.registration`) and is given the jobs
(:mod:`server.dispatch.preassigned`). All that one worker gets is claimed in one transaction, so that a repeat finds all
of it or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from msgspec import structs

from common.states import WorkerState
from common.wire import (
    Needs,
    Offer,
    PushedJob,
    QueueMode,
    QueueSpec,
    Refusal,
    WorkerJobs,
    WorkersAcquireReply,
    WorkersAcquireRequest,
)
from server.dispatch.claim import claim_one
from server.dispatch.context import Dispatcher, Look
from server.dispatch.preassigned import MB, described
from server.engine.matching import Candidate, Slot
from server.engine.pushing import Demanded, expected_offer, rest_of, shape_for
from server.engine.sizing import told
from server.store import pilots, pushed
from server.store.claims import ClaimedJob
from server.store.codes import PUSHED, PUSHED_ORDINAL, PilotState
from server.store.database import Connection
from server.store.pilots import PilotRow, WorkerRow

MOST_JOBS = 100
"""Jobs of one node of a worker."""
TOLD = 10
"""Refusals that a worker which got nothing is told."""


@dataclass
class _Got:
    """What was claimed for one node, each job with its input in MiB; why there was not more."""

    jobs: list[tuple[PushedJob, int]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def acquire(dispatcher: Dispatcher, request: WorkersAcquireRequest) -> WorkersAcquireReply:
    """Jobs for planned workers of a harvester, as many as fit side by side in the shape of each.

    A worker is given jobs once: asked again, the answer is the same.
    """
    look = dispatcher.looks.get()
    last: dict[str, Offer | None] = {}
    return WorkersAcquireReply([_of_worker(dispatcher, look, request.harvester, mark, last) for mark in request.marks])


def _of_worker(
    dispatcher: Dispatcher, look: Look, harvester: str, mark: str, last: dict[str, Offer | None]
) -> WorkerJobs:
    """What one worker gets; ``last`` is what a pilot of each queue last offered, as far as it was looked up."""
    with dispatcher.database.write() as connection:
        owner = pilots.worker_by_mark(connection, mark)
        if owner is None:
            return WorkerJobs(mark, False, "this worker was not reported yet")
        queue = look.world.queues.get(owner.queue)
        if queue is None:
            return WorkerJobs(mark, False, f"there is no queue {owner.queue!r}")
        reason = _refusal(owner, harvester, dispatcher.now())
        if reason:
            return WorkerJobs(mark, False, reason)
        expected = [each.pilot_id for each in pushed.stand_ins(connection, mark)]
        if not expected and queue.mode != QueueMode.PUSH:
            return WorkerJobs(mark, True, pull=True, shape=owner.shape)
        made = WorkerJobs(mark, True, shape=owner.shape)
        if not expected:
            if queue.name not in last:
                found = pilots.last_offer(connection, queue.name)
                last[queue.name] = None if found is None else found[0]
            offer = expected_offer(owner.shape, queue, last[queue.name])
            _claim(dispatcher, connection, look, owner, Slot(queue, offer), made)
    if expected:
        made.jobs = _told_again(dispatcher, look, queue, expected)
    return made


def _refusal(owner: WorkerRow, harvester: str, now: float) -> str:
    if owner.harvester != harvester:
        return f"this worker belongs to harvester {owner.harvester!r}"
    if owner.state != WorkerState.PLANNED:
        return f"this worker is {owner.state.value} already"
    if owner.expires < now:
        return "the secret of this worker has expired"
    return ""


def _claim(
    dispatcher: Dispatcher, connection: Connection, look: Look, owner: WorkerRow, slot: Slot, made: WorkerJobs
) -> None:
    """Claim for each node of a worker, until a node gets nothing; its shape is what its jobs need, if the queue says so."""
    queue = slot.queue
    nodes: list[_Got] = []
    for node in range(owner.nodes):
        pilot_id = pushed.expect(connection, owner, queue.site, node, dispatcher.now())
        pilot = PilotRow(pilot_id, owner.mark, queue.name, queue.site, "", "", PilotState.EXPECTED, owner.shape, True)
        got = _claim_node(dispatcher, connection, look, pilot, slot, node)
        if not got.jobs:
            pushed.forget(connection, pilot_id)
            made.refusals = got.refusals[:TOLD] if not nodes else []
            break
        nodes.append(got)
    made.jobs = [job for got in nodes for job, _ in got.jobs]
    if made.jobs and queue.shape_from_jobs:
        made.shape = shape_for(owner.shape, [[(job.requirements, size) for job, size in got.jobs] for got in nodes])
        pushed.set_shape(connection, owner.mark, made.shape)


def _claim_node(
    dispatcher: Dispatcher, connection: Connection, look: Look, pilot: PilotRow, slot: Slot, node: int
) -> _Got:
    slot = slot.before_downtime(look.world, dispatcher.now())
    got = _Got()
    rest: Offer | None = slot.offer
    while rest is not None and len(got.jobs) < MOST_JOBS:
        slot = replace(slot, offer=rest)
        request = (PUSHED, PUSHED_ORDINAL + len(got.jobs))
        found, got.refusals = claim_one(dispatcher, look, pilot, slot, request, connection)
        if not found:
            break
        job, candidate = found[0]
        input_mb = _input_mb(job, candidate, slot)
        needs = _needs(look, job, candidate)
        got.jobs.append((PushedJob(job.job_id, job.task_id, needs, node), input_mb))
        least = structs.replace(
            candidate.traits.requirements, memory_mb=candidate.memory_needed, wall_s=candidate.wall_needed
        )
        rest = rest_of(rest, Demanded(least, input_mb))
    return got


def _needs(look: Look, job: ClaimedJob, of: Candidate) -> Needs:
    """What the job's pilot will be told that it needs."""
    needs = told(of.traits.spec, of.traits.measured, look.knobs, sum(each.events or 1 for each in job.units))
    return structs.replace(needs, memory_mb=max(needs.memory_mb, of.memory_mb), wall_s=of.wall_s or needs.wall_s)


def _input_mb(job: ClaimedJob, of: Candidate, slot: Slot) -> int:
    """Disk that the units' files take, of which none is copied if the payload may read them where they lie."""
    if of.traits.reads_directly(slot.queue):
        return 0
    return -(-sum({each.did: each.size or 0 for each in job.units if each.did is not None}.values()) // MB)


def _told_again(dispatcher: Dispatcher, look: Look, queue: QueueSpec, pilot_ids: list[int]) -> list[PushedJob]:
    """The jobs that wait for these pilots, which are in the order of their nodes."""
    with dispatcher.database.read() as connection:
        waiting = pushed.waiting(connection, pilot_ids)
    node_of = {each.id: pilot_ids.index(each.pilot_id) for each in waiting}
    found = described(dispatcher, look, queue.site, queue, list(node_of))
    made = [each.assignment for each in found]
    return [PushedJob(each.job_id, each.task_id, each.requirements, node_of[each.job_id]) for each in made]
