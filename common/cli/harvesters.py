"""``pilotage admin harvester``: have harvesters do something, and see what came of it; ``pilotage show workers``."""

from __future__ import annotations

import uuid
from typing import Any, Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.completion import item_names
from common.cli.options import duration
from common.cli.paging import all_of
from common.http import quoted
from common.quantities import format_duration
from common.states import WorkerState
from common.wire import (
    HarvesterCommandKind,
    HarvesterCommandPage,
    HarvesterCommandRequest,
    HarvesterCommandView,
    QueueList,
    WorkerPage,
    WorkerView,
)

MOST = 100_000
"""Commands that a list looks through: they are few, and kept for days."""
_K = HarvesterCommandKind

COMMAND_COLUMNS: list[render.Column[HarvesterCommandView]] = [
    ("command", lambda view: view.command_id),
    ("what", lambda view: _what(view)),
    ("state", lambda view: view.state),
    ("asked", lambda view: render.moment(view.asked)),
    ("by", lambda view: view.who),
    ("took", lambda view: render.span(view.asked, view.ended)),
    ("answer", lambda view: view.detail),
]
WORKER_COLUMNS: list[render.Column[WorkerView]] = [
    ("worker", lambda worker: worker.mark),
    ("queue", lambda worker: worker.queue),
    ("harvester", lambda worker: worker.harvester),
    ("state", lambda worker: worker.state),
    ("since", lambda worker: render.moment(worker.updated)),
    ("cores", lambda worker: worker.shape.cores),
    ("nodes", lambda worker: worker.nodes),
    ("pilots", lambda worker: worker.pilots),
    ("host", lambda worker: worker.host),
    ("batch id", lambda worker: worker.batch_id),
    ("reason", lambda worker: worker.reason),
    ("log", lambda worker: worker.log_url),
]


def _what(view: HarvesterCommandView) -> str:
    parts = [view.kind.replace("_", " ")]
    if view.kind == _K.SUBMIT.value:
        parts.append(f"{view.workers} to")
    if view.queue is not None:
        parts.append(view.queue)
    if view.marks:
        parts.append(view.marks[0] if len(view.marks) == 1 else f"{len(view.marks)} workers")
    if view.waiting_only:
        parts.append("(waiting only)")
    return " ".join(parts)


@click.group("harvester", help="Have a harvester do something, and see what came of it.")
def harvester() -> None:
    """Commands wait at the server until the harvester asks, which it does in each of its cycles."""


def _send(client: Client, name: str, kind: HarvesterCommandKind, valid_s: Optional[int], **fields: Any) -> None:
    if valid_s is not None:
        fields["valid_s"] = float(valid_s)
    request = HarvesterCommandRequest(kind=kind, request_id=uuid.uuid4().hex, **fields)
    path = f"/v1/harvesters/{quoted(name)}/commands"
    view = client.http.call("POST", path, request, HarvesterCommandView)
    if client.as_json:
        render.print_json(view)
        return
    left = format_duration(view.expires - view.asked)
    click.echo(f"harvester {name} is told with its next cycle, or never if that is not within {left}")
    click.echo(f"what came of it: pilotage admin harvester commands {name}")


_valid = click.option(
    "--within",
    "valid_s",
    type=duration,
    help="Forget it if the harvester does not ask within this, such as 10m; else 1h.",
)
_queue = click.argument("queue", shell_complete=item_names("/v1/queues", QueueList))
_any_queue = click.argument("queue", required=False, shell_complete=item_names("/v1/queues", QueueList))


@harvester.command("drain")
@click.argument("name")
@_any_queue
@_valid
@client_options
def drain(client: Client, name: str, queue: Optional[str], valid_s: Optional[int]) -> None:
    """Submit no new workers to QUEUE, or to any. Ends nothing."""
    _send(client, name, _K.DRAIN, valid_s, queue=queue)


@harvester.command("undrain")
@click.argument("name")
@_any_queue
@_valid
@client_options
def undrain(client: Client, name: str, queue: Optional[str], valid_s: Optional[int]) -> None:
    """Submit workers to QUEUE again, or to all."""
    _send(client, name, _K.UNDRAIN, valid_s, queue=queue)


@harvester.command("cancel")
@click.argument("name")
@click.option("--queue", help="All workers of this queue.", shell_complete=item_names("/v1/queues", QueueList))
@click.option("--worker", "marks", multiple=True, metavar="MARK", help="This worker; may be repeated.")
@click.option("--waiting-only", is_flag=True, help="Only those that have not started; never one that holds work.")
@_valid
@client_options
def cancel(
    client: Client, name: str, queue: Optional[str], marks: tuple[str, ...], waiting_only: bool, valid_s: Optional[int]
) -> None:
    """End workers: all of a queue, or the named ones. What those that run are at is lost, and done again elsewhere."""
    if (queue is None) == (not marks):
        raise click.UsageError("say which: --queue NAME, or --worker MARK once or more")
    _send(client, name, _K.CANCEL, valid_s, queue=queue, marks=list(marks), waiting_only=waiting_only)


@harvester.command("submit")
@click.argument("name")
@_queue
@click.argument("workers", type=click.IntRange(min=1, max=100), default=1)
@_valid
@client_options
def submit(client: Client, name: str, queue: str, workers: int, valid_s: Optional[int]) -> None:
    """Submit WORKERS test workers (one, unless said) to QUEUE, whatever the demand."""
    _send(client, name, _K.SUBMIT, valid_s, queue=queue, workers=workers)


@harvester.command("reload")
@click.argument("name")
@_valid
@client_options
def reload(client: Client, name: str, valid_s: Optional[int]) -> None:
    """Read the harvester's configuration anew."""
    _send(client, name, _K.RELOAD, valid_s)


@harvester.command("fetch-logs")
@click.argument("name")
@click.argument("marks", metavar="WORKER...", nargs=-1, required=True)
@_valid
@client_options
def fetch_logs(client: Client, name: str, marks: tuple[str, ...], valid_s: Optional[int]) -> None:
    """Bring home what workers wrote, anew if it was there already."""
    _send(client, name, _K.FETCH_LOGS, valid_s, marks=list(marks))


@harvester.command("commands")
@click.argument("name")
@click.option("--open", "is_open", is_flag=True, help="Only those that wait.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show at most the last so many."
)
@client_options
def commands(client: Client, name: str, is_open: bool, limit: int) -> None:
    """List what a harvester was told to do, and what came of it."""
    path = f"/v1/harvesters/{quoted(name)}/commands"
    asked = "true" if is_open else None
    found = all_of(client.http, path, HarvesterCommandPage, MOST, open=asked)[-limit:]
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COMMAND_COLUMNS)


@click.command("workers")
@click.option("--queue", help="Only those of this queue.", shell_complete=item_names("/v1/queues", QueueList))
@click.option("--harvester", help="Only those of this harvester.")
@click.option("--state", type=click.Choice([one.value for one in WorkerState]), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show at most so many.")
@client_options
def workers(client: Client, queue: Optional[str], harvester: Optional[str], state: Optional[str], limit: int) -> None:
    """List workers, in the order of their marks: the batch jobs that hold pilots, of all harvesters."""
    found = all_of(client.http, "/v1/workers", WorkerPage, limit + 1, queue=queue, harvester=harvester, state=state)
    if client.as_json:
        render.print_json(found[:limit])
    else:
        render.print_list(found[:limit], WORKER_COLUMNS)
    if len(found) > limit:
        click.echo(f"… more: the first {limit} are shown; --limit N shows more", err=client.as_json)
