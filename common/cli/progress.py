"""Live progress of a workflow: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Optional

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.cli import render
from common.cli.api import Api
from common.clock import Clock, SystemClock
from common.quantities import format_duration
from common.states import FINAL_TASK_STATES
from common.wire import TaskView, WorkflowView

Wait = Callable[[float], bool]
"""Waits so many seconds; True when the watcher should give up."""
INTERVAL_S = 1.0
BUSY = ("reserved", "outputting")
BAD = ("failed", "lost", "cancelled")


@dataclass(frozen=True)
class Snapshot:
    """A workflow at one moment: ``elapsed_s`` since it is watched, ``pilots`` alive (None: not known)."""

    workflow: WorkflowView
    elapsed_s: float
    pilots: Optional[int] = None

    @property
    def ended(self) -> bool:
        """Whether no task will go on by itself."""
        return all(task.state in FINAL_TASK_STATES for task in self.workflow.tasks)

    @property
    def jobs_finished(self) -> int:
        """Jobs that have been confirmed."""
        return sum(task.jobs.get("finished", 0) for task in self.workflow.tasks)

    @property
    def rate(self) -> float:
        """Jobs confirmed a second, on average; of less than a second that would say nothing."""
        return self.jobs_finished / max(self.elapsed_s, 1.0)


def total(task: TaskView, states: tuple[str, ...]) -> int:
    """Units of a task in any of ``states``."""
    return sum(task.units.get(state, 0) for state in states)


def summary(snapshot: Snapshot) -> str:
    """The line below the table."""
    parts = [format_duration(int(snapshot.elapsed_s)), f"{snapshot.jobs_finished} jobs", f"{snapshot.rate:.1f} jobs/s"]
    if snapshot.pilots is not None:
        parts.insert(1, f"{snapshot.pilots} pilot{'' if snapshot.pilots == 1 else 's'}")
    return " · ".join(parts)


def table(snapshot: Snapshot) -> Group:
    """Units by state for each stage, with a bar, and the summary."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("stage", "state", "progress"):
        rows.add_column(header)
    for header in ("done", "units", "running", "ready", "failed"):
        rows.add_column(header, justify="right")
    for task in snapshot.workflow.tasks:
        done, units, bad = task.units.get("done", 0), sum(task.units.values()), total(task, BAD)
        rows.add_row(
            task.stage,
            render.state(task.state.value),
            ProgressBar(max(units, 1), done, width=28, complete_style="cyan", finished_style="green"),
            str(done),
            f"{units}{'' if task.input_closed else '+'}",
            str(total(task, BUSY)),
            str(task.units.get("ready", 0)),
            Text(str(bad), style="red" if bad else ""),
        )
    return Group(rows, Text(summary(snapshot), style="dim"))


def line(snapshot: Snapshot) -> str:
    """All of it in one line, for logs."""
    stages = []
    for task in snapshot.workflow.tasks:
        bad = f", {total(task, BAD)} failed" if total(task, BAD) else ""
        stages.append(f"{task.stage} {task.state.value} {render.done_of(task)} ({total(task, BUSY)} running{bad})")
    return f"{' | '.join(stages)} | {summary(snapshot)}"


def watch(
    api: Api,
    workflow_id: int,
    wait: Wait,
    *,
    pilots: Callable[[], Optional[int]] = lambda: None,
    interval_s: float = INTERVAL_S,
    clock: Optional[Clock] = None,
) -> Iterator[Snapshot]:
    """Snapshots of a workflow, one every ``interval_s`` seconds, until it has ended or ``wait`` says to give up.

    Raises common.http.HttpError when the server cannot be asked.
    """
    time = clock or SystemClock()
    started = time.monotonic()
    while True:
        snapshot = Snapshot(api.workflow(workflow_id), time.monotonic() - started, pilots())
        yield snapshot
        if snapshot.ended or wait(interval_s):
            return


def display(snapshots: Iterator[Snapshot], out: Console) -> Snapshot:
    """Show snapshots as they come; the last one."""
    last = next(snapshots)
    if out.is_terminal:
        with Live(table(last), console=out, auto_refresh=False) as live:
            for last in snapshots:
                live.update(table(last), refresh=True)
        return last
    out.print(line(last), soft_wrap=True)
    for snapshot in snapshots:
        if moved(last, snapshot):
            out.print(line(snapshot), soft_wrap=True)
        last = snapshot
    return last


def moved(before: Snapshot, after: Snapshot) -> bool:
    """Whether a task or a unit has changed its state."""
    return _states(before) != _states(after)


def _states(snapshot: Snapshot) -> list[tuple[str, dict[str, int]]]:
    return [(task.state.value, task.units) for task in snapshot.workflow.tasks]
