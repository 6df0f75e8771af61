"""Records and plain confirmations of many requests, carried out together on PostgreSQL.

Requests that arrive while others are at work share a transaction (:mod:`server.batching`); one that comes alone is
carried out at once, by the same code. Whatever is not plain, or is refused, is left to the long way, one by one:
nothing was written for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from common.states import JobState, UnitState
from common.wire import FinishReply, FinishRequest, RecordReply, RecordRequest, UnitOutcome
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import Unprocessable
from server.dispatch.new_outputs import check_files, new_output, recorded, storage_for
from server.store import commit_postgres, measurements
from server.store.commit_postgres import Confirmed, Recorded, Written
from server.store.database import Connection
from server.store.jobs import JobEnd, JobFacts
from server.store.prepared import Piece
from server.store.workflows import TaskRow

R = TypeVar("R", RecordRequest, FinishRequest)
Reply = RecordReply | FinishReply | None
"""None: that must be done alone, and nothing was done."""
LARGEST_ID = 2**63 - 1
MOST_EACH = 256
"""Units or outputs of one request: who has more keeps nobody else waiting."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[R]):
    """What a pilot asks for one of its jobs; ``digest`` is that of a confirmation."""

    pilot_id: int
    job_id: int
    request: R
    digest: str = ""


def may_share(request: RecordRequest | FinishRequest) -> bool:
    """Whether a request may turn out to be plain."""
    if len(request.outputs) > MOST_EACH:
        return False
    if isinstance(request, RecordRequest):
        return not any(each.avoid for each in request.outputs)  # else what was recorded before gets another place
    return len(request.units) <= MOST_EACH and _went_well(request)


def _went_well(request: FinishRequest) -> bool:
    if request.state != JobState.FINISHED or request.error_code is not None:
        return False
    if request.bad_replicas or request.probe is not None:
        return False
    ids = {each.unit_id for each in request.units if each.outcome == UnitOutcome.PROCESSED}
    return 0 < len(ids) == len(request.units) and min(ids) > 0 and max(ids) <= LARGEST_ID


class Commits:
    """Records and confirmations of one batch: read, written by ``piece``, and then ``replies``."""

    def __init__(self, dispatcher: Dispatcher, connection: Connection, look: Look, batch: Sequence[Asked[Any]]) -> None:
        self._look = look
        self._batch = batch
        self._first: dict[int, Asked[Any]] = {}
        for asked in batch:
            self._first.setdefault(asked.job_id, asked)  # a job is in a transaction once
        self._now = dispatcher.now()
        self._facts = dispatcher.jobs.get(connection, list(self._first)) if batch else {}
        self._writes: dict[int, Recorded | Confirmed] = {}
        for job_id, asked in self._first.items():
            of_job = self._facts.get(job_id)
            if of_job is not None and of_job.pilot_id == asked.pilot_id:
                write = _write(dispatcher, connection, look, asked, of_job)
                if write is not None:
                    self._writes[job_id] = write

    def piece(self) -> Piece[Written]:
        """What the database is asked."""
        to_record = [each for each in self._writes.values() if isinstance(each, Recorded)]
        to_confirm = [each for each in self._writes.values() if isinstance(each, Confirmed)]
        return commit_postgres.write(to_record, to_confirm, self._now)

    def replies(self, written: Written) -> list[Reply]:
        """The reply to each, of what the database said."""
        return [self._reply(asked, written) if self._first[asked.job_id] is asked else None for asked in self._batch]

    def _reply(self, asked: Asked[Any], written: Written) -> Reply:
        write = self._writes.get(asked.job_id)
        if isinstance(write, Recorded) and asked.job_id in written.places:
            site, places = self._facts[asked.job_id].site, written.places[asked.job_id]
            return recorded(self._look.world, site, asked.request.outputs, places)
        if isinstance(write, Confirmed) and asked.job_id in written.confirmed:
            return write.end.reply
        return None


def _write(
    dispatcher: Dispatcher, connection: Connection, look: Look, asked: Asked[Any], facts: JobFacts
) -> Recorded | Confirmed | None:
    if isinstance(asked.request, FinishRequest):
        return _confirmed(look, asked, facts, dispatcher.tasks.known(facts.task_id))
    task = dispatcher.task(connection, facts.task_id)
    return None if task is None else _recorded(look, asked, facts, task)


def _recorded(look: Look, asked: Asked[RecordRequest], facts: JobFacts, task: TaskRow) -> Recorded | None:
    files = asked.request.outputs
    if not files:
        return None
    try:
        check_files(files, task.id, asked.job_id)
        storages = [storage_for(look.world, facts.site, task, file, index) for index, file in enumerate(files)]
    except Unprocessable:
        return None
    new = [
        new_output(look.world, task, asked.job_id, file, storage) for file, storage in zip(files, storages, strict=True)
    ]
    return Recorded(asked.job_id, task.id, new)


def _confirmed(look: Look, asked: Asked[FinishRequest], facts: JobFacts, task: TaskRow | None) -> Confirmed | None:
    request = asked.request
    if facts.site in look.failing.sites.get(facts.bucket_id, {}) or facts.queue in look.failing.queues:
        return None  # a success there has to be noted
    reply = FinishReply(asked.job_id, request.state, {str(each.unit_id): UnitState.DONE for each in request.units})
    end = JobEnd(
        state=request.state,
        error_detail=request.error_detail,
        exit_code=request.exit_code,
        log_tail=request.log_tail,
        metrics=request.metrics,
        digest=asked.digest,
        reply=reply,
    )
    sampled = None
    if task is None or task.measuring:
        sampled = measurements.said(request.metrics, look.world.queues.get(facts.queue))
    unit_ids = [each.unit_id for each in request.units]
    dids = list({each.did for each in request.outputs})
    return Confirmed(asked.job_id, end, unit_ids, dids, {"outputs": len(request.outputs)}, sampled)
