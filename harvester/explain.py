"""Decisions in words and numbers, in the order of the calculation, for ``pilotage harvester explain``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from common.cli.render import plain
from common.cli.render import state as state_text
from common.wire import Shape
from harvester.limits import Bound
from harvester.provisioner import Decision, Line

HEAD = "bold"
TIGHT = "yellow"
GOOD = "green"
SHAPES: Sequence[tuple[str, Callable[[Line], int]]] = (
    ("ready jobs", lambda line: line.ready_jobs),
    ("busy", lambda line: line.running_jobs),
    ("pilots", lambda line: line.pilots),
    ("target", lambda line: line.target),
    ("- running", lambda line: line.running),
    ("- waiting", lambda line: line.queued),
    ("- others'", lambda line: line.others),
    ("- found", lambda line: line.found),
    ("= missing", lambda line: line.missing),
    ("workers", lambda line: line.wanted),
)
"""The columns of the calculation; those that are zero in every row and may be so are left out."""
MAY_BE_LEFT_OUT = {"- others'", "- found", "workers"}


def explained(decision: Decision) -> list[RenderableType]:
    """The numbers of a decision: the queue, the demand shape by shape, the limits, and what comes of it."""
    return [_queue(decision), *_demand(decision), *_limits(decision), *_result(decision)]


def as_plain(decision: Decision) -> dict[str, Any]:
    """A decision for JSON, what follows from its fields included."""
    load = decision.situation.load
    return {
        "queue": decision.queue,
        "status": decision.status.value,
        "closed": decision.closed,
        "limits": vars(decision.limits),
        "idle_pilots": decision.idle_pilots,
        "queued": decision.queued,
        "running": decision.running,
        "batch_system": None if load is None else vars(load),
        "throttle": decision.situation.throttle,
        "bounds": [{**vars(bound), "left": bound.left} for bound in decision.bounds],
        "lines": [{**vars(line), "shape": plain(line.shape)} for line in decision.lines],
        "new": decision.new,
        "surplus": [{"shape": plain(shape), "workers": n} for shape, n in decision.surplus],
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


def _queue(decision: Decision) -> Text:
    load = decision.situation.load
    parts = [
        f"{decision.queued} of its workers wait, {decision.running} run",
        f"{decision.idle_pilots} pilots are idle",
    ]
    if load is not None:
        parts.append(f"in the batch system {load.waiting} jobs wait and {load.running} run, anybody's")
    drained = " and drained" if decision.limits.drained else ""
    head = Text.assemble("queue ", (decision.queue, HEAD), " is ", state_text(decision.status.value), drained, ": ")
    return head.append("; ".join(parts))


def _demand(decision: Decision) -> list[RenderableType]:
    if not decision.lines:
        return [Text("\nThe server wants no pilots here.")]
    columns = [(name, get) for name, get in SHAPES if name not in MAY_BE_LEFT_OUT or _matters(name, get, decision)]
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("shape", overflow="fold", min_width=12)
    for name, _ in columns:
        shown.add_column(name.replace(" ", "\n", 1), justify="right")
    shown.add_column("new", justify="right", style=HEAD)
    shown.add_column("bound by", overflow="fold", min_width=12)
    for line in decision.lines:
        numbers = [str(get(line)) for _, get in columns]
        shown.add_row(shape_text(line.shape), *numbers, str(line.new), Text(line.bound, style=TIGHT))
    factor = decision.limits.factor
    how = "target = pilots" if factor == 1 else f"target = pilots + {factor - 1:g} x (pilots - busy), rounded up"
    nodes = decision.limits.nodes
    per = f"; a worker is {nodes} pilots, one on each node" if nodes > 1 else ""
    found = "; found are pilots that no worker accounts for" if any(line.found for line in decision.lines) else ""
    return [Text.assemble("\n", ("Demand", HEAD), f": {how}{per}{found}"), shown]


def _matters(name: str, get: Callable[[Line], int], decision: Decision) -> bool:
    return decision.limits.nodes > 1 if name == "workers" else any(get(line) for line in decision.lines)


def _limits(decision: Decision) -> list[RenderableType]:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("limit")
    for name in ("at most", "used", "left"):
        shown.add_column(name, justify="right")
    shown.add_column("of what", overflow="fold")
    binding = {line.bound for line in decision.lines}
    for bound in decision.bounds:
        shown.add_row(*_bound_cells(bound), style=TIGHT if bound.name in binding else "")
    return [Text.assemble(("Limits", HEAD)), shown]


def _bound_cells(bound: Bound) -> tuple[str, str, str, str, str]:
    return bound.name, str(bound.limit), str(bound.used), str(bound.left), bound.what


def _result(decision: Decision) -> list[RenderableType]:
    said = [Text.assemble((f"{decision.new} new workers", f"{HEAD} {GOOD}" if decision.new else HEAD))]
    wanted = sum(line.wanted for line in decision.lines)
    if decision.closed and wanted:
        said[0].append(f" of {wanted} wanted, because {decision.closed}")
    elif decision.new < wanted:
        said[0].append(f" of {wanted} wanted; the limits in colour hold back the others")
    if decision.too_many:
        shapes = ", ".join(f"{n} x {shape_text(shape)}" for shape, n in decision.surplus)
        words = f"{decision.too_many} workers wait for nothing ({shapes}): withdrawn once that has lasted"
        said.append(Text(f"{words} (cancel_queued_after_s), unless they start before; none that runs is ended"))
    return list(said)
