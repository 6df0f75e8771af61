"""Logs of failed jobs: kept by the server for a while, for people without credentials for the storage."""

from __future__ import annotations

from collections.abc import Iterator

from common.states import JobState
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, NotFound, TooLarge, Unprocessable
from server.engine.access import Caller, may_command
from server.store import logs

KIB = 1024
GZIP = b"\x1f\x8b"


def keep(dispatcher: Dispatcher, pilot_id: int, job_id: int, body: Iterator[bytes]) -> None:
    """Keep the log archive of a pilot's own job that has failed, or is about to be reported as failed.

    Raises:
        NotFound: this pilot had no such job.
        TooLarge, Unprocessable: it is no gzip file of a size that is kept.
    """
    most = dispatcher.looks.get().knobs.log_kb * KIB
    with dispatcher.database.read() as connection:
        found = logs.owner_of(connection, job_id)
    if found is None or found.pilot_id != pilot_id:
        raise NotFound(f"this pilot holds no job {job_id}")
    if found.state == JobState.FINISHED:
        raise Unprocessable(f"job {job_id} has finished: its log lies with its outputs", [("$", "do not send it")])
    content = bytearray()
    for piece in body:
        content += piece
        if len(content) > most:
            raise TooLarge(f"at most {most} bytes of a log are kept")
    if not content.startswith(GZIP):
        raise Unprocessable("a log is a gzipped tar archive", [("$", "pack it")])
    with dispatcher.database.write(durable=False) as connection:
        logs.keep(connection, found.task_id, job_id, bytes(content), dispatcher.now())


def read(dispatcher: Dispatcher, caller: Caller, job_id: int) -> bytes:
    """The log archive of a job, for whoever may command its task: it may hold what is none of others' business.

    Raises:
        NotFound: there is no such job, or no log of it (any more).
    """
    with dispatcher.database.read() as connection:
        found = logs.owner_of(connection, job_id)
        if found is None:
            raise NotFound(f"there is no job {job_id}")
        if not may_command(caller, found.owner, found.group):
            raise Forbidden(f"the log of job {job_id} belongs to {found.owner}")
        data = logs.read(connection, job_id)
    if data is None:
        raise NotFound(f"the server has no log of job {job_id}: it did not fail, or that is too long ago")
    return data


def drop_old(dispatcher: Dispatcher) -> int:
    """Take away logs that are older than they are kept; how many."""
    before = dispatcher.now() - dispatcher.looks.get().knobs.log_keep_s
    with dispatcher.database.write() as connection:
        return logs.drop_old(connection, before)
