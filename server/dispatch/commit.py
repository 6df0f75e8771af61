"""The two-step commit: record what is about to be uploaded, then confirm.

Only the confirmation turns units to done and outputs to visible, in one transaction. It may be repeated after a lost
reply; a job that ended otherwise meanwhile is answered with :class:`Gone`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import msgspec

from common.errors import ErrorCode
from common.states import JobState, UnitState, allowed
from common.wire import (
    FinishReply,
    FinishRequest,
    OutputDestination,
    OutputRecord,
    OutputRole,
    RecordReply,
    RecordRequest,
    UnitsReleaseReply,
    UnitsReleaseRequest,
)
from server.dispatch.acquire import not_held
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Gone, NotFound, Unprocessable
from server.dispatch.settle import Said, held_units, settle_units
from server.engine.naming import name_problem, output_did, output_path
from server.engine.workflows import attributes_problem
from server.engine.world import World
from server.store import events, jobs, outputs, units, workflows
from server.store.codes import OutputState
from server.store.database import Connection
from server.store.jobs import JobEnd, JobRow
from server.store.outputs import OutputRow
from server.store.pilots import PilotRow
from server.store.units import UnitRow

END_STATES = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.CLOSED)


def record(dispatcher: Dispatcher, pilot: PilotRow, job_id: int, request: RecordRequest) -> RecordReply:
    """Reserve names for outputs and name their destinations, in the order of the request.

    Raises:
        Gone: the job is over.
        Unprocessable: a name cannot be used, or no storage may take the output.
    """
    world = dispatcher.looks.get().world
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        job = _hold(connection, job_id, pilot)
        _check_files(request.outputs, job)
        known = {row.name: row for row in outputs.of_job(connection, job_id)}
        places = {row.name: (row.did, row.storage, row.path) for row in known.values()}
        unknown = [each for each in enumerate(request.outputs) if each[1].name not in known]
        new = _new_places(connection, world, job, unknown)
        for file, *place in new:
            places[file.name] = (place[0], place[1], place[2])
        outputs.record(connection, job_id, job.task_id, new, now)
        for file in request.outputs:
            if file.name in known:
                outputs.amend(connection, known[file.name].id, file)
        jobs.beat(connection, [job_id], now)
    return RecordReply([_destination(world, job.site, file.name, *places[file.name]) for file in request.outputs])


def _hold(connection: Connection, job_id: int, pilot: PilotRow) -> JobRow:
    job = jobs.hold(connection, job_id, pilot.id)
    if job is None:
        raise not_held(jobs.get(connection, job_id), pilot.id, job_id)
    return job


def _new_places(
    connection: Connection, world: World, job: JobRow, files: Sequence[tuple[int, OutputRecord]]
) -> list[tuple[OutputRecord, str, str, str]]:
    task = workflows.get_task(connection, job.task_id)
    if task is None:
        raise NotFound(f"task {job.task_id} is gone")
    wanted = {pattern.pattern: pattern.storage for pattern in task.spec.outputs}
    return [
        (
            file,
            output_did(task.scope, task.id, job.id, file.name),
            choose_storage(world, job.site, wanted.get(file.pattern or ""), f"$.outputs[{index}]"),
            output_path(task.scope, task.id, job.id, file.name),
        )
        for index, file in files
    ]


def _check_files(files: Sequence[OutputRecord], job: JobRow) -> None:
    problems = []
    seen: set[str] = set()
    for index, file in enumerate(files):
        problem = name_problem(job.task_id, job.id, file.name)
        if not problem and file.name in seen:
            problem = f"{file.name!r} is in the list twice"
        if problem:
            problems.append((f"$.outputs[{index}].name", problem))
        seen.add(file.name)
        odd = attributes_problem(file.attributes)
        if odd:
            problems.append((f"$.outputs[{index}].attributes", odd))
    if problems:
        raise Unprocessable("outputs cannot be recorded so", problems)


def choose_storage(world: World, site: str, wanted: str | None, path: str) -> str:
    """Where an output goes: the storage that its task names, else the nearest that takes new files.

    Raises:
        Unprocessable: none does; it carries error 1133.
    """
    names = [wanted] if wanted is not None else list(world.storages)
    able = [(world.distance(site, each), each) for each in names if world.takes(each, site)]
    if not able:
        which = f"storage {wanted} takes" if wanted is not None else "no storage takes"
        raise Unprocessable(
            f"{which} {'no ' if wanted is not None else ''}new files from {site} now",
            [(path, "bring a storage with a write endpoint online, or name another in the task")],
            error_code=int(ErrorCode.NO_STORAGE),
        )
    return min(able)[1]


def _destination(world: World, site: str, name: str, did: str, storage: str, path: str) -> OutputDestination:
    urls = world.urls(storage, path, site, write=True) if storage in world.storages else []
    return OutputDestination(name, did, storage, urls)


def release(dispatcher: Dispatcher, pilot: PilotRow, job_id: int, request: UnitsReleaseRequest) -> UnitsReleaseReply:
    """Say what became of single units while the job goes on: processed ones wait for the job's outputs."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        job = _hold(connection, job_id, pilot)
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
        dispatcher.floors.reset(job.bucket_id)
        states |= {row.id: row.state for row in mine.values() if row.id in said and row.id not in states}
        states |= left
    dispatcher.changed()
    return UnitsReleaseReply({str(unit_id): state for unit_id, state in states.items()})


