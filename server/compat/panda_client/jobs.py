"""Jobs of a task, as PanDA's client reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.wire import JobView, OutputRole
from server.api.routing import Call, Raw
from server.compat.panda_client.answers import Declined, done, plain_moment
from server.compat.panda_client.asked import asked
from server.compat.panda_client.show import existing
from server.compat.panda_client.states import JOB_STATUS, UNSUCCESSFUL
from server.dispatch import rights
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.store import jobs, outputs, panda_client
from server.store.panda_client import PandaTask

MOST_JOBS = 10_000
"""Jobs of a task that one answer tells of: the first ones."""
MOST_OUTPUTS = 10_000


def _jobs_of(dispatcher: Dispatcher, task: PandaTask) -> list[JobView]:
    """The jobs of a task, and of the build that it waits for."""
    with dispatcher.database.read() as connection:
        ids = [task.task_id]
        if task.parameters is not None:
            ids = panda_client.helpers(connection, task.workflow_id)
        found: list[JobView] = []
        for task_id in ids:
            found += jobs.page(connection, task_id=task_id, states=[], after=0, limit=MOST_JOBS - len(found))
    return sorted(found, key=lambda each: each.id)


def ids_of_task(dispatcher: Dispatcher, call: Call) -> Raw:
    """The numbers of a task's jobs."""
    task = existing(dispatcher, call.caller, asked(call).number("task_id"))
    return done([job.id for job in _jobs_of(dispatcher, task)])


def of_task(dispatcher: Dispatcher, call: Call) -> Raw:
    """The jobs of a task, all or those that ended badly."""
    fields = asked(call)
    task = existing(dispatcher, call.caller, fields.number("task_id"))
    bad = fields.flag("unsuccessful_only")
    found = [job for job in _jobs_of(dispatcher, task) if not bad or job.state in UNSUCCESSFUL]
    return done([_told(job, task) for job in found])


def descriptions(dispatcher: Dispatcher, call: Call) -> Raw:
    """Jobs by their numbers, in the same order; null for one that is not there."""
    return done([_description(dispatcher, call, job_id) for job_id in asked(call).numbers("job_ids")])


def _description(dispatcher: Dispatcher, call: Call, job_id: int) -> dict[str, Any] | None:
    try:
        rights.check_sight(dispatcher, call.caller, {"job_id": str(job_id)}, {})
    except NotFound:
        return None
    with dispatcher.database.read() as connection:
        job = jobs.view(connection, job_id)
        task = panda_client.get(connection, job.task_id) if job is not None else None
    return None if job is None else _told(job, task)


def _told(job: JobView, task: PandaTask | None) -> dict[str, Any]:
    failed = job.error_code is not None
    return {
        "PandaID": job.id,
        "jediTaskID": task.task_id if task is not None else job.task_id,
        "taskID": task.task_id if task is not None else job.task_id,
        "reqID": task.task_id if task is not None else job.task_id,
        "jobName": f"{task.name if task is not None else job.task_id}.{job.id}",
        "jobStatus": JOB_STATUS[job.state],
        "prodUserName": task.owner if task is not None else None,
        "workingGroup": task.group if task is not None else None,
        "computingSite": job.queue,
        "modificationHost": job.host,
        "creationTime": plain_moment(job.claimed),
        "startTime": plain_moment(job.started),
        "endTime": plain_moment(job.ended),
        "modificationTime": plain_moment(job.ended or job.heartbeat or job.claimed),
        "nInputFiles": job.n_units,
        "transExitCode": None if job.exit_code is None else str(job.exit_code),
        "pilotErrorCode": job.error_code or 0,
        "pilotErrorDiag": job.error_detail if failed else None,
        "attemptNr": 1,
        "Files": [],
    }


def metadata(dispatcher: Dispatcher, call: Call) -> Raw:
    """What the jobs of a task wrote of themselves: the attributes of their outputs, once for each job."""
    task = existing(dispatcher, call.caller, asked(call).number("task_id"))
    world = dispatcher.looks.get().world
    with dispatcher.database.read() as connection:
        found, _ = outputs.page(
            connection, task.task_id, world, role=OutputRole.OUTPUT.value, after=0, limit=MOST_OUTPUTS
        )
    by_job: dict[int, Any] = {}
    for output in found:
        if output.attributes:
            by_job.setdefault(output.job_id, output.attributes)
    return done([{"PandaID": job_id, "metaData": attributes} for job_id, attributes in sorted(by_job.items())])


def kill(dispatcher: Dispatcher, call: Call) -> Raw:
    """Not one by one: a killed job's units would be given out again."""
    ids = asked(call).numbers("job_ids")
    raise Declined(_words(ids))


def _words(ids: Sequence[int]) -> str:
    which = f"job {ids[0]}" if len(ids) == 1 else f"{len(ids)} jobs"
    return f"{which}: jobs are not killed one by one, as their units would be given out again: kill or finish the task"


def debug_mode(dispatcher: Dispatcher, call: Call) -> Raw:
    """Not a mode here."""
    job_id = asked(call).number("job_id")
    return done(f"no mode is needed: look at job {job_id} while it runs with pilotage job peek")
