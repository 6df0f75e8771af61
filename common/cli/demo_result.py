"""The end of the demo: its result, or what went wrong."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from rich.console import Console
from rich.text import Text

from common.cli import render
from common.cli.api import Api
from common.cli.demo_processes import DemoError, tail
from common.cli.demo_world import FIT, HISTOGRAM, NUMBERS, PLOT, DemoFolder
from common.http import HttpError
from common.quantities import format_duration
from common.states import JobState, TaskState
from common.wire import WorkflowView

MANY = 1000
SHOWN_FAILURES = 5


class Number(msgspec.Struct):
    """A fitted number and one standard deviation of it."""

    value: float
    error: float


class FitNumbers(msgspec.Struct):
    """What the payload of the last stage writes; masses and widths in GeV."""

    mass: Number
    width: Number
    resolution: Number
    events: int
    chi2: float
    ndf: int


@dataclass(frozen=True)
class Result:
    """What the workflow brought, and the jobs that it took."""

    numbers: FitNumbers
    plot: Path
    histogram: Path
    jobs: int


def fetch_result(api: Api, workflow: WorkflowView, folder: DemoFolder) -> Result:
    """Copy the outputs of the last stage into the demo's folder.

    Raises:
        DemoError: one of them is missing, or is not what was agreed.
    """
    task = next(task for task in workflow.tasks if task.stage == FIT)
    outputs = api.outputs(task.id, MANY)
    copies = {}
    for name in (PLOT, NUMBERS, HISTOGRAM):
        # The server puts the ids of task and job in front of a name.
        urls = [output.url for output in outputs if output.did.endswith(f".{name}")]
        if not urls:
            raise DemoError(f"task {task.id} is done, but its output {name} is not in its list")
        try:
            copies[name] = Path(shutil.copyfile(unquote(urlsplit(urls[0]).path), folder.root / name))
        except OSError as error:
            raise DemoError(f"{name} cannot be copied from {urls[0]}: {error.strerror}") from error
    try:
        numbers = msgspec.json.decode(copies[NUMBERS].read_bytes(), type=FitNumbers)
    except msgspec.DecodeError as error:
        raise DemoError(f"{copies[NUMBERS]} is not what the fit should write: {error}") from error
    jobs = sum(task.jobs.get(JobState.FINISHED.value, 0) for task in workflow.tasks)
    return Result(numbers, copies[PLOT], copies[HISTOGRAM], jobs)


def print_result(
    out: Console, result: Result, folder: DemoFolder, simulated: int, workflow_s: float, all_s: float
) -> None:
    """Print the numbers, the times and where everything lies."""
    fit = result.numbers
    rows: list[tuple[str, str]] = [
        ("Z mass", f"{fit.mass.value:.3f} ± {fit.mass.error:.3f} GeV"),
        ("Z width", f"{fit.width.value:.3f} ± {fit.width.error:.3f} GeV"),
        ("resolution", f"{fit.resolution.value:.3f} ± {fit.resolution.error:.3f} GeV"),
        ("fit", f"χ²/ndf = {fit.chi2:.1f}/{fit.ndf}"),
        ("events", f"{simulated:,} simulated, {fit.events:,} selected"),
        (
            "took",
            f"{workflow_s:.1f} s for the workflow's {result.jobs} jobs, {format_duration(round(all_s, 1))} in all",
        ),
    ]
    places = [
        ("plot", result.plot),
        ("histogram", result.histogram),
        ("all outputs", folder.storage),
        ("logs", folder.root),
    ]
    out.print()
    _print_rows(out, rows)
    out.print()
    _print_rows(out, [(name, str(path)) for name, path in places])


def _print_rows(out: Console, rows: Sequence[tuple[str, str]]) -> None:
    # Not a table: paths must stay in one piece, to be copied, however narrow the terminal.
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out.print(Text.assemble((name.ljust(width + 2), "bold"), value), soft_wrap=True)


def what_went_wrong(api: Api, workflow_id: int, logs: Sequence[Path]) -> str:
    """The states of tasks, the errors of failed jobs and the ends of the logs, as far as the server still answers."""
    lines: list[str] = []
    try:
        for task in api.workflow(workflow_id).tasks:
            units = ", ".join(f"{count} {name}" for name, count in task.units.items() if count) or "none"
            lines.append(f"stage {task.stage}: {task.state.value} {task.state_reason}".rstrip() + f"; units: {units}")
            if task.state is not TaskState.DONE:
                failed = api.jobs(SHOWN_FAILURES, task=task.id, state=JobState.FAILED.value)
                lines += [f"  job {job.id}: {render.error_words(job.error_code, job.error_detail)}" for job in failed]
                refusals = [one for reply in api.why_task(task.id) for one in reply.refusals]
                lines += [f"  refused by {one.filter}: {one.detail}" for one in refusals]
    except HttpError as error:
        lines.append(f"the server cannot be asked: {error.detail}")
    lines += [f"the end of {path}:\n{tail(path)}" for path in logs]
    return "\n".join(lines)
