"""Decisions in words, for ``pilotage harvester explain``."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from common.cli.render import plain
from common.wire import Shape
from harvester.provisioner import Decision


def explained(decision: Decision) -> list[RenderableType]:
    """The numbers of a decision: the queue's own, then a row for each shape."""
    limits = decision.limits
    head = (
        f"queue {decision.queue} is {decision.status.value}{' and drained' if limits.drained else ''}: "
        f"{decision.queued} workers wait, {decision.running} run, {decision.idle_pilots} pilots are idle\n"
        f"limits: max_workers {limits.max_workers}, max_queued {limits.max_queued}, per_cycle {limits.per_cycle}, "
        f"factor {limits.factor:g}"
    )
    if not decision.lines:
        return [Text(head), Text("the server wants no pilots here")]
    shown = table("shape", "ready jobs", "running jobs", "pilots", "target", "waiting", "running", "new", "bound by")
    for line in decision.lines:
        numbers = (line.ready_jobs, line.running_jobs, line.pilots, line.target, line.queued, line.running, line.new)
        shown.add_row(shape_text(line.shape), *(str(number) for number in numbers), line.bound)
    return [Text(head), shown, Text(f"{decision.new} new workers")]


def as_plain(decision: Decision) -> dict[str, Any]:
    """A decision for JSON, what follows from its fields included."""
    lines = [
        {
            "shape": plain(line.shape),
            "ready_jobs": line.ready_jobs,
            "running_jobs": line.running_jobs,
            "pilots": line.pilots,
            "target": line.target,
            "queued": line.queued,
            "running": line.running,
            "wanted": line.wanted,
            "new": line.new,
            "bound": line.bound,
        }
        for line in decision.lines
    ]
    return {
        "queue": decision.queue,
        "status": decision.status.value,
        "limits": vars(decision.limits),
        "idle_pilots": decision.idle_pilots,
        "queued": decision.queued,
        "running": decision.running,
        "new": decision.new,
        "lines": lines,
    }


def shape_text(shape: Shape) -> str:
    """A shape in few characters, such as ``8 cores, 16000 MB, 500 MB disk, 3600 s``; what isn't asked for is left out."""
    parts = [f"{shape.cores} core{'' if shape.cores == 1 else 's'}"]
    amounts = ((shape.memory_mb, "MB"), (shape.disk_mb, "MB disk"), (shape.wall_s, "s"), (shape.gpus, "GPU"))
    return ", ".join(parts + [f"{amount} {unit}" for amount, unit in amounts if amount])


def table(*columns: str) -> Table:
    """A table in the style of the user's commands."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    return shown
