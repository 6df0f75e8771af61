"""The final report of a job: its state, an outcome for each unit, and the outputs that count."""

from __future__ import annotations

from typing import Optional

from common.errors import ERRORS
from common.states import JobState
from common.wire import FinishRequest, UnitOutcome, UnitResult, UploadedOutput
from pilot.jobstate import Job

_DETAIL_LIMIT = 8000
_LOG_TAIL_LIMIT = 32768


def final_report(job: Job) -> FinishRequest:
    """What the server is told at the end of ``job``. The same state always gives the same report."""
    failure = job.failure
    return FinishRequest(
        state=JobState.FINISHED if failure is None else failure.state,
        units=[UnitResult(unit.unit_id, unit_outcome(job, unit.unit_id)) for unit in job.units],
        outputs=_outputs(job),
        bad_replicas=list(job.bad_replicas),
        exit_code=job.exit_code,
        error_code=None if failure is None else int(failure.code),
        error_detail="" if failure is None else failure.detail[:_DETAIL_LIMIT],
        metrics=job.metrics,
        log_tail=job.log_tail[-_LOG_TAIL_LIMIT:],
        asked=len(job.handed),
        probe=job.probe if failure is None else None,
    )


def unit_outcome(job: Job, unit_id: int) -> UnitOutcome:
    """What became of a unit.

    Without a failure: what the jobscript says it processed, or everything when it neither used get-file nor left a list
    of what it processed. With one that is the payload's fault: what the payload was given has failed, also when it could
    not even be started if that will never be otherwise (no such image, no such interpreter). Else it was not the unit's
    day: it goes back.
    """
    decided = job.outcomes.get(unit_id)
    if decided is not None:
        return decided
    if job.failure is None:
        return UnitOutcome.PROCESSED if _processed(job, unit_id) else UnitOutcome.RETURNED
    error = ERRORS[job.failure.code]
    blamed = error.payload and (job.started or not error.retry) and (not job.handed or unit_id in job.handed)
    return UnitOutcome.FAILED if blamed else UnitOutcome.RETURNED


def _processed(job: Job, unit_id: int) -> bool:
    if job.processed is not None:
        return unit_id in job.processed
    return not job.handed


def _outputs(job: Job) -> list[UploadedOutput]:
    if job.failure is None:
        return list(job.uploaded)
    logs = {destination.did for destination in job.destinations if _is_log(job, destination.name)}
    return [output for output in job.uploaded if output.did in logs]


def _is_log(job: Job, name: str) -> Optional[bool]:
    return next((file.is_log for file in job.files if file.record.name == name), None)
