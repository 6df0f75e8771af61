"""People hand in direct jobs, look at them, command them, and fetch what they left (``docs/adr/0012``).

A job is made first, gets its files, and is described last: with the description it becomes a task with one unit. Whoever
holds several rows holds the direct job's before its run's and its task's.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO

import msgspec

from common.states import JobState
from common.wire import SingleInput, StageSpec, TaskCommand, WorkflowRequest
from common.wire.direct import DirectFileView, DirectPlace, FilePath
from server.dispatch import commands
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Invalid, NotFound, TooLarge
from server.dispatch.sandboxes import OverQuota
from server.dispatch.submit import default_scope
from server.engine.access import IDENTITY as X509
from server.engine.access import Caller
from server.engine.direct import place_for
from server.store import delegations, direct, direct_files, workflows
from server.store.database import Connection
from server.store.direct import Described, DirectRow
from server.store.direct_files import FileKind, FileRow

STAGE = "direct"
"""The name of the one stage of a direct job's workflow."""
MIB = 1024 * 1024
IN_MEMORY = MIB
"""Larger uploads are kept in a file of the system's until they are whole."""
MOST_CLUSTERS = 100
MOST_FILES = 1000
"""Files of a kind of one job, on the average of all jobs of a person."""
MOST_NAME = 255
MOST_DESCRIPTION = 1_000_000
SLICE = 100


class NoProxy(Conflict):
    """Nobody may act in the person's name."""

    title = "There is no proxy to run jobs with"


def served(dispatcher: Dispatcher) -> list[DirectPlace]:
    """Where direct jobs can run."""
    with dispatcher.database.read() as connection:
        return direct.places(connection)


# ---------------------------------------------------------------- handing in


def create(dispatcher: Dispatcher, caller: Caller, clusters: Sequence[str]) -> int:
    """Make a job that is to run on one of ``clusters``, the first first; its number.

    Raises:
        Invalid: none of them is served here.
        Conflict: the person has too many jobs.
    """
    now = dispatcher.now()
    most = dispatcher.looks.get().knobs.direct_jobs
    if not clusters or len(clusters) > MOST_CLUSTERS or any(len(each) > 2048 for each in clusters):
        raise Invalid(f"name 1 to {MOST_CLUSTERS} clusters", [("clusterlist", "see act info")])
    with dispatcher.database.write() as connection:
        if place_for(clusters, direct.places(connection)) is None:
            raise Invalid(
                f"no such cluster: {', '.join(clusters)[:500]}; see act info", [("clusterlist", "see act info")]
            )
        if direct.count(connection, caller.name) >= most:
            raise Conflict(f"{caller.name} has {most} jobs already: clean some first")
        return direct.add(connection, caller.name, clusters, now)


def upload(dispatcher: Dispatcher, caller: Caller, direct_id: int, path: str, body: Iterator[bytes]) -> None:
    """Keep a file for a job that is not described yet; another one of the same path is replaced.

    Raises:
        NotFound: the person has no such job.
        Conflict: it has been described.
        Invalid: no file of a job may be called that.
        TooLarge, OverQuota: there is no room for it.
    """
    check_path(path)
    mine(dispatcher, caller, direct_id, still=_undescribed)
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as content:
        row = read_file(dispatcher, direct_id, FileKind.INPUT, path, body, content)
        with dispatcher.database.write() as connection:
            _undescribed(_mine(connection, caller, direct_id))
            keep_file(dispatcher, connection, caller.name, row, content)


def _undescribed(job: DirectRow) -> None:
    if job.described:
        raise Conflict(f"job {job.id} was submitted already: it takes no more files")


def check_path(path: str) -> None:
    """Raises Invalid for a path that no file of a job may have."""
    try:
        msgspec.convert(path, FilePath)
    except msgspec.ValidationError as error:
        raise Invalid(
            f"{path[:200]!r} cannot be a file of a job: write a path below its folder", [("path", "")]
        ) from error


def read_file(
    dispatcher: Dispatcher, direct_id: int, kind: FileKind, path: str, body: Iterator[bytes], content: IO[bytes]
) -> FileRow:
    """Take a file down piece by piece, so that no transaction waits for a slow sender. Raises TooLarge."""
    most = dispatcher.looks.get().knobs.direct_file_mb * MIB
    digest = hashlib.sha256()
    size = 0
    for piece in body:
        size += len(piece)
        if size > most:
            raise TooLarge(
                f"{path}: at most {most} bytes are taken: let the job bring it to a storage, or get it there"
            )
        digest.update(piece)
        content.write(piece)
    content.seek(0)
    return FileRow(direct_id, kind, path, size, digest.hexdigest())


