"""Records and plain confirmations of many requests, carried out together on PostgreSQL.

Requests that arrive while others are at work share a transaction (:mod:`server.batching`); one that comes alone is
carried out at once, by the same code. Whatever is not plain, or is refused, is left to the long way, one by one:
nothing was written for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from common.states import JobState, UnitState
from common.wire import FinishReply, FinishRequest, RecordReply, RecordRequest, UnitOutcome
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import Unprocessable
from server.dispatch.new_outputs import check_files, new_output, recorded, storage_for
from server.store import commit_postgres, measurements
from server.store.commit_postgres import MOST, Confirmed, Recorded, Written
from server.store.database import Connection
from server.store.jobs import JobEnd, JobFacts
from server.store.workflows import TaskRow

R = TypeVar("R", RecordRequest, FinishRequest)
LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Asked(Generic[R]):
    """What a pilot asks for one of its jobs; ``digest`` is that of a confirmation."""

    pilot_id: int
    job_id: int
    request: R
    digest: str = ""


class _Not:
    """The answer to what was not carried out."""


_NOT = _Not()


def record(dispatcher: Dispatcher, asked: Asked[RecordRequest]) -> RecordReply | None:
    """Record outputs together with whatever else waits; None if that must be done alone, and nothing was done."""
    if any(each.avoid for each in asked.request.outputs):
        return None  # what was recorded before gets another place
    return _done(dispatcher, asked, RecordReply)


def finish(dispatcher: Dispatcher, asked: Asked[FinishRequest]) -> FinishReply | None:
    """Confirm a job together with whatever else waits; None if that must be done alone, and nothing was done."""
    return _done(dispatcher, asked, FinishReply) if _went_well(asked.request) else None


T = TypeVar("T")


def _done(dispatcher: Dispatcher, asked: Asked[Any], kind: type[T]) -> T | None:
    if dispatcher.database.is_sqlite:
        return None
    reply = dispatcher.commits.do(asked, partial(carry_out, dispatcher))
    return reply if isinstance(reply, kind) else None


def _went_well(request: FinishRequest) -> bool:
    if request.state != JobState.FINISHED or request.error_code is not None:
        return False
    if request.bad_replicas or request.probe is not None:
        return False
    ids = {each.unit_id for each in request.units if each.outcome == UnitOutcome.PROCESSED}
    return 0 < len(ids) == len(request.units) and min(ids) > 0 and max(ids) <= LARGEST_ID


def carry_out(dispatcher: Dispatcher, batch: list[Asked[Any]]) -> list[object]:
    """The replies to a batch; :data:`_NOT` for what is to be done alone."""
    replies: list[object] = []
    for start in range(0, len(batch), MOST):
        replies += _some(dispatcher, batch[start : start + MOST])
    return replies


def _some(dispatcher: Dispatcher, batch: list[Asked[Any]]) -> list[object]:
    look, now = dispatcher.looks.get(), dispatcher.now()
    first: dict[int, Asked[Any]] = {}
    for asked in batch:
        first.setdefault(asked.job_id, asked)  # a job is in a transaction once
    with dispatcher.database.at_once() as connection:
        facts = dispatcher.jobs.get(connection, list(first))
        writes: dict[int, Recorded | Confirmed] = {}
        for job_id, asked in first.items():
            of_job = facts.get(job_id)
            if of_job is not None and of_job.pilot_id == asked.pilot_id:
                write = _write(dispatcher, connection, look, asked, of_job)
                if write is not None:
                    writes[job_id] = write
        if not writes:
            return [_NOT] * len(batch)
        to_record = [each for each in writes.values() if isinstance(each, Recorded)]
        to_confirm = [each for each in writes.values() if isinstance(each, Confirmed)]
        written = commit_postgres.write(connection, to_record, to_confirm, now)
    return [_reply(look, asked, facts, writes, written) if first[asked.job_id] is asked else _NOT for asked in batch]


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


def _reply(
    look: Look,
    asked: Asked[Any],
    facts: Mapping[int, JobFacts],
    writes: Mapping[int, Recorded | Confirmed],
    written: Written,
) -> object:
    write = writes.get(asked.job_id)
    if isinstance(write, Recorded) and asked.job_id in written.places:
        return recorded(look.world, facts[asked.job_id].site, asked.request.outputs, written.places[asked.job_id])
    if isinstance(write, Confirmed) and asked.job_id in written.confirmed:
        return write.end.reply
    return _NOT
