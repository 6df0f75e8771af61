"""Our events of jobs as those of justIN, a row for each; pure.

Ours are of jobs, justIN's of files, too: which files a job has is read from the units and outputs of its task. A unit
that another job did later is shown with that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

import msgspec

from common.counters import counter_did
from common.events import EventKind
from common.wire import EventView, JobView, OutputView, TaskView, UnitView

JOB_EVENTS: Mapping[str, str] = {
    EventKind.JOB_CLAIMED: "JOB_STARTED",
    EventKind.JOB_RUNNING: "JOB_PROCESSING",
    EventKind.JOB_HOLDING: "JOB_OUTPUTTING",
    EventKind.JOB_FINISHED: "JOB_FINISHED",
    EventKind.JOB_FAILED: "JOB_ABORTED",
    EventKind.JOB_CANCELLED: "JOB_ABORTED",
    EventKind.JOB_CLOSED: "JOB_ABORTED",
    EventKind.JOB_LOST: "JOB_STALLED_HEARTBEAT",
}
"""What happens to a job. What is not here has no name there. A job that failed with an exit code of its jobscript is
JOB_SCRIPT_ERROR."""
ALLOCATED, PROCESSED, CREATED, RESET, FAILED = (
    "FILE_ALLOCATED",
    "FILE_PROCESSED",
    "FILE_CREATED",
    "FILE_ALLOCATED_RESET",
    "FILE_SET_TO_FAILED",
)


class Row(msgspec.Struct, frozen=True):
    """An event as justIN lists it."""

    time: float
    event: str
    workflow_id: int
    stage_id: str
    jobsub_id: str
    file_did: str = ""
    site_name: str = ""
    rse_name: str = ""


class Seen(msgspec.Struct, frozen=True):
    """What there is of a task; ``places``: site of each pilot, and when its worker was submitted."""

    jobs: Sequence[JobView]
    units: Sequence[UnitView]
    outputs: Sequence[OutputView]
    events: Sequence[EventView]
    places: Mapping[int, tuple[str, float]]


def rows_of(task: TaskView, seen: Seen) -> list[Row]:
    """The rows of each job, in the order in which justIN has them."""
    return [row for job in seen.jobs for row in _rows_of_job(task, job, seen)]


def _rows_of_job(task: TaskView, job: JobView, seen: Seen) -> list[Row]:
    site, submitted = seen.places.get(job.pilot_id or 0, ("", 0.0))
    files = [(unit.state.value, _file(task, unit)) for unit in seen.units if unit.job_id == job.id]
    found = [
        Row(min(submitted or job.claimed, job.claimed), "JOB_SUBMITTED", task.workflow_id, task.stage, str(job.id))
    ]

    def add(time: float, event: str, did: str = "", rse: str = "") -> None:
        found.append(Row(time, event, task.workflow_id, task.stage, str(job.id), did, site, rse))

    missing = list(_WAY)
    for event in (each for each in seen.events if each.job_id == job.id):
        name = _name(event, job)
        if name is None:
            continue
        # A pilot reports from time to time: what lay between two reports happened before the later one.
        while missing and (name in missing or name == "JOB_FINISHED"):
            step = missing.pop(0)
            if step == "JOB_OUTPUTTING" and not job.exit_code:
                for state, did in files:
                    if state in ("outputting", "done"):
                        add(event.time, PROCESSED, did)
            add(event.time, step)
            if step == "JOB_STARTED":
                for _, did in files:
                    add(event.time, ALLOCATED, did)
        if name in _WAY:
            continue
        if name == "JOB_FINISHED":
            for output in (each for each in seen.outputs if each.job_id == job.id and each.role == "output"):
                add(event.time, CREATED, output.did, output.storage)
        add(event.time, name)
        if name != "JOB_FINISHED":
            for state, did in files:
                add(event.time, FAILED if state == "failed" else RESET, did)
        return found
    return found


_WAY = ("JOB_STARTED", "JOB_PROCESSING", "JOB_OUTPUTTING")
"""What every job goes through that finishes."""


def _file(task: TaskView, unit: UnitView) -> str:
    if unit.counter is not None:
        return counter_did(task.workflow_id, unit.counter)
    return unit.did or f"unit {unit.seq}"


def _name(event: EventView, job: JobView) -> Optional[str]:
    name = JOB_EVENTS.get(event.kind)
    if event.kind == EventKind.JOB_FAILED and job.exit_code:
        return "JOB_SCRIPT_ERROR"
    return name
