"""What pilots of other systems report of their jobs: beats, and the end with what they left on the storages.

A job is its caller's, and the pilot's that named itself first; whoever else speaks of it is refused, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

from common.errors import ErrorCode
from common.states import JobState
from common.wire import (
    FinishReply,
    FinishRequest,
    HeartbeatRequest,
    Instruction,
    JobReport,
    Metrics,
    OutputRecord,
    OutputRole,
    PeekAnswer,
    PeekOrder,
    RecordRequest,
    UnitOutcome,
    UnitResult,
    UploadedOutput,
)
from server.dispatch import commit, heartbeat, peeks
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, Gone, NotFound, Unauthenticated
from server.dispatch.facts import task_facts
from server.dispatch.foreign import leave
from server.store import foreign, jobs, outputs
from server.store.foreign import ForeignJob
from server.store.outputs import OutputRow
from server.store.workflows import TaskRow

MB = 1024 * 1024


class NotYours(Forbidden):
    """Another caller, or another pilot, fetched this job."""

    type = "pilotage:not-yours"


@dataclass(frozen=True)
class Told:
    """What a pilot is told: to ``kill`` the job, or what somebody wants to see of it; ``answered``: nobody does any more."""

    kill: str = ""
    peek: PeekOrder | None = None
    answered: bool = False


@dataclass(frozen=True)
class Delivered:
    """A file that lies on a storage, as its pilot says: ``lfn`` is its name there, ``url`` where it is, as far as told."""

    lfn: str
    size: int
    checksum: str
    storage: str = ""
    url: str = ""


@dataclass(frozen=True)
class End:
    """How a job ended, in our own numbers."""

    state: JobState
    delivered: Sequence[Delivered] = ()
    error_code: int | None = None
    error_detail: str = ""
    exit_code: int | None = None
    metrics: Metrics | None = None
    log_tail: str = ""


def mine(dispatcher: Dispatcher, caller: str, job_id: int, pilot: str) -> ForeignJob:
    """A job that its caller and its pilot speak of; the first ``pilot`` that names itself has it from then on.

    Raises:
        NotFound: no pilot of another system fetched it.
        NotYours: another caller's or another pilot's.
    """
    with dispatcher.database.read() as connection:
        found = foreign.get(connection, job_id)
    if found is None:
        raise NotFound(f"there is no job {job_id} of such a pilot")
    if found.caller != caller:
        raise NotYours(f"job {job_id} was fetched by another than {caller}")
    if pilot and found.name is None:
        with dispatcher.database.write() as connection:
            bound = foreign.bind(connection, job_id, pilot)
    else:
        bound = not pilot or found.name == pilot
    if not bound:
        raise NotYours(f"job {job_id} is another pilot's than {pilot}")
    return found


def beat(dispatcher: Dispatcher, job: ForeignJob, state: JobState, metrics: Metrics | None, shown: str = "") -> Told:
    """A job goes on; ``shown`` is what its pilot saw when it last was asked to look at it."""
    request = HeartbeatRequest([JobReport(job.job_id, state, metrics)])
    try:
        reply, _ = heartbeat.heartbeat(dispatcher, job.pilot_id, request)
    except Unauthenticated:
        return Told(kill="the job was put away long ago")
    (instruction,) = reply.jobs
    if instruction.instruction is not Instruction.CONTINUE:
        return Told(kill=instruction.reason or "the job is wanted no more")
    return _look(dispatcher, job, instruction.peeks, shown)


def _look(dispatcher: Dispatcher, job: ForeignJob, orders: Sequence[PeekOrder], shown: str) -> Told:
    """Which request to look at the job its pilot is to be told of; only one at a time, as its answers name none."""
    waiting = list(orders)
    told = job.told
    if told is not None and shown:
        with suppress(NotFound):  # it is too old to be answered
            peeks.answer(dispatcher, job.pilot_id, job.job_id, told, PeekAnswer(text=shown))
        waiting = [each for each in waiting if each.peek_id != told]
    following = waiting[0] if waiting else None
    if told != (following.peek_id if following else None):
        with dispatcher.database.write(durable=False) as connection:
            foreign.tell(connection, job.job_id, following.peek_id if following else None)
    return Told(peek=following, answered=told is not None and following is None)


def not_shown(dispatcher: Dispatcher, job: ForeignJob, peek_id: int, words: str) -> None:
    """Such a pilot cannot show what was asked for."""
    peeks.answer(dispatcher, job.pilot_id, job.job_id, peek_id, PeekAnswer(error=words))
    with dispatcher.database.write(durable=False) as connection:
        foreign.tell(connection, job.job_id, None)


def confirm(dispatcher: Dispatcher, job: ForeignJob, end: End) -> FinishReply:
    """A job has ended. What it should have left and did not fails it. Repeated, the answer is the same.

    Raises:
        Conflict: it was confirmed with another content.
        Gone: it was declared lost or killed meanwhile.
        NotFound: it was put away long ago.
    """
    with dispatcher.database.read() as connection:
        row = jobs.get(connection, job.job_id)
        if row is None:
            raise NotFound(f"job {job.job_id} was put away")
        task = task_facts(dispatcher, connection, row.task_id)
        expected = outputs.of_jobs(connection, [job.job_id])
    there, wrong = _delivered(expected, end.delivered)
    request = _request(job, task, expected, there, wrong, end)
    try:
        if row.digest is None and row.confirmed is None and there:
            _amend(dispatcher, job, task, there)
        reply = commit.finish(dispatcher, job.pilot_id, job.job_id, request)
    except Gone:
        leave(dispatcher, job.pilot_id, "its job was gone")
        raise
    leave(dispatcher, job.pilot_id, "its job is over")
    return reply


Pair = tuple[OutputRow, Delivered]


def _delivered(expected: Sequence[OutputRow], files: Sequence[Delivered]) -> tuple[list[Pair], dict[str, str]]:
    """What was delivered as it should be; and what is wrong with the rest, by name. Names that we never gave don't count."""
    told = {file.lfn: file for file in files}
    there: list[Pair] = []
    wrong: dict[str, str] = {}
    for row in expected:
        lfn = row.did.partition(":")[2]
        file = told.get(lfn)
        if file is None:
            continue
        if file.storage and file.storage != row.storage:
            wrong[lfn] = f"{lfn} lies on {file.storage}, and was to go to {row.storage}"
        elif file.url and _path_of(row, file) is None:
            wrong[lfn] = f"{lfn} lies at {file.url}, and was to go to {row.path} on {row.storage}"
        else:
            there.append((row, file))
    return there, wrong


