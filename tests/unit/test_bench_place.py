"""What the pilot's benchmark says when what it waits for cannot come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.cli.demo_processes import DemoError
from common.states import JobState
from common.wire import JobView, Offer, Refusal, WhyReply
from pilot.bench import place as module
from pilot.bench.place import Place


def job(number: int, state: JobState, detail: str = "") -> JobView:
    return JobView(
        id=number, task_id=1, state=state, queue="q", host="h", pilot_id=1, n_units=1, claimed=0.0, error_detail=detail
    )


def bench(*jobs: JobView) -> Place:
    """A place whose server knows these jobs, and why no slot takes more."""
    why = WhyReply("q", Offer(1, 1, 1, 1), [Refusal(1, 1, "container", "the slot has no Apptainer")])
    api = SimpleNamespace(jobs=lambda _limit, task: list(jobs), why_task=lambda _task: [why])
    processes = SimpleNamespace(wait=lambda _seconds: [])
    return Place(cast(Any, None), cast(Any, processes), cast(Any, api), "", cast(Any, None))


def test_an_image_that_cannot_be_used_is_told_at_once() -> None:
    """It waited for jobs that were claimed and failed again and again."""
    place = bench(job(1, JobState.FINISHED), job(2, JobState.FAILED, "image x.sif: No such file or directory"))
    with pytest.raises(DemoError, match=r"^job 2 is failed: image x.sif: No such file"):
        place.wait_for_jobs(1, 20, all_good=True)
    assert len(place.wait_for_jobs(1, 2)) == 2, "where a job may fail, it is over like any other"


def test_why_no_slot_takes_the_jobs_is_told_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    with pytest.raises(DemoError, match="3 jobs over; container: the slot has no Apptainer"):
        bench().wait_for_jobs(1, 3)