def keep_file(dispatcher: Dispatcher, connection: Connection, owner: str, row: FileRow, content: IO[bytes]) -> None:
    """Keep a file of a person's job. Raises OverQuota: nothing of it stays, as the transaction goes back."""
    knobs = dispatcher.looks.get().knobs
    direct_files.keep(connection, row, content)
    used, number = direct_files.used_by(connection, owner)
    jobs = direct.count(connection, owner)
    if used > knobs.direct_quota_mb * MIB or number > MOST_FILES * jobs:
        raise OverQuota(
            f"the jobs of {owner} would have {used} bytes in {number} files; {knobs.direct_quota_mb * MIB} in "
            f"{MOST_FILES * jobs} are allowed: clean jobs that you have fetched"
        )


def describe(dispatcher: Dispatcher, caller: Caller, direct_id: int, what: Described, needed: Collection[str]) -> None:
    """Give a job its description, which makes it a task; ``needed`` are the files that must have been uploaded.

    The same description again changes nothing.

    Raises:
        NotFound: the person has no such job.
        Conflict: it has another description.
        NoProxy: the person has delegated nothing, or that has ended.
        Invalid: a file is missing.
    """
    now = dispatcher.now()
    if len(what.text) > MOST_DESCRIPTION or "\0" in what.text:
        raise Invalid("the description is too long, or no text", [("desc", "")])
    with dispatcher.database.write() as connection:
        job = _mine(connection, caller, direct_id)
        if job.described:
            if direct.description_of(connection, direct_id) == what.text:
                return
            raise Conflict(f"job {direct_id} was submitted already")
        there = {each.path for each in direct_files.inputs(connection, [direct_id])[direct_id]}
        missing = sorted(set(needed) - there)
        if missing:
            raise Invalid(f"input file {missing[0]} was not uploaded", [("desc", "upload it first")])
        proxy_id = _proxy(connection, caller, now)
        task_id = _task(connection, caller, direct_id, what, now)
        direct.describe(connection, direct_id, what, proxy_id, task_id, now)
    dispatcher.changed()


def _proxy(connection: Connection, caller: Caller, now: float) -> int:
    found = delegations.of_subject(connection, caller.subject) if caller.proof == X509 and caller.subject else None
    if found is None or found.expires <= now:
        raise NoProxy(f"{caller.name} has delegated no proxy, or it has ended: run act proxy")
    return found.id


def _task(connection: Connection, caller: Caller, direct_id: int, what: Described, now: float) -> int:
    """The task that a job is. It has no payload of ours: what runs is the description."""
    about = {"direct": direct_id, "language": what.language.value, "name": what.name}
    stage = StageSpec(name=STAGE, input=SingleInput(), attributes=about, scouts=False, max_attempts=1)
    request = WorkflowRequest(name=f"{STAGE}-{direct_id}", stages=[stage], request_id=f"{STAGE}-{direct_id}")
    workflow_id = workflows.add(connection, request, caller.name, default_scope(caller.name), now)
    view = workflows.view_workflow(connection, workflow_id)
    assert view is not None
    return view.tasks[0].id


# ---------------------------------------------------------------- looking


def look(
    dispatcher: Dispatcher, caller: Caller, ids: Collection[int] | None = None, name: str = "", limit: int = 100_000
) -> list[DirectRow]:
    """The caller's own jobs, by number."""
    with dispatcher.database.read() as connection:
        return direct.of_owner(connection, caller.name, ids, name, limit)


def mine(
    dispatcher: Dispatcher, caller: Caller, direct_id: int, still: Callable[[DirectRow], None] = lambda _: None
) -> DirectRow:
    """One of the caller's jobs. Raises NotFound, and whatever ``still`` says of it."""
    found = look(dispatcher, caller, [direct_id])
    if not found:
        raise NotFound(f"there is no job {direct_id}")
    still(found[0])
    return found[0]


