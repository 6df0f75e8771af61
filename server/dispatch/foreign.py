"""Pilots of other systems fetch jobs: each has an identity that it shares with others, and no record until it gets one.

A job is claimed by a pilot of ours that is made for it, in a worker that is made for that or that its harvester reported.
Such a pilot never records: its outputs get their names and places when it is given the job. What it reports then is told
to the same uses as our own pilots' words (:mod:`server.dispatch.foreign_reports`).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from common.errors import ErrorCode
from common.placeholders import expand
from common.placeholders import facts_of as placeholder_facts
from common.states import FINAL_WORKER_STATES, JobState, WorkerState
from common.wire import (
    Assignment,
    FinishRequest,
    Offer,
    OutputRecord,
    OutputRole,
    PilotEnd,
    QueueSpec,
    Refusal,
    Registration,
    Shape,
    WorkerReport,
)
from server.dispatch import commit, registration
from server.dispatch.assign import TaskFacts, assignment, facts_of
from server.dispatch.books import dataset_names
from server.dispatch.claim import claim_one
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import NotFound, Refused, Unprocessable
from server.dispatch.facts import task_facts
from server.dispatch.new_outputs import new_output, storage_for
from server.engine.foreign import copying, list_problem, outputs_of
from server.engine.matching import Candidate, Slot, effective_offer
from server.engine.naming import hashed_path
from server.store import events, foreign, jobs, outputs, pilots
from server.store.claims import ClaimedJob
from server.store.codes import PilotState
from server.store.database import Connection
from server.store.jobs import JobFacts
from server.store.outputs import NewOutput
from server.store.pilots import PilotRow, WorkerRow
from server.store.workflows import TaskRow

REQUEST = "foreign-pilot"
"""The request id of all their claims: they have none, and each has a pilot of its own."""
LOG = "log.tgz"
"""The name of a job's log archive."""
NOT_WRITTEN = "adler32:00000001"
"""The checksum of a file with nothing in it."""
VALID_S = 7 * 86400.0
"""For how long a worker that was made for a pilot counts as one, if nothing is heard of it."""


@dataclass(frozen=True)
class Asking:
    """What a pilot of another system asks for. ``worker`` is the mark of the worker that it says it runs in, if any."""

    queue: str
    offer: Offer
    host: str = ""
    version: str = ""
    worker: str = ""


@dataclass(frozen=True)
class Expected:
    """An output as its pilot is told of it: ``name`` is what the payload calls it, ``lfn`` what it is called from then on.

    ``dataset`` is the one that it comes into; none for a log.
    """

    name: str
    lfn: str
    storage: str
    optional: bool = False
    dataset: str = ""


@dataclass(frozen=True)
class Given:
    """A job, with all that its pilot must know."""

    pilot_id: int
    assignment: Assignment
    task: TaskFacts
    queue: QueueSpec
    priority: int
    outputs: Sequence[Expected]
    log: Expected


@dataclass(frozen=True)
class Nothing:
    """No job, and why. ``again``: one was claimed that could not be told; there may be another."""

    words: str
    refusals: Sequence[Refusal] = ()
    again: bool = False


