"""``pilotage bench``: the shipped benchmarks. Each starts real programs in a temporary folder and prints what it measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from common.cli import demo_world as world
from common.cli.api import Api
from common.cli.demo import LISTENING
from common.cli.demo_processes import DemoError, Processes
from common.cli.demo_world import DemoFolder, pilotage
from common.cli.main import LazyCommands
from common.http import HttpClient
from common.states import FINAL_TASK_STATES, JobState, WorkerState
from common.tokens import hash_secret, new_secret, read_secret_file, write_secret_file
from common.wire import (
    CounterInput,
    JobView,
    Shape,
    StageSpec,
    WorkerReport,
    WorkersReportReply,
    WorkersReportRequest,
    WorkflowRequest,
)

MARK = "bench-pilot"


class Benchmarks(LazyCommands):
    """Those of programs come by entry point, so that each imports only its own."""

    entry_points = "pilotage.bench"


@click.group(cls=Benchmarks)
def bench() -> None:
    """Measure this installation, on this machine."""


@dataclass(frozen=True)
class PilotFigures:
    """What one pilot did with one-unit jobs: seconds from claim to confirmation, and between two jobs."""

    jobs: int
    payload_s: float
    job_p50_s: float
    job_max_s: float
    gap_p50_s: float
    cores: int
    python: str


@bench.command("pilot")
@click.option("--jobs", type=click.IntRange(2, 10_000), default=20, show_default=True, help="Jobs of one unit each.")
@click.option("--payload-s", type=click.FloatRange(0.0, 600.0), default=1.0, show_default=True, help="What each takes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pilot_command(jobs: int, payload_s: float, as_json: bool) -> None:
    """One pilot, one core, a payload that only sleeps: what the pilot and the server add to it.

    A job's time is what the server saw: from the claim that made the job to the confirmation that ended it.
    """
    with tempfile.TemporaryDirectory(prefix="pilotage-bench-") as folder:
        views = run_pilot(DemoFolder(Path(folder)), jobs, payload_s)
    figures = pilot_figures(views, payload_s)
    if as_json:
        click.echo(json.dumps(figures.__dict__))
        return
    click.echo(f"{figures.jobs} jobs of {payload_s:g} s, one after another in one pilot, on {figures.cores} cores")
    click.echo(f"claim to confirmation  p50 {figures.job_p50_s:.3f} s, max {figures.job_max_s:.3f} s")
    click.echo(f"confirmation to claim  p50 {figures.gap_p50_s:.3f} s")


def pilot_figures(views: list[JobView], payload_s: float) -> PilotFigures:
    """The figures of jobs that ran one after another.

    Raises:
        DemoError: one of them did not finish.
    """
    unfinished = [view for view in views if view.state != JobState.FINISHED or view.ended is None]
    if unfinished:
        raise DemoError(f"job {unfinished[0].id} is {unfinished[0].state.value}: {unfinished[0].error_detail}")
    ordered = sorted(views, key=lambda view: view.claimed)
    took = [(view.ended or 0.0) - view.claimed for view in ordered]
    gaps = [after.claimed - (before.ended or 0.0) for before, after in zip(ordered, ordered[1:])]
    return PilotFigures(
        jobs=len(ordered),
        payload_s=payload_s,
        job_p50_s=statistics.median(took),
        job_max_s=max(took),
        gap_p50_s=statistics.median(gaps),
        cores=psutil.cpu_count() or 1,
        python=platform.python_version(),
    )


def run_pilot(place: DemoFolder, jobs: int, payload_s: float) -> list[JobView]:
    """A server, a task of ``jobs`` units, and one pilot that runs them; the jobs at the end."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    with Processes(environment, place.root) as processes:
        world.write_server_config(place)
        url = processes.start("server", pilotage("--config", str(place.server_config), "server"), LISTENING)
        with closing(HttpClient(url, token=lambda: read_secret_file(place.admin_token), retries=1)) as http:
            api = Api(http)
            world.describe_world(api, place)
            view = api.submit(_workflow(jobs, payload_s))
            secret_file = _plan_worker(processes, place, url)
            processes.start(
                "pilot",
                pilotage(
                    *("pilot", "run", "--server", url, "--worker", MARK, "--secret-file", str(secret_file)),
                    *("--work-dir", str(place.root / "work")),
                ),
            )
            task_id = view.tasks[0].id
            while api.task(task_id).state not in FINAL_TASK_STATES:
                if processes.wait(0.5):
                    raise DemoError(processes.obituary())
            return list(api.jobs(jobs, task=task_id))


def _workflow(jobs: int, payload_s: float) -> WorkflowRequest:
    stage = StageSpec(
        name="sleep", input=CounterInput(count=jobs), command=["/bin/sleep", f"{payload_s:g}"], requirements=world.NEEDS
    )
    return WorkflowRequest(name="bench", scope="bench", stages=[stage])


def _plan_worker(processes: Processes, place: DemoFolder, url: str) -> Path:
    """Write a worker down as harvester would; the file with its secret."""
    token_file = place.harvester_token
    processes.run(
        pilotage(
            *("--config", str(place.server_config), "server", "token", "--role", "harvester"),
            *("--subject", "bench", "--output", str(token_file)),
        ),
        place.root / "token.log",
    )
    secret = new_secret()
    secret_file = place.root / "worker.secret"
    write_secret_file(secret_file, secret + "\n")
    report = WorkerReport(
        mark=MARK,
        queue=world.QUEUE_NAME,
        state=WorkerState.PLANNED,
        shape=Shape(cores=1),
        secret_hash=hash_secret(secret),
        valid_s=86400.0,
    )
    with closing(HttpClient(url, token=lambda: read_secret_file(token_file), retries=1)) as http:
        request = WorkersReportRequest(harvester="bench", workers=[report])
        outcome = http.call("POST", "/v1/workers:report", request, WorkersReportReply).workers[0]
    if not outcome.accepted:
        raise DemoError(f"the server refused the worker: {outcome.reason}")
    return secret_file
