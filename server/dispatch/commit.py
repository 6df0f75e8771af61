"""The two-step commit: record what is about to be uploaded, then confirm.

Only the confirmation turns units to done and outputs to visible, in one transaction; where the server registers the
outputs, both wait for that. It may be repeated after a lost reply; a job that ended otherwise meanwhile is answered
with :class:`Gone`.

On PostgreSQL what is plain is carried out for many jobs together (:mod:`server.dispatch.together`); here is the
long way, one job at a time: for whatever is not plain, and on SQLite, where several share a transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec

from common.errors import ErrorCode
from common.states import JobState, UnitState, allowed
from common.wire import (
    FinishReply,
    FinishRequest,
    OutputRecord,
    RecordReply,
    RecordRequest,
    UnitOutcome,
    UnitsReleaseReply,
    UnitsReleaseRequest,
)
from server.dispatch import failing, probes, together
from server.dispatch.acquire import not_held
from server.dispatch.commit_together import Asked
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import Conflict, Gone, Unprocessable
from server.dispatch.facts import task_facts
from server.dispatch.gone_wrong import note_end
from server.dispatch.new_outputs import check_files, new_output, recorded, storage_for
from server.dispatch.settle import Said, held_units, settle_units
from server.engine.outcomes import outcome_of
from server.engine.world import World
from server.store import commits, events, jobs, measurements, outputs, units
from server.store.codes import OutputState
from server.store.commits import Conclusion
from server.store.database import Connection
from server.store.jobs import JobEnd, JobRow
from server.store.outputs import NewOutput
from server.store.units import UnitRow
from server.store.workflows import TaskRow

T = TypeVar("T")

END_STATES = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.CLOSED)


def record(dispatcher: Dispatcher, pilot_id: int, job_id: int, request: RecordRequest) -> RecordReply:
    """Reserve names for outputs and name their destinations, in the order of the request.

    Raises:
        Conflict: the job is confirmed.
        Gone: the job is over.
        Unprocessable: a name cannot be used, or no storage may take the output.
    """
    asked = Asked(pilot_id, job_id, request)
    reply = together.record(dispatcher, asked)
    if reply is not None:
        return reply
    return _in_transaction(dispatcher, partial(_record, dispatcher, dispatcher.looks.get(), asked))


def _in_transaction(dispatcher: Dispatcher, work: Callable[[Connection], T]) -> T:
    """Several statements, in a durable transaction that on SQLite is shared with others."""
    if dispatcher.database.is_sqlite:
        return dispatcher.database.together(work)
    with dispatcher.database.write() as connection:
        return work(connection)


def _record(dispatcher: Dispatcher, look: Look, asked: Asked[RecordRequest], connection: Connection) -> RecordReply:
    world, files = look.world, asked.request.outputs
    job = _hold(connection, asked.job_id, asked.pilot_id)
    check_files(files, job.task_id, job.id)
    task = task_facts(dispatcher, connection, job.task_id)
    new = _new_outputs(connection, world, job, task, files)
    outputs.move(connection, job.id, (each for each in new if each.file.avoid))
    found = outputs.record(connection, job.id, job.task_id, new, dispatcher.now())
    return recorded(world, job.site, files, found)


def _hold(connection: Connection, job_id: int, pilot_id: int) -> JobRow:
    job = jobs.hold(connection, job_id, pilot_id)
    if job is None:
        raise not_held(jobs.get(connection, job_id), pilot_id, job_id)
    if job.confirmed is not None:
        raise Conflict(f"job {job_id} is confirmed: nothing can be added to it any more")
    return job


def _new_outputs(
    connection: Connection, world: World, job: JobRow, task: TaskRow, files: Sequence[OutputRecord]
) -> list[NewOutput]:
    found = []
    known: dict[str, str] | None = None
    queue = world.queues.get(job.queue)
    for index, file in enumerate(files):
        if file.avoid and (queue is None or not queue.alternative_stage_out):
            words = "set alternative_stage_out for it, or mend the storage"
            raise Unprocessable(
                f"queue {job.queue} has no alternative stage-out", [(f"$.outputs[{index}].avoid", words)]
            )
        try:
            storage = storage_for(world, job.site, task, file, index)
        except Unprocessable:
            # What was recorded before keeps its place, even if that takes nothing new now.
            known = outputs.places(connection, job.id) if known is None else known
            if file.name not in known or file.avoid:
                raise
            storage = known[file.name]
        found.append(new_output(world, task, job.id, file, storage))
    return found


def release(dispatcher: Dispatcher, pilot_id: int, job_id: int, request: UnitsReleaseRequest) -> UnitsReleaseReply:
    """Say what became of single units while the job goes on: processed ones wait for the job's outputs."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        job = _hold(connection, job_id, pilot_id)
        mine = {row.id: row for row in units.of_job(connection, job_id)}
        # What went back at the first time of a repeated call is told as it is now, and not touched.
        gone = [each.unit_id for each in request.units if each.unit_id not in mine]
        left = units.states_of(connection, job.task_id, gone)
        unknown = [unit_id for unit_id in gone if unit_id not in left]
        if unknown:
            raise Unprocessable(f"job {job_id} does not hold units {unknown}", [("$.units", "leave them out")])
        said = {each.unit_id: each.outcome for each in request.units}
        rows = [row for row in mine.values() if row.id in said and row.state == UnitState.RESERVED]
        states = settle_units(connection, dispatcher.looks.get(), job, rows, Said(JobState.RUNNING, said), now)
        states |= {row.id: row.state for row in mine.values() if row.id in said and row.id not in states}
        states |= left
    dispatcher.came_back(job.bucket_id)
    return UnitsReleaseReply({str(unit_id): state for unit_id, state in states.items()})