def _path_of(row: OutputRow, file: Delivered) -> str | None:
    """The path at which a file lies, if such pilots may have put it there: some make folders of a scope's dots."""
    scope, _, rest = row.path.partition("/")
    url = unquote(file.url.partition("?")[0])
    for path in (row.path, f"{scope.replace('.', '/')}/{rest}"):
        if url.endswith(f"/{path}"):
            return path
    return None


def _amend(dispatcher: Dispatcher, job: ForeignJob, task: TaskRow, there: Sequence[Pair]) -> None:
    """Write down what is known now of files that had only names: sizes, checksums, where they really are."""
    patterns = [each.pattern for each in task.spec.outputs]
    files = [
        OutputRecord(
            row.name, file.size, file.checksum, OutputRole(row.role),
            pattern=patterns[row.pattern - 1] if row.pattern else None,
        )
        for row, file in there
    ]  # fmt: skip
    try:
        commit.record(dispatcher, job.pilot_id, job.job_id, RecordRequest(files))
    except Conflict:
        return  # a twin of this report was faster: the confirmation finds out whether it said the same
    moved = [(row, path) for row, file in there if file.url and (path := _path_of(row, file)) not in (None, row.path)]
    if moved:
        with dispatcher.database.write() as connection:
            for row, path in moved:
                assert path is not None
                foreign.set_path(connection, job.job_id, row.name, path)


def _request(
    job: ForeignJob,
    task: TaskRow,
    expected: Sequence[OutputRow],
    there: Sequence[Pair],
    wrong: dict[str, str],
    end: End,
) -> FinishRequest:
    """The confirmation as one of our own pilots would send it; the same for the same report, however often it comes."""
    state, code, words = end.state, end.error_code, end.error_detail
    if state is JobState.FINISHED:
        code, words = _shortcoming(task, expected, there, wrong)
        state = JobState.FINISHED if code is None else JobState.FAILED
    done = state is JobState.FINISHED
    return FinishRequest(
        state=state,
        units=[UnitResult(unit_id, UnitOutcome.PROCESSED) for unit_id in job.units] if done else [],
        outputs=[UploadedOutput(row.did, file.url) for row, file in there],
        exit_code=end.exit_code,
        error_code=code,
        error_detail=words,
        metrics=end.metrics,
        log_tail=end.log_tail,
    )


def _shortcoming(
    task: TaskRow, expected: Sequence[OutputRow], there: Sequence[Pair], wrong: dict[str, str]
) -> tuple[int | None, str]:
    """What a job that is said to have finished lacks: an error and words; None and nothing if all is there."""
    if wrong:
        return int(ErrorCode.STAGE_OUT_FAILED), "; ".join(wrong.values())[:8000]
    files = [row for row in expected if row.role == OutputRole.OUTPUT.value]
    found = {row.id for row, _ in there}
    rules = task.spec.outputs
    lacking = [
        row.did.partition(":")[2]
        for row in files
        if row.id not in found and not (row.pattern and rules[row.pattern - 1].optional)
    ]
    none_at_all = not any(row.id in found for row in files)
    if lacking and not (task.spec.allow_no_output and none_at_all):
        return int(ErrorCode.MISSING_OUTPUT), f"not among the outputs that were told: {', '.join(lacking)}"[:8000]
    for row, file in there:
        limit_mb = rules[row.pattern - 1].max_mb if row.pattern else 0
        if limit_mb and file.size > limit_mb * MB:
            return int(ErrorCode.OUTPUT_TOO_LARGE), f"{file.lfn} has {file.size} bytes, {limit_mb} MiB are allowed"
    return None, ""
