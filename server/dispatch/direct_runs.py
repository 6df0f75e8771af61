"""Harvesters run direct jobs: they claim them, fetch their files, report them, and bring home what they left.

See ``docs/adr/0012``. The first final state of a run counts. What a report says of a run that its owner does not want any
more changes the run's books and nothing else.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, FINAL_WORKER_STATES, JobState, WorkerState, targets
from common.wire import UnitOutcome
from common.wire.direct import (
    DirectAcquireReply,
    DirectAcquireRequest,
    DirectInstruction,
    DirectOrder,
    DirectOutcome,
    DirectPlace,
    DirectReport,
    DirectReportReply,
    DirectReportRequest,
)
from server.dispatch.context import Dispatcher, Look
from server.dispatch.direct import IN_MEMORY, check_path, keep_file, read_file
from server.dispatch.errors import Conflict, NotFound
from server.dispatch.settle import Said, held_units, settle_units
from server.engine.direct import JOB_STATES, LOST, failure_of, instruction, place_for
from server.engine.statuses import takes
from server.store import direct, direct_files, direct_runs, events, jobs, units
from server.store.database import Connection
from server.store.direct import DirectRow, RunRow
from server.store.direct_files import FileKind
from server.store.direct_runs import Known, Place
from server.store.jobs import HeldJob, JobEnd, JobRow

PAGE = 500
"""Jobs that are looked at together for some that can run at the places of a harvester."""


# ---------------------------------------------------------------- claiming


def acquire(dispatcher: Dispatcher, request: DirectAcquireRequest) -> DirectAcquireReply:
    """The orders of a harvester that it has not submitted yet, with new ones among them.

    Raises:
        NotFound: one of its queues is not known here.
    """
    now = dispatcher.now()
    look = dispatcher.looks.get()
    unknown = sorted({each.queue for each in request.places} - look.world.queues.keys())
    if unknown:
        raise NotFound(f"there is no queue {unknown[0]!r}: make it known before it takes direct jobs")
    with dispatcher.database.write() as connection:
        direct.put_places(connection, request.harvester, request.places, now)
        open_ = len(direct_runs.orders(connection, request.harvester, PAGE))
    room = request.most - open_
    if room > 0 and request.places:
        _claim(dispatcher, look, request, room)
    with dispatcher.database.read() as connection:
        found = direct_runs.orders(connection, request.harvester, max(request.most, open_))
        files = direct_files.inputs(connection, [each.direct_id for each in found])
    return DirectAcquireReply(
        [
            DirectOrder(
                each.mark, each.job_id, each.task_id, each.queue, each.description, each.language, each.proxy_id,
                files[each.direct_id],
            )
            for each in found
        ]
    )  # fmt: skip


def _claim(dispatcher: Dispatcher, look: Look, request: DirectAcquireRequest, room: int) -> None:
    now = dispatcher.now()
    places = [each for each in request.places if _takes(look, each, now)]
    after: int | None = 0
    while after is not None and room > 0:
        with dispatcher.database.read() as connection:
            found = direct_runs.waiting(connection, after, PAGE)
        after = found[-1].direct_id if len(found) == PAGE else None
        for each in found:
            place = place_for(each.clusters, places)
            if place is None or room <= 0:
                continue
            site = look.world.queues[place.queue].site
            at = Place(uuid.uuid4().hex, request.harvester, place.queue, site, place.url)
            with dispatcher.database.write() as connection:
                room -= direct_runs.claim(connection, each, at, dispatcher.now()) is not None


def _takes(look: Look, place: DirectPlace, now: float) -> bool:
    """Whether jobs may go to a queue now: it and its site take them, and neither is in a downtime."""
    queue = look.world.queues[place.queue]
    site = look.world.sites.get(queue.site)
    downtime = look.world.next_downtime(queue, now)
    if downtime is not None and downtime.start <= now:
        return False
    return takes(queue.status, probe=False) and (site is None or takes(site.status, probe=False))


# ---------------------------------------------------------------- files


def give(dispatcher: Dispatcher, harvester: str, mark: str, path: str) -> Iterator[bytes]:
    """The bytes of a file that goes with a run. Raises NotFound."""
    with dispatcher.database.read() as connection:
        run = _own(connection, harvester, mark)
        found = direct_files.find(connection, run.direct_id, FileKind.INPUT, path)
    if found is None:
        raise NotFound(f"run {mark} has no input {path[:200]!r}")
    return direct_files.pieces(dispatcher.database.read, found[0])


def take(dispatcher: Dispatcher, harvester: str, mark: str, path: str, body: Iterator[bytes]) -> None:
    """Keep a file that a run left; the same path again replaces it.

    Raises:
        NotFound: this harvester has no such run, or nobody wants it any more.
        Conflict: what it left is complete already.
        Invalid, TooLarge, OverQuota: it cannot be kept.
    """
    check_path(path)
    with dispatcher.database.read() as connection:
        run = _own(connection, harvester, mark)
        _wanted(connection, run)
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as content:
        row = read_file(dispatcher, run.direct_id, FileKind.RESULT, path, body, content)
        with dispatcher.database.write() as connection:
            held = direct_runs.hold(connection, mark)
            job = None if held is None else _wanted(connection, held)
            if job is None:
                raise NotFound(f"there is no run {mark}")
            keep_file(dispatcher, connection, job.owner, row, content)


def _own(connection: Connection, harvester: str, mark: str) -> RunRow:
    run = direct_runs.get(connection, mark)
    if run is None or run.harvester != harvester:
        raise NotFound(f"harvester {harvester} has no run {mark[:100]!r}")
    return run


def _wanted(connection: Connection, run: RunRow) -> DirectRow:
    job = direct.get(connection, run.direct_id)
    if job is None or job.run is None or job.run.mark != run.mark:
        raise NotFound(f"nobody wants what run {run.mark} left any more")
    if run.results:
        raise Conflict(f"what run {run.mark} left is complete already")
    return job


# ---------------------------------------------------------------- states


def report(dispatcher: Dispatcher, request: DirectReportRequest) -> DirectReportReply:
    """Write down what harvester says of its runs; an outcome for each, and what is to be done next.

    What is known already, as nearly all of it is, costs one query for all.
    """
    look = dispatcher.looks.get()
    with dispatcher.database.read() as connection:
        known = direct_runs.known(connection, request.harvester, [each.mark for each in request.jobs])
    outcomes = []
    for each in request.jobs:
        found = known.get(each.mark)
        todo = None if found is None else _told_before(found, each)
        if todo is not None:
            outcomes.append(DirectOutcome(each.mark, True, instruction=todo))
            continue
        with dispatcher.database.write() as connection:
            outcomes.append(_report(connection, look, request.harvester, each, dispatcher.now()))
    return DirectReportReply(outcomes)


def _told_before(known: Known, said: DirectReport) -> DirectInstruction | None:
    """What is to be done with a run of which nothing new is said; None if there is."""
    run = known.run
    same = (
        said.state is run.worker_state
        and said.batch_id in (None, run.batch_id)
        and said.native in ("", run.native)
        and said.reason == run.reason
        and said.exit_code in (None, run.exit_code)
        and said.killed <= run.killing
        and said.results <= run.results
        and not (said.left_out and run.job_state is JobState.HOLDING)
    )
    todo = _todo(known)
    if not same or (said.cleaned and (todo is DirectInstruction.CLEAN or run.job_state is JobState.HOLDING)):
        return None
    return todo


def _report(connection: Connection, look: Look, harvester: str, said: DirectReport, now: float) -> DirectOutcome:
    run = direct_runs.hold(connection, said.mark)
    if run is None:
        if said.cleaned:
            return DirectOutcome(said.mark, True, instruction=DirectInstruction.FORGET)
        return DirectOutcome(said.mark, False, "there is no such run")
    if run.harvester != harvester:
        return DirectOutcome(said.mark, False, f"this run belongs to harvester {run.harvester!r}")
    if run.worker_state in FINAL_WORKER_STATES and said.state is not run.worker_state:
        refusal = f"this run is {run.worker_state.value} already"
        return DirectOutcome(said.mark, False, refusal, _next(connection, run))
    _note(connection, look, run, said, now)
    fresh = direct_runs.get(connection, said.mark)
    assert fresh is not None
    todo = _next(connection, fresh)
    if said.cleaned and todo is DirectInstruction.CLEAN:
        direct_runs.forget(connection, said.mark)
        todo = DirectInstruction.FORGET
    return DirectOutcome(said.mark, True, instruction=todo)


def _next(connection: Connection, run: RunRow) -> DirectInstruction:
    return _todo(direct_runs.known(connection, run.harvester, [run.mark])[run.mark])


def _todo(known: Known) -> DirectInstruction:
    run = known.run
    return instruction(known.facts, run.worker_state, kill=known.kill, stored=run.results, wanted=known.wanted)


def _note(connection: Connection, look: Look, run: RunRow, said: DirectReport, now: float) -> None:
    """The run, its worker and its job, as far as the report moves them."""
    job = jobs.hold_any(connection, run.job_id)
    state = run.job_state
    if job is not None:
        state = _moved(connection, look, run, job, said, now)
    values: dict[str, object] = {"job_state": state.value}
    ended = state in FINAL_JOB_STATES
    if said.results and ended:
        values["results"] = True
    if said.state is WorkerState.RUNNING and run.started is None:
        values["started"] = now
    if said.state in FINAL_WORKER_STATES and run.ended is None:
        values["ended"] = now
        values["lost"] = said.reason.startswith(LOST)
    direct_runs.write(connection, run, said, values, now)
    if ended:
        direct_runs.end_pilot(connection, run.mark, said.reason, now)
    if said.state is not run.worker_state:
        detail = {"queue": run.queue, "batch_id": said.batch_id or run.batch_id, "reason": said.reason}
        kind = f"WORKER_{said.state.name}"
        event = events.Event(now, kind, "worker", run.mark, source=run.worker_state, target=said.state, detail=detail)
        events.add(connection, event)


def _moved(connection: Connection, look: Look, run: RunRow, job: JobRow, said: DirectReport, now: float) -> JobState:
    """Where the job goes by what is said of its worker."""
    target = JOB_STATES[said.state]
    if target is JobState.CANCELLED and job.kill_reason is not None:
        return _end(connection, look, job, JobState.CANCELLED, ErrorCode.USER_KILL, said, now)
    if target in (JobState.CANCELLED, JobState.FAILED):
        return _end(connection, look, job, JobState.FAILED, failure_of(said.reason, said.exit_code), said, now)
    if target is JobState.HOLDING and (said.left_out or said.cleaned) and not said.results:
        return _end(connection, look, job, JobState.FAILED, ErrorCode.STAGE_OUT_FAILED, said, now)
    held = HeldJob(job.id, job.task_id, job.state, job.queue, job.cores, job.claimed, job.kill_reason)
    state = job.state
    if target is not None and target in targets(job.state) and jobs.advance(connection, held, target, now):
        state = target
    if target is JobState.HOLDING and said.results:
        held_job = jobs.hold_any(connection, job.id)
        assert held_job is not None
        return _end(connection, look, held_job, JobState.FINISHED, None, said, now)
    return state


def _end(
    connection: Connection,
    look: Look,
    job: JobRow,
    state: JobState,
    code: ErrorCode | None,
    said: DirectReport,
    now: float,
) -> JobState:
    """End a run's job and its unit, for good: nobody but its owner runs it again."""
    rows = held_units(units.of_job(connection, job.id))
    words = said.left_out or said.reason
    outcome = UnitOutcome.PROCESSED if state is JobState.FINISHED else UnitOutcome.FAILED
    number = None if code is None else int(code)
    told = Said(state, {row.id: outcome for row in rows}, number, words, exit_code=said.exit_code)
    settle_units(connection, look, job, rows, told, now)
    jobs.finish(connection, job, JobEnd(state, number, words, said.exit_code), now)
    detail = {} if code is None else {"error_code": number, "detail": words[:500]}
    event = events.Event(
        now, f"JOB_{state.name}", "job", job.id, job.task_id, job.id, source=job.state, target=state, detail=detail
    )
    events.add(connection, event)
    return state
