"""People look at a running job: command, server, heartbeat, pilot, and the way back."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.looks import QUICK_S
from tests.e2e.system import System


def test_a_running_job_shows_itself(system: System, gate: Path) -> None:
    script = f"""#!/bin/sh
echo hello from the payload
mkdir results; echo 42 > results/fit.log; ln -s /etc/passwd results/stolen; touch {gate}.waits
while [ ! -e {gate} ]; do sleep 0.2; done
echo more >> results/fit.log
"""
    task = system.task(jobscript=script)
    (job,) = system.wait_jobs(task, "running")
    system.wait(Path(f"{gate}.waits").exists, "the payload waits", QUICK_S)

    def peek(*arguments: str) -> str:
        done = system.cli("job", "peek", str(job.id), *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert peek() == "hello from the payload\n"
    assert peek("--tail", "results/fit.log") == "42\n"
    assert "stolen -> /etc/passwd" in peek("--ls", "results")
    assert "jobscript" in peek("--ps")
    assert "work/results/" in peek("--du")
    assert f"job {job.id}: running" in peek("--pilot-log")
    refused = system.cli("job", "peek", str(job.id), "--tail", "results/stolen")
    assert refused.returncode == 1 and "is a link" in refused.stderr and "root:" not in refused.stdout
    gate.touch()
    system.wait_task(task, "done", QUICK_S)
    over = system.cli("job", "peek", str(job.id))
    assert over.returncode == 1 and "there is nothing left to look at" in over.stderr
    assert [event.kind for event in system.events(job=job.id)].count("AUDIT") == 7
