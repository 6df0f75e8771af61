"""Pilots say what their jobs do; the server answers with an instruction for each. Written for many pilots at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, JobState
from common.wire import HeartbeatReply, HeartbeatRequest, Instruction, JobInstruction, Offer
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Unauthenticated
from server.dispatch.peeks import BEAT_S, orders
from server.dispatch.reap import lose
from server.store import beats, events, jobs
from server.store.beats import Beat
from server.store.codes import PilotState
from server.store.database import Connection
from server.store.jobs import PilotAndJobs
from server.store.peeks import PeekRow
from server.store.reports import report_text

UNLISTED_S = 60.0
"""How old a live job must be to be given up when its pilot does not list it: its claim is answered long since."""
WRITTEN_EVERY_S = 1.0
"""How often signs of life that wait for no answer are written."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A heartbeat of a pilot."""

    pilot_id: int
    request: HeartbeatRequest


@dataclass(frozen=True, slots=True)
class Held:
    """What the server knows of the pilot; ``gone`` are the states of reported jobs that it does not hold any more."""

    pilot: PilotAndJobs | None
    gone: Mapping[int, JobState]


def heard(dispatcher: Dispatcher, pilot_id: int, offer: Offer) -> None:
    """A pilot asked for work: a sign of life that goes with the next batch."""
    now = dispatcher.now()
    dispatcher.heard[pilot_id] = Beat(now, offer=msgspec.json.encode(offer).decode())
    if not 0 <= now - dispatcher.heard_written < WRITTEN_EVERY_S:
        write_heard(dispatcher)


def write_heard(dispatcher: Dispatcher) -> None:
    """Write the signs of life that wait."""
    dispatcher.heard_written = dispatcher.now()
    waiting, dispatcher.heard = dispatcher.heard, {}
    # A copy: another thread may be putting one more there.
    waiting = dict(waiting)
    if waiting:
        with dispatcher.database.write(durable=False) as connection:
            beats.write(connection, waiting)


def heartbeat(dispatcher: Dispatcher, pilot_id: int, request: HeartbeatRequest) -> tuple[HeartbeatReply, bool]:
    """Write down states and metrics; for each job of the request say what to do with it, and whether the pilot is active.

    The write needs no durable commit: a lost heartbeat is followed by the next.

    Raises:
        Unauthenticated: there is no such pilot.
    """
    held: Held = dispatcher.heartbeats.do(Asked(pilot_id, request), partial(carry_out, dispatcher))
    pilot = held.pilot
    if pilot is None:
        raise Unauthenticated("the pilot of this token is not known")
    look = dispatcher.looks.get()
    _give_up_unlisted(dispatcher, pilot, request, dispatcher.now() - max(UNLISTED_S, 2 * look.knobs.heartbeat_s))
    queue = look.world.queues.get(pilot.queue)
    active = pilot.state == PilotState.ACTIVE
    looked_at = dispatcher.peeks.of_pilot(pilot_id)
    reply = HeartbeatReply(
        jobs=[_instruction(report.job_id, held, looked_at) for report in request.jobs],
        next_interval_s=min(BEAT_S, look.knobs.heartbeat_s) if looked_at else look.knobs.heartbeat_s,
        drain=not active or queue is None or look.world.pilots_leave(queue),
    )
    return reply, active


def _give_up_unlisted(dispatcher: Dispatcher, pilot: PilotAndJobs, request: HeartbeatRequest, long_ago: float) -> None:
    listed = {report.job_id for report in request.jobs}
    for job in pilot.jobs.values():
        if job.id not in listed and job.claimed < long_ago and not job.waits:
            # The answer to the claim came when the pilot had given up waiting for it.
            lose(dispatcher, job.id, long_ago, ErrorCode.WORKER_LOST, "its pilot does not hold it")


def carry_out(dispatcher: Dispatcher, batch: list[Asked]) -> list[Held]:
    """Write down a batch of heartbeats; jobs that have moved on, which are few, in a transaction of their own."""
    now = dispatcher.now()
    said = {asked.pilot_id: Beat(now, report_text(asked.request.jobs)) for asked in batch}
    with dispatcher.database.at_once() as connection:
        pilots = beats.write_and_see(connection, said)
    news = [asked for asked in batch if _is_news(asked, pilots.get(asked.pilot_id))]
    written: dict[int, Held] = {}
    if news:
        with dispatcher.database.write(durable=False) as connection:
            for asked in news:
                written[id(asked)] = _written(connection, asked, pilots[asked.pilot_id], now)
    return [written.get(id(asked)) or Held(pilots.get(asked.pilot_id), {}) for asked in batch]


def _is_news(asked: Asked, pilot: PilotAndJobs | None) -> bool:
    """Whether a job is reported in another state than the server knows, or one that the pilot does not hold."""
    if pilot is None:
        return False
    held = pilot.jobs
    return any(each.job_id not in held or held[each.job_id].state != each.state for each in asked.request.jobs)


def _written(connection: Connection, asked: Asked, pilot: PilotAndJobs, now: float) -> Held:
    unknown = []
    for report in asked.request.jobs:
        job = pilot.jobs.get(report.job_id)
        if job is None:
            unknown.append(report.job_id)
        # Only confirming ends a job: a final state in a heartbeat is a pilot that has not got through with it yet.
        elif report.state not in FINAL_JOB_STATES and jobs.advance(connection, job, report.state, now):
            events.add(
                connection,
                events.Event(
                    now, f"JOB_{report.state.name}", "job", job.id, job.task_id, job.id,
                    source=job.state, target=report.state,
                ),
            )  # fmt: skip
    return Held(pilot, jobs.states_of(connection, asked.pilot_id, unknown) if unknown else {})


def _instruction(job_id: int, held: Held, looked_at: Sequence[PeekRow]) -> JobInstruction:
    assert held.pilot is not None
    job = held.pilot.jobs.get(job_id)
    if job is None:
        state = held.gone.get(job_id)
        if state is not None and (state == JobState.FINISHED or state not in FINAL_JOB_STATES):
            # Confirmed, and the answer was lost on the way: the pilot will repeat its confirmation.
            return JobInstruction(job_id)
        words = "this pilot holds no such job" if state is None else f"the job is {state.value} already"
        return JobInstruction(job_id, Instruction.UNKNOWN, words)
    if job.kill_reason is not None:
        return JobInstruction(job_id, Instruction.KILL, job.kill_reason)
    return JobInstruction(job_id, peeks=orders(looked_at, job_id))