def _mine(connection: Connection, caller: Caller, direct_id: int) -> DirectRow:
    found = direct.hold(connection, direct_id)
    if found is None or found.owner != caller.name:
        raise NotFound(f"there is no job {direct_id}")
    return found


def results(dispatcher: Dispatcher, caller: Caller, direct_id: int) -> list[DirectFileView]:
    """What a job left, by path. Raises NotFound."""
    mine(dispatcher, caller, direct_id)
    with dispatcher.database.read() as connection:
        return direct_files.listing(connection, direct_id, FileKind.RESULT)


def result(dispatcher: Dispatcher, caller: Caller, direct_id: int, path: str) -> Iterator[bytes]:
    """The bytes of a file that a job left, in pieces. Raises NotFound."""
    mine(dispatcher, caller, direct_id)
    with dispatcher.database.read() as connection:
        found = direct_files.find(connection, direct_id, FileKind.RESULT, path)
    if found is None:
        raise NotFound(f"job {direct_id} left no {path[:200]}")
    return direct_files.pieces(dispatcher.database.read, found[0])


# ---------------------------------------------------------------- commanding


def kill(dispatcher: Dispatcher, caller: Caller, direct_id: int) -> None:
    """End a job. One that was never described is forgotten at once. Repeating it is harmless.

    Raises:
        NotFound: the person has no such job.
        Conflict: it is over.
    """
    with dispatcher.database.write() as connection:
        job = _mine(connection, caller, direct_id)
        if not job.described:
            direct.remove(connection, direct_id)
            return
        if job.facts.is_over:
            raise Conflict(f"job {direct_id} is over already")
    if job.task_id is not None:
        commands.command(
            dispatcher, caller, job.task_id, TaskCommand("kill", reason="killed by its owner"), direct=True
        )


def fetch(dispatcher: Dispatcher, caller: Caller, direct_id: int) -> None:
    """Have what a failed job left brought here.

    Raises:
        NotFound: the person has no such job.
        Conflict: it did not fail.
    """
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        job = _mine(connection, caller, direct_id)
        if job.facts.job is not JobState.FAILED:
            raise Conflict(f"job {direct_id} did not fail: what a good one leaves is brought here by itself")
        if not job.facts.fetch:
            direct.ask_fetch(connection, direct_id, now)


def resubmit(dispatcher: Dispatcher, caller: Caller, direct_id: int) -> None:
    """Run a failed job again, as a new job; what the last run left is not kept.

    Raises:
        NotFound: the person has no such job.
        Conflict: it did not fail.
        NoProxy: the person has delegated nothing, or that has ended.
    """
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        job = _mine(connection, caller, direct_id)
        if job.facts.job is not JobState.FAILED or job.task_id is None:
            raise Conflict(f"job {direct_id} did not fail: only failed ones can be run again")
        _proxy(connection, caller, now)
    # First the units: should the server die between the two, the job has failed still and this can be repeated.
    commands.command(dispatcher, caller, job.task_id, TaskCommand("retry", reason="run again"), direct=True)
    with dispatcher.database.write() as connection:
        held = _mine(connection, caller, direct_id)
        if held.run is not None and job.run is not None and held.run.mark == job.run.mark:
            direct_files.drop(connection, direct_id, FileKind.RESULT)
            direct.run_again(connection, direct_id, _proxy(connection, caller, now), now)
    dispatcher.changed()


def clean(dispatcher: Dispatcher, caller: Caller, direct_id: int) -> None:
    """Forget a job that is over, with its files; its harvester cleans what is left of it.

    Raises:
        NotFound: the person has no such job.
        Conflict: it is not over.
    """
    with dispatcher.database.write() as connection:
        if not _mine(connection, caller, direct_id).facts.is_over:
            raise Conflict(f"job {direct_id} is not over: kill it first")
        direct.remove(connection, direct_id)


def drop_old(dispatcher: Dispatcher) -> int:
    """Forget jobs that are over, or never began, and of which nothing changed for long; how many."""
    before = dispatcher.now() - dispatcher.looks.get().knobs.direct_keep_s
    with dispatcher.database.write() as connection:
        gone = 0
        for direct_id in direct.old(connection, before, SLICE):
            job = direct.hold(connection, direct_id)
            if job is not None and job.changed < before and (job.facts.is_over or not job.described):
                direct.remove(connection, direct_id)
                gone += 1
    return gone