def finish(dispatcher: Dispatcher, pilot_id: int, job_id: int, request: FinishRequest) -> FinishReply:
    """Confirm a job: its end, the outcome of each unit, the outputs that become visible. All or nothing.

    Raises:
        Conflict: it was confirmed with another content.
        Gone: it was declared lost or killed meanwhile.
        Unprocessable: it does not agree with what was claimed and recorded.
    """
    if request.state not in END_STATES:
        raise Unprocessable("a job ends finished, failed, cancelled or closed", [("$.state", "say how it ended")])
    digest = hashlib.sha256(msgspec.json.encode(request)).hexdigest()
    asked = Asked(pilot_id, job_id, request, digest)
    done = together.finish(dispatcher, asked)
    if done is not None:
        return done
    ended = _in_transaction(dispatcher, partial(_finish, dispatcher, dispatcher.looks.get(), asked))
    if ended.reply is None:
        raise Gone(job_id, JobState.CANCELLED, int(ErrorCode.TASK_CANCELLED))
    if ended.ready_in is not None:
        dispatcher.came_back(ended.ready_in)
    return ended.reply


@dataclass(frozen=True)
class _Ended:
    """Nothing to answer: nothing that the job made is wanted. ``ready_in``: a bucket to which units went back."""

    reply: FinishReply | None
    ready_in: int | None = None


def _finish(dispatcher: Dispatcher, look: Look, asked: Asked[FinishRequest], connection: Connection) -> _Ended:
    pilot_id, job_id, request, digest = asked.pilot_id, asked.job_id, asked.request, asked.digest
    now = dispatcher.now()
    job = jobs.hold(connection, job_id, pilot_id)
    if job is None or job.confirmed is not None:
        return _Ended(_repeated(job or jobs.get(connection, job_id), pilot_id, job_id, digest))
    if not allowed(job.state, request.state):
        raise Unprocessable(
            f"a job that is {job.state.value} cannot end {request.state.value}", [("$.state", "report it failed")]
        )
    mine = units.of_job(connection, job_id)
    held = held_units(mine)
    if request.state == JobState.FINISHED and job.kill_reason is not None and not held:
        # Its task was killed before this came: nothing that it made is wanted.
        _end_unwanted(connection, job, now)
        return _Ended(None)
    said = _said(request, mine)
    if request.probe is not None:
        probes.note(connection, look, job, request.probe, now)
    reply = _confirm(connection, look, job, held, said, request, digest, now)
    task = dispatcher.tasks.known(job.task_id)
    if request.state == JobState.FINISHED and (task is None or task.measuring):
        measurements.note(connection, job_id, request.metrics, look.world.queues.get(job.queue), now)
    note_end(connection, job.task_id, job_id, [row.id for row in mine], request, now)
    back = any(state == UnitState.READY for state in reply.units.values())
    return _Ended(reply, job.bucket_id if back else None)