class _NoUnit(Exception):
    """Others were faster: nothing that was written for this request stays."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__()
        self.refusals = refusals


def fetch(dispatcher: Dispatcher, caller: str, asking: Asking) -> Given | Nothing:
    """One job for a pilot of another system. There is no way to ask for the same job again: a lost answer is a lost job.

    Raises:
        NotFound: there is no such queue.
    """
    look = dispatcher.looks.get()
    known = look.world.queues.get(asking.queue)
    if known is None:
        raise NotFound(f"there is no queue {asking.queue!r}")
    if look.bans.bans_host(asking.host):
        return Nothing(f"host {asking.host} is banned")
    if look.world.pilots_leave(known):
        return Nothing(f"queue {known.name} or its site is draining or offline")
    queue = copying(known)
    now = dispatcher.now()
    slot = Slot(queue, effective_offer(asking.offer, queue, None), asking.host).before_downtime(look.world, now)
    buckets, without = dispatcher.looks.buckets(), dispatcher.untold.buckets(now)
    with dispatcher.looks.mutex:
        matches, refusals = buckets.find(slot, look.moment(now), look.share_use, 1, without)
    if not matches:
        return _in_vain(dispatcher, asking, refusals)
    try:
        with dispatcher.database.write() as connection:
            pilot = _pilot(connection, caller, asking, slot, now)
            found, refusals = claim_one(dispatcher, look, pilot, slot, (REQUEST, 0), connection, without)
            if not found:
                raise _NoUnit(refusals)
            job, candidate = found[0]
            foreign.add(connection, job.job_id, pilot.id, caller, [each.id for each in job.units])
    except _NoUnit as nothing:
        return _in_vain(dispatcher, asking, nothing.refusals)
    dispatcher.jobs.put(job.job_id, JobFacts(job.task_id, job.bucket_id, pilot.id, queue.name, queue.site))
    return _given(dispatcher, look, pilot.id, queue, job, candidate)


def _in_vain(dispatcher: Dispatcher, asking: Asking, refusals: Sequence[Refusal]) -> Nothing:
    if dispatcher.asked_in_vain.due(asking.queue, dispatcher.now()):
        with dispatcher.database.write(durable=False) as connection:
            foreign.note_offer(connection, asking.queue, asking.offer, dispatcher.now())
    words = "; ".join(dict.fromkeys(f"{each.filter}: {each.detail}" for each in refusals))
    return Nothing(words or "no task has ready units", refusals)


def _pilot(connection: Connection, caller: str, asking: Asking, slot: Slot, now: float) -> PilotRow:
    """A pilot of ours that stands for the one that asks."""
    offer = slot.offer
    owner = _worker(connection, asking, slot.queue)
    node = 0
    if owner is None:
        shape = Shape(offer.cores, offer.memory_mb, offer.disk_mb, offer.wall_s, len(offer.gpus))
        mark = f"foreign-{secrets.token_hex(12)}"
        report = WorkerReport(mark, slot.queue.name, WorkerState.RUNNING, shape, valid_s=VALID_S, host=asking.host)
        pilots.add_worker(connection, caller, report, now)
        owner = pilots.worker_by_mark(connection, mark)
        assert owner is not None
    else:
        node = foreign.next_node(connection, owner.mark)
    values: dict[str, object] = {
        "nonce": secrets.token_hex(8),
        "node": node,
        "host": asking.host,
        "version": asking.version[:64],
    }
    pilot_id = pilots.register(connection, owner, slot.queue.site, values, offer, now)
    detail = {"worker": owner.mark, "queue": owner.queue, "host": asking.host}
    events.add(connection, events.Event(now, "PILOT_REGISTERED", "pilot", pilot_id, detail=detail))
    queue, site = slot.queue.name, slot.queue.site
    return PilotRow(
        pilot_id, owner.mark, queue, site, asking.host, str(values["nonce"]), PilotState.ACTIVE, owner.shape
    )


def _worker(connection: Connection, asking: Asking, queue: QueueSpec) -> WorkerRow | None:
    """The worker that the pilot says it runs in, if its harvester told of it and it lives."""
    found = pilots.worker_by_mark(connection, asking.worker) if asking.worker else None
    if found is None or found.queue != queue.name or found.state in FINAL_WORKER_STATES:
        return None
    return found


def _given(
    dispatcher: Dispatcher, look: Look, pilot_id: int, queue: QueueSpec, job: ClaimedJob, of: Candidate
) -> Given | Nothing:
    """The job in full, its outputs with names and places; or it is given back."""
    facts = facts_of(of.traits)
    made = assignment(dispatcher, look, queue.site, job, facts, of.memory_mb, of.wall_s, queue)
    try:
        found = _reserve(dispatcher, look, pilot_id, queue, made)
    except Refused as refused:
        dispatcher.untold.add(of.bucket_id, dispatcher.now())
        return give_back(dispatcher, pilot_id, job.job_id, refused.detail)
    *outputs_, log = found
    return Given(pilot_id, made, facts, queue, int(of.traits.own_priority), outputs_, log)


def _reserve(dispatcher: Dispatcher, look: Look, pilot_id: int, queue: QueueSpec, made: Assignment) -> list[Expected]:
    """Record all outputs of a job, its log last. Raises Refused: that cannot be done."""
    problem = list_problem([did.partition(":")[2] for did in _inputs(made)])
    if problem:
        raise Unprocessable(problem)
    with dispatcher.database.write() as connection:
        job = jobs.hold(connection, made.job_id, pilot_id)
        if job is None:
            raise Unprocessable("the job is over")
        task = task_facts(dispatcher, connection, job.task_id)
        placed = partial(_placed, dispatcher, look, queue, task, job.id)
        named = outputs_of(task.spec, expand("%OUT", placeholder_facts(made)))
        optional = {each.name: each.rule.optional for each in named}
        files = [OutputRecord(each.name, 0, NOT_WRITTEN, pattern=each.rule.pattern) for each in named]
        files.append(OutputRecord(LOG, 0, NOT_WRITTEN, OutputRole.LOG))
        new = [placed(file, index) for index, file in enumerate(files)]
        outputs.record(connection, job.id, job.task_id, new, dispatcher.now())
        datasets = ["", *dataset_names(connection, task)]
    return [
        Expected(
            each.file.name,
            each.did.partition(":")[2],
            each.storage,
            optional.get(each.file.name, True),
            datasets[each.pattern or 0],
        )
        for each in new
    ]


def _inputs(made: Assignment) -> list[str]:
    """The DIDs of all files that a job reads, each once."""
    found = [unit.file.did for unit in made.units if unit.file is not None]
    found += [each.did for files in (made.common_input, *made.secondary.values()) for each in files]
    return list(dict.fromkeys(found))


def _placed(
    dispatcher: Dispatcher, look: Look, queue: QueueSpec, task: TaskRow, job_id: int, file: OutputRecord, index: int
) -> NewOutput:
    """An output with the path that such a pilot makes of its name. Raises Unprocessable."""
    found = new_output(look.world, task, job_id, file, storage_for(look.world, queue.site, task, file, index))
    scope, _, lfn = found.did.partition(":")
    who = found.registration
    if who is Registration.PILOT:
        # Pilots of other systems leave that to their server.
        if not dispatcher.config.registrar:
            raise Unprocessable(f"outputs on {found.storage} are registered by pilots, which other systems' do not")
        who = Registration.SERVER
    return replace(found, path=hashed_path(scope, lfn), registration=who)


def give_back(dispatcher: Dispatcher, pilot_id: int, job_id: int, words: str) -> Nothing:
    """The job cannot be told to such a pilot: its units go back untouched."""
    request = FinishRequest(JobState.CLOSED, error_code=int(ErrorCode.GIVEN_BACK), error_detail=words[:1000])
    return _undo(dispatcher, pilot_id, job_id, request)


def fail(dispatcher: Dispatcher, given: Given, code: ErrorCode, words: str) -> Nothing:
    """The job cannot run anywhere, as its payload makes no sense."""
    request = FinishRequest(JobState.FAILED, error_code=int(code), error_detail=words[:1000])
    return _undo(dispatcher, given.pilot_id, given.assignment.job_id, request)


def _undo(dispatcher: Dispatcher, pilot_id: int, job_id: int, request: FinishRequest) -> Nothing:
    commit.finish(dispatcher, pilot_id, job_id, request)
    leave(dispatcher, pilot_id, request.error_detail)
    return Nothing(request.error_detail, again=True)


def leave(dispatcher: Dispatcher, pilot_id: int, reason: str) -> None:
    """The pilot that was made for a job is done with it."""
    with dispatcher.database.read() as connection:
        pilot = pilots.get(connection, pilot_id)
    if pilot is None:
        return
    registration.end(dispatcher, pilot, PilotEnd(reason=reason[:1000]))
    if pilot.worker.startswith("foreign-"):
        report = WorkerReport(pilot.worker, pilot.queue, WorkerState.FINISHED, reason="its job is over")
        with dispatcher.database.write() as connection:
            pilots.update_worker(connection, report, False, dispatcher.now())
