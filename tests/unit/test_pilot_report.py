"""Regressions of what a pilot reports at the end of a job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import ErrorCode
from common.wire import AssignedUnit, Assignment, Metrics, Requirements, UnitOutcome
from pilot import jobstate as js
from pilot.job import step
from pilot.jobstate import Failure, Job, Phase, new_job
from pilot.report import unit_outcome
from pilot.slot import Part


def running(started: bool) -> Job:
    assignment = Assignment(
        job_id=7,
        task_id=1,
        workflow_id=1,
        stage="one",
        scope="s",
        units=[AssignedUnit(1, 1)],
        requirements=Requirements(),
    )
    return replace(new_job(assignment, Part(1, 0, 0, ())), phase=Phase.RUNNING, started=started)


@pytest.mark.parametrize("code", [ErrorCode.IMAGE_NOT_FOUND, ErrorCode.BAD_JOBSCRIPT])
def test_payload_that_can_never_start_was_given_to_fifty_jobs(code: ErrorCode) -> None:
    """Its unit counted as not touched, so that neither its attempts nor the hopeless error ended it."""
    job, _ = step(running(started=False), js.PayloadOver(failure=Failure(code, "")))
    assert unit_outcome(job, 1) is UnitOutcome.FAILED


@pytest.mark.parametrize("code", [ErrorCode.CONTAINER_NOT_INSTALLED, ErrorCode.SIGXCPU])
def test_payload_that_did_not_start_for_others_reasons_is_not_blamed(code: ErrorCode) -> None:
    job, _ = step(running(started=False), js.PayloadOver(failure=Failure(code, "")))
    assert unit_outcome(job, 1) is UnitOutcome.RETURNED


def test_job_over_a_limit_reported_what_was_measured_before_it() -> None:
    breach = js.Breach(Failure(ErrorCode.WORK_DIR_TOO_LARGE, "disk_mb: 38.1, allowed 10.0"), Metrics(work_dir_mb=38.1))
    job, _ = step(replace(running(started=True), metrics=Metrics(work_dir_mb=9.0, stage_in_s=1.5)), breach)
    assert (job.metrics.work_dir_mb, job.metrics.stage_in_s) == (38.1, 1.5)
