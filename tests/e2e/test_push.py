"""A queue in push mode, with the real programs: jobs are claimed before their workers are submitted; nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Optional

import pytest

from tests.e2e.conftest import DATABASES
from tests.e2e.system import System

COUNT = 20


@pytest.mark.parametrize("database", DATABASES)
def test_twenty_units_through_a_push_queue_and_a_harvester_that_is_killed(
    tmp_path: Path, database_url: Optional[str]
) -> None:
    with System(tmp_path, database_url, slots=4, queue={"mode": "push"}) as system:
        system.storage("disk")
        task = system.task(
            input={"kind": "counter", "count": COUNT},
            jobscript="#!/bin/sh\necho done > out-$PILOTAGE_JOB_ID.txt\n",
            outputs=[{"pattern": "out-*.txt"}],
            scouts=False,
        )
        system.wait_jobs(task, "finished", 3)
        system.harvester.kill9()
        system.harvester.start()
        system.wait_task(task, "done")
        system.assert_sums(task, COUNT)
        jobs = system.jobs(task)
        assert Counter(job.state.value for job in jobs if job.state != "closed") == {"finished": COUNT}
        assert len({job.pilot_id for job in jobs if job.state == "finished"}) == COUNT, "each worker had its one job"
        for job in jobs:
            claimed = next(event for event in system.events(job=job.id) if event.kind == "JOB_CLAIMED")
            assert claimed.detail["host"] == "", "it was claimed before any pilot was there"
        system.wait(lambda: not system.pilots, "pilots leave when their jobs are over")