def _repeated(row: JobRow | None, pilot_id: int, job_id: int, digest: str) -> FinishReply:
    if row is None or row.pilot_id != pilot_id or row.digest is None or row.reply is None:
        raise not_held(row, pilot_id, job_id)
    if row.digest != digest:
        raise Conflict(f"job {job_id} was confirmed as {row.reply.state.value} before, with another content")
    return row.reply


def _confirm(
    connection: Connection,
    look: Look,
    job: JobRow,
    held: Sequence[UnitRow],
    said: Said,
    request: FinishRequest,
    digest: str,
    now: float,
) -> FinishReply:
    outcomes = {outcome_of(row.state, said.outcomes.get(row.id), said.job_state, said.error_code) for row in held}
    done = UnitOutcome.PROCESSED in outcomes
    registering = _settle_outputs(connection, job, request, done, now)
    well = outcomes == {UnitOutcome.PROCESSED} and not request.bad_replicas
    if well:
        target = UnitState.OUTPUTTING if registering else UnitState.DONE
        states = {row.id: target for row in held}
        failing.note_success(connection, look.failing, job)
    else:
        states = settle_units(connection, look, job, held, replace(said, registering=registering), now)
    reply = FinishReply(job.id, request.state, {str(unit_id): state for unit_id, state in states.items()})
    end = _end_of(request, digest, reply)
    if well or registering:
        moved = held if well else ()
        told = _told(job, request, registering, now)
        commits.conclude(connection, Conclusion(job, end, told, registering, moved), now)
    else:
        jobs.finish(connection, job, end, now)
        events.add(connection, _told(job, request, False, now))
    return reply


def _settle_outputs(connection: Connection, job: JobRow, request: FinishRequest, done: bool, now: float) -> bool:
    """Make the outputs of a confirmed job visible, or wait for their registration; whether any waits."""
    listed = [each.did for each in request.outputs]
    states = {each.did: each.state for each in outputs.settle(connection, job.id, listed, done, now)}
    missing = [did for did in listed if did not in states]
    if missing:
        raise Unprocessable(
            f"outputs were never recorded: {', '.join(missing)}", [("$.outputs", "record them first, then upload")]
        )
    return OutputState.UPLOADED in states.values()


def _said(request: FinishRequest, mine: Sequence[UnitRow]) -> Said:
    known = {row.id for row in mine}
    unknown = [each.unit_id for each in request.units if each.unit_id not in known]
    if unknown:
        raise Unprocessable(f"the job does not hold units {unknown}", [("$.units", "leave them out")])
    return Said(
        request.state,
        {each.unit_id: each.outcome for each in request.units},
        request.error_code,
        request.error_detail,
        request.bad_replicas,
        exit_code=request.exit_code,
    )


def _end_of(request: FinishRequest, digest: str, reply: FinishReply) -> JobEnd:
    return JobEnd(
        state=request.state,
        error_code=request.error_code,
        error_detail=request.error_detail,
        exit_code=request.exit_code,
        log_tail=request.log_tail,
        metrics=request.metrics,
        digest=digest,
        reply=reply,
    )


def _told(job: JobRow, request: FinishRequest, registering: bool, now: float) -> events.Event:
    detail: dict[str, object] = {"outputs": len(request.outputs)}
    if request.error_code is not None:
        detail |= {"error_code": request.error_code, "error_detail": request.error_detail[:500]}
    kind, target = f"JOB_{request.state.name}", request.state
    if registering:
        kind, target = "JOB_CONFIRMED", JobState.HOLDING
    return events.Event(now, kind, "job", job.id, job.task_id, job.id, source=job.state, target=target, detail=detail)


def _end_unwanted(connection: Connection, job: JobRow, now: float) -> None:
    end = JobEnd(JobState.CANCELLED, int(ErrorCode.TASK_CANCELLED), job.kill_reason or "")
    jobs.finish(connection, job, end, now)
    outputs.abandon(connection, [job.id], now)
    events.add(
        connection,
        events.Event(
            now, "JOB_CANCELLED", "job", job.id, job.task_id, job.id, source=job.state, target=JobState.CANCELLED
        ),
    )
