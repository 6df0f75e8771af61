"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Optional, TypeVar

import click
import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from common.errors import ERRORS, ErrorCode
from common.quantities import format_duration, format_size
from common.wire import OutputView, Refusal, TaskView, UnitView, WhyReply, WorkflowView

T = TypeVar("T")
Column = tuple[str, Callable[[T], object]]
WIDE = 240
"""Columns when no terminal sets a width: programs such as grep want one line a row."""

STYLES = {
    **dict.fromkeys(("done", "finished", "online"), "green"),
    **dict.fromkeys(("failed", "broken", "lost", "offline", "exhausted", "aborted", "cancelled"), "red"),
    **dict.fromkeys(("running", "reserved", "outputting", "starting", "holding", "scouting", "sent"), "cyan"),
    **dict.fromkeys(("paused", "throttled", "finishing", "draining", "test"), "yellow"),
}


def console(*, stderr: bool = False) -> Console:
    """Where text for people goes."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else WIDE)


def print_json(value: object) -> None:
    """Print ``value`` with all its fields, those at their defaults included."""
    click.echo(msgspec.json.format(msgspec.json.encode(plain(value)), indent=2))


def plain(value: object) -> Any:
    """Messages as tables, lists and plain values; nothing is left out."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def print_list(items: Sequence[T], columns: Sequence[Column[T]]) -> None:
    """Print a table with a row for each item."""
    if not items:
        console().print("nothing found")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header, _ in columns:
        table.add_column(header, overflow="fold")
    for item in items:
        table.add_row(*(cell(get(item)) for _, get in columns))
    _print_table(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values below one another; what is None or empty is left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        if value not in (None, "", [], {}):
            table.add_row(name, cell(value))
    _print_table(table)


def _print_table(table: Table) -> None:
    """Print a table; the blanks that fill its lines up only where a terminal shows none of them."""
    out = console()
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as capture:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def cell(value: object) -> RenderableType:
    """A value as it stands in a table; never read as rich's markup, because it may hold brackets."""
    if isinstance(value, Text):
        return value
    if isinstance(value, Enum):
        return state(str(value.value))
    if value is None:
        return Text("")
    if isinstance(value, Mapping):
        return Text(_pairs(value))
    if isinstance(value, (list, tuple)):
        return Text(", ".join(map(_flat, value)))
    return Text(str(value))


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_flat(value)}" for name, value in values.items())


def _flat(value: object) -> str:
    """A value inside another one."""
    simple = plain(value)
    return msgspec.json.encode(simple).decode() if isinstance(simple, (dict, list)) else str(simple)


def state(name: str) -> Text:
    """The name of a state, in its colour."""
    return Text(name, style=STYLES.get(name, ""))


def moment(seconds: Optional[float]) -> str:
    """A moment in local time, to the second."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else ""


def size(value: Optional[int]) -> str:
    """A size for people; nothing when it is not known."""
    return "" if value is None else format_size(value)


def span(start: Optional[float], end: Optional[float]) -> str:
    """The time from ``start`` to ``end``; nothing while one of them is missing."""
    return format_duration(round(max(0.0, end - start), 1)) if start and end else ""


def error_words(code: Optional[int], detail: str) -> str:
    """A numbered error: number, name, and the detail or else what the number means."""
    if code is None:
        return detail
    try:
        known = ErrorCode(code)
    except ValueError:
        return f"{code} {detail}".rstrip()
    return f"{code} {known.name}: {detail or ERRORS[known].words}"


def counts(by_state: Mapping[str, int]) -> Text:
    """``3 done, 1 failed`` in the colours of the states; zeros are left out."""
    parts = [Text(f"{count} {name}", style=STYLES.get(name, "")) for name, count in by_state.items() if count]
    return Text(", ").join(parts)


def done_of(task: TaskView) -> str:
    """``12/40``: units done and in all; a plus while more may come."""
    return f"{task.units.get('done', 0)}/{sum(task.units.values())}{'' if task.input_closed else '+'}"


TASK_COLUMNS: list[Column[TaskView]] = [
    ("task", lambda task: task.id),
    ("workflow", lambda task: task.workflow_id),
    ("stage", lambda task: task.stage),
    ("state", lambda task: task.state),
    ("done", done_of),
    ("units", lambda task: counts(task.units)),
    ("jobs", lambda task: counts(task.jobs)),
    ("reason", lambda task: task.state_reason),
]

WORKFLOW_COLUMNS: list[Column[WorkflowView]] = [
    ("workflow", lambda workflow: workflow.id),
    ("name", lambda workflow: workflow.name),
    ("owner", lambda workflow: workflow.owner),
    ("scope", lambda workflow: workflow.scope),
    (
        "stages",
        lambda workflow: Text(", ").join(Text(f"{t.stage} ").append_text(state(t.state.value)) for t in workflow.tasks),
    ),
    ("created", lambda workflow: moment(workflow.created)),
]

UNIT_COLUMNS: list[Column[UnitView]] = [
    ("unit", lambda unit: unit.id),
    ("number", lambda unit: unit.seq),
    ("state", lambda unit: unit.state),
    ("input", lambda unit: unit.did),
    ("size", lambda unit: size(unit.size)),
    ("job", lambda unit: unit.job_id),
    (
        "failures",
        lambda unit: (
            f"{unit.payload_failures}+{unit.other_failures}" if unit.payload_failures + unit.other_failures else ""
        ),
    ),
    ("error", lambda unit: error_words(unit.error_code, unit.error_detail)),
]

OUTPUT_COLUMNS: list[Column[OutputView]] = [
    ("output", lambda output: output.did),
    ("role", lambda output: output.role),
    ("size", lambda output: size(output.size)),
    ("checksum", lambda output: output.checksum),
    ("job", lambda output: output.job_id),
    ("url", lambda output: output.url),
]

REFUSAL_COLUMNS: list[Column[Refusal]] = [
    ("task", lambda refusal: refusal.task_id),
    ("bucket", lambda refusal: refusal.bucket_id),
    ("buckets", lambda refusal: refusal.buckets),
    ("refused by", lambda refusal: Text(refusal.filter, style="yellow")),
    ("because", lambda refusal: refusal.detail),
]

MATCH_COLUMNS: list[Column[Refusal]] = [
    ("task", lambda match: match.task_id),
    ("bucket", lambda match: match.bucket_id),
    ("", lambda match: match.detail),
]


def print_why(reply: WhyReply) -> None:
    """What matched, and for each other bucket the filter that refused it."""
    out = console()
    offer = {name: value for name, value in plain(reply.offer).items() if value not in (0, [], "")}
    out.print(Text.assemble("A slot of queue ", (reply.queue, "bold"), f" that offers {_pairs(offer)}"))
    if reply.matched:
        out.print(Text("\nIt may claim from:", style="green"))
        print_list(reply.matched, MATCH_COLUMNS)
    if reply.refusals:
        out.print(Text("\nIt gets nothing from:", style="yellow"))
        print_list(reply.refusals, REFUSAL_COLUMNS)
    if not reply.matched and not reply.refusals:
        out.print("There are no ready units.")
    if reply.note:
        out.print(Text(f"\n{reply.note}"))
