"""A pilot says what its jobs do; the server answers with an instruction for each."""

from __future__ import annotations

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, ResourceState
from common.wire import HeartbeatReply, HeartbeatRequest, Instruction, JobInstruction, JobReport
from server.dispatch.context import Dispatcher
from server.dispatch.reap import lose
from server.store import events, jobs, pilots
from server.store.codes import PilotState
from server.store.database import Connection
from server.store.jobs import JobRow
from server.store.pilots import PilotRow

UNLISTED_S = 60.0
"""How old a live job must be to be given up when its pilot does not list it: its claim is answered long since."""


def heartbeat(dispatcher: Dispatcher, pilot: PilotRow, request: HeartbeatRequest) -> HeartbeatReply:
    """Write down states and metrics; for each job of the request say what to do with it.

    The write needs no durable commit: a lost heartbeat is followed by the next.
    """
    now = dispatcher.now()
    look = dispatcher.looks.get()
    with dispatcher.database.write(durable=False) as connection:
        pilots.beat(connection, pilot.id, None, now)
        held = jobs.of_pilot(connection, pilot.id, [report.job_id for report in request.jobs])
        alive = [report for report in request.jobs if _is_alive(held.get(report.job_id))]
        jobs.progress(connection, [(report.job_id, report.metrics) for report in alive], now)
        for report in alive:
            _advance(connection, held[report.job_id], report, now)
        long_ago = now - max(UNLISTED_S, 2 * look.knobs.heartbeat_s)
        orphans = jobs.unlisted(connection, pilot.id, [report.job_id for report in request.jobs], long_ago)
    for job_id in orphans:
        # The answer to the claim came when the pilot had given up waiting for it.
        lose(dispatcher, job_id, now + 1.0, ErrorCode.WORKER_LOST, "its pilot does not hold it")
    queue = look.world.queues.get(pilot.queue)
    return HeartbeatReply(
        jobs=[_instruction(report.job_id, held.get(report.job_id)) for report in request.jobs],
        next_interval_s=look.knobs.heartbeat_s,
        drain=pilot.state != PilotState.ACTIVE
        or queue is None
        or queue.status in (ResourceState.DRAINING, ResourceState.OFFLINE),
    )


def _is_alive(row: JobRow | None) -> bool:
    return row is not None and row.state not in FINAL_JOB_STATES


def _advance(connection: Connection, row: JobRow, report: JobReport, now: float) -> None:
    # Only confirming ends a job: a final state in a heartbeat is a pilot that has not got through with it yet.
    if report.state == row.state or report.state in FINAL_JOB_STATES:
        return
    if jobs.advance(connection, row.id, report.state, now):
        events.add(
            connection,
            events.Event(
                now, f"JOB_{report.state.name}", "job", row.id, row.task_id, row.id,
                source=row.state, target=report.state,
            ),
        )  # fmt: skip


def _instruction(job_id: int, row: JobRow | None) -> JobInstruction:
    if row is None:
        return JobInstruction(job_id, Instruction.UNKNOWN, "this pilot holds no such job")
    if row.state in FINAL_JOB_STATES:
        return JobInstruction(job_id, Instruction.UNKNOWN, f"the job is {row.state.value} already")
    if row.kill_reason is not None:
        return JobInstruction(job_id, Instruction.KILL, row.kill_reason)
    return JobInstruction(job_id)
