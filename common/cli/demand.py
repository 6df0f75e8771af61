"""``pilotage show demand`` and ``show shares``: how many pilots a queue should have, and what each share has."""

from __future__ import annotations

from typing import Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.completion import item_names
from common.http import ProblemError, quoted
from common.wire import DemandPart, DemandRefusal, DemandReply, QueueList, ShapeDemand, ShareTree, ShareView

NOT_FOUND = 404


@click.command("demand")
@click.argument("queue", shell_complete=item_names("/v1/queues", QueueList))
@click.option("--explain", is_flag=True, help="Also of which work it gets how much, and what keeps the rest from it.")
@client_options
def demand(client: Client, queue: str, explain: bool) -> None:
    """Show how many pilots of which shape a queue should have now, for admins and harvesters."""
    print_demand(client, queue, explain)


def print_demand(client: Client, queue: str, explain: bool) -> None:
    """Ask for a queue's demand and print it."""
    params = {"explain": "true"} if explain else None
    try:
        reply = client.http.call("GET", f"/v1/queues/{quoted(queue)}/demand", None, DemandReply, params=params)
    except ProblemError as error:
        if error.status != NOT_FOUND:
            raise
        raise click.ClickException(f"there is no queue {queue!r}; pilotage admin queue list shows all") from error
    if client.as_json:
        render.print_json(reply)
        return
    running = f"{reply.running} pilots with jobs, {reply.idle_pilots} without, {reply.waiting} workers that wait"
    render.print_fields([("queue", queue), ("has", running), ("computed", render.moment(reply.computed))])
    render.print_list(reply.shapes, SHAPES)
    if explain:
        click.echo("\nIts part of the work that waits:")
        render.print_list(reply.parts, PARTS)
        click.echo("\nIt gets nothing of:")
        render.print_list(reply.refused, REFUSED)


SHAPES: list[render.Column[ShapeDemand]] = [
    ("cores", lambda line: line.shape.cores),
    ("memory MiB", lambda line: line.shape.memory_mb or "any"),
    ("disk MiB", lambda line: line.shape.disk_mb or "any"),
    ("wall s", lambda line: line.shape.wall_s or "any"),
    ("GPUs", lambda line: line.shape.gpus),
    ("pilots", lambda line: line.pilots),
    ("running", lambda line: line.running_jobs),
    ("ready jobs", lambda line: line.ready_jobs),
    ("ready units", lambda line: line.ready_units),
    ("core-hours", lambda line: line.core_hours or "not known"),
]
PARTS: list[render.Column[DemandPart]] = [
    ("tasks", lambda part: f"{part.task_id}{f' and {part.tasks - 1} more' if part.tasks > 1 else ''}"),
    ("buckets", lambda part: part.buckets),
    ("distance", lambda part: part.distance),
    ("queues", lambda part: part.queues),
    ("weight", lambda part: f"{part.weight:.3g} of {part.weights:.3g}"),
    ("jobs", lambda part: f"{part.jobs} of {part.ready_jobs}"),
]
REFUSED: list[render.Column[DemandRefusal]] = [
    ("tasks", lambda part: f"{part.task_id}{f' and {part.tasks - 1} more' if part.tasks > 1 else ''}"),
    ("buckets", lambda part: part.buckets),
    ("units", lambda part: part.units),
    ("filter", lambda part: part.filter),
    ("why", lambda part: part.detail),
]


@click.command("shares")
@click.argument("name", required=False)
@client_options
def shares(client: Client, name: Optional[str]) -> None:
    """Show what each share should have and has, the one that is served next first; of NAME, and those below it."""
    path = f"/v1/shares/{quoted(name)}" if name else "/v1/share-tree"
    found = client.http.call("GET", path, None, ShareTree)
    if client.as_json:
        render.print_json(found.items)
    else:
        render.print_list(found.items, SHARES)


SHARES: list[render.Column[ShareView]] = [
    ("share", lambda share: "  " * share.depth + share.name),
    ("weight", lambda share: f"{share.weight:g}"),
    ("target", lambda share: f"{share.target:.1%}"),
    ("used", lambda share: f"{share.used:.1%}"),
    ("cores", lambda share: f"{share.cores:g}"),
    ("of its own", lambda share: f"{share.own_cores:g}"),
]