def finish(dispatcher: Dispatcher, pilot: PilotRow, job_id: int, request: FinishRequest) -> FinishReply:
    """Confirm a job: its end, the outcome of each unit, the outputs that become visible. All or nothing.

    Raises:
        Conflict: it was confirmed with another content.
        Gone: it was declared lost or killed meanwhile.
        Unprocessable: it does not agree with what was claimed and recorded.
    """
    if request.state not in END_STATES:
        raise Unprocessable("a job ends finished, failed, cancelled or closed", [("$.state", "say how it ended")])
    digest = hashlib.sha256(msgspec.json.encode(request)).hexdigest()
    look = dispatcher.looks.get()
    now = dispatcher.now()
    reply: FinishReply | None = None
    with dispatcher.database.write() as connection:
        job = jobs.hold(connection, job_id, pilot.id)
        if job is None:
            return _repeated(jobs.get(connection, job_id), pilot.id, job_id, digest)
        if not allowed(job.state, request.state):
            raise Unprocessable(
                f"a job that is {job.state.value} cannot end {request.state.value}", [("$.state", "report it failed")]
            )
        mine = units.of_job(connection, job_id)
        held = held_units(mine)
        if request.state == JobState.FINISHED and job.kill_reason is not None and not held:
            # Its task was killed before this came: nothing that it made is wanted.
            _end_unwanted(connection, job, now)
        else:
            listed = _listed(request, outputs.of_job(connection, job_id))
            said = _said(request, mine)
            states = settle_units(connection, look, job, held, said, now)
            dispatcher.floors.reset(job.bucket_id)
            reply = FinishReply(job_id, request.state, {str(unit_id): state for unit_id, state in states.items()})
            _end(connection, job, request, reply, digest, now)
            outputs.settle(connection, job_id, _visible(listed, set(states.values())))
    dispatcher.changed()
    if reply is None:
        raise Gone(job_id, JobState.CANCELLED, int(ErrorCode.TASK_CANCELLED))
    return reply


def _repeated(row: JobRow | None, pilot_id: int, job_id: int, digest: str) -> FinishReply:
    if row is None or row.pilot_id != pilot_id or row.digest is None or row.reply is None:
        raise not_held(row, pilot_id, job_id)
    if row.digest != digest:
        raise Conflict(f"job {job_id} was confirmed as {row.state.value} before, with another content")
    return row.reply


def _listed(request: FinishRequest, recorded: Sequence[OutputRow]) -> list[OutputRow]:
    known = {row.did: row for row in recorded}
    missing = [each.did for each in request.outputs if each.did not in known]
    if missing:
        raise Unprocessable(
            f"outputs were never recorded: {', '.join(missing)}", [("$.outputs", "record them first, then upload")]
        )
    return [known[each.did] for each in request.outputs if known[each.did].state == OutputState.RECORDED]


def _visible(listed: Sequence[OutputRow], states: Collection[UnitState]) -> list[int]:
    # Outputs belong to units that are done; a log belongs to its job, however it ended.
    done = UnitState.DONE in states
    return [row.id for row in listed if done or row.role == OutputRole.LOG.value]


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
    )


def _end(
    connection: Connection, job: JobRow, request: FinishRequest, reply: FinishReply, digest: str, now: float
) -> None:
    end = JobEnd(
        state=request.state,
        error_code=request.error_code,
        error_detail=request.error_detail,
        exit_code=request.exit_code,
        log_tail=request.log_tail,
        metrics=request.metrics,
        digest=digest,
        reply=reply,
    )
    jobs.finish(connection, job.id, end, now)
    events.add(
        connection,
        events.Event(
            now, f"JOB_{request.state.name}", "job", job.id, job.task_id, job.id, source=job.state,
            target=request.state, detail=_end_detail(request),
        ),
    )  # fmt: skip


def _end_detail(request: FinishRequest) -> dict[str, object]:
    detail: dict[str, object] = {"outputs": len(request.outputs)}
    if request.error_code is not None:
        detail |= {"error_code": request.error_code, "error_detail": request.error_detail[:500]}
    return detail


def _end_unwanted(connection: Connection, job: JobRow, now: float) -> None:
    end = JobEnd(JobState.CANCELLED, int(ErrorCode.TASK_CANCELLED), job.kill_reason or "")
    jobs.finish(connection, job.id, end, now)
    outputs.settle(connection, job.id, [])
    events.add(
        connection,
        events.Event(
            now, "JOB_CANCELLED", "job", job.id, job.task_id, job.id, source=job.state, target=JobState.CANCELLED
        ),
    )
