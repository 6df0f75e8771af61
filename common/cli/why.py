"""``pilotage why``: why a slot got nothing, or a task found no slot."""

from __future__ import annotations

from typing import Optional

import click

from common.cli import render
from common.cli.api import Api
from common.cli.client import Client, client_options
from common.cli.options import duration, size


@click.command()
@click.option("--queue", metavar="NAME", help="Ask for a slot of this queue.")
@click.option("--task", "task_id", metavar="ID", type=click.IntRange(min=1), help="Ask for this task.")
@click.option("--cores", type=click.IntRange(min=1), help="With --queue: a slot with so many free cores.")
@click.option("--memory", "memory_mb", type=size, help="With --queue: so much memory, such as 4GiB.")
@click.option("--disk", "disk_mb", type=size, help="With --queue: so much scratch, such as 20GB.")
@click.option("--wall", "wall_s", type=duration, help="With --queue: so much wall time left, such as 2h.")
@click.option("--gpus", type=click.IntRange(min=0), help="With --queue: so many GPUs.")
@click.option("--tag", "tags", multiple=True, help="With --queue: a tag of the slot; may be repeated.")
@client_options
def why(
    client: Client,
    queue: Optional[str],
    task_id: Optional[int],
    cores: Optional[int],
    memory_mb: Optional[int],
    disk_mb: Optional[int],
    wall_s: Optional[int],
    gpus: Optional[int],
    tags: tuple[str, ...],
) -> None:
    """Tell why a slot of a queue gets nothing, or why a task finds no slot.

    For each bucket of ready units it names the first filter that refused, in words, and what matched. Without further
    options the slot offers all that its queue can.
    """
    offer = {
        "cores": cores,
        "memory_mb": memory_mb,
        "disk_mb": disk_mb,
        "wall_s": wall_s,
        "gpus": gpus,
        "tags": ",".join(tags) or None,
    }
    if (queue is None) == (task_id is None):
        raise click.UsageError("say whom to ask for: give --queue NAME or --task ID")
    api = Api(client.http)
    if queue is not None:
        replies = [api.why_queue(queue, **offer)]
    elif any(value is not None for value in offer.values()):
        raise click.UsageError("what a slot offers goes with --queue; leave it out with --task")
    else:
        replies = api.why_task(task_id or 0)
    if client.as_json:
        render.print_json(replies)
        return
    if not replies:
        click.echo("There is no queue: pilotage admin queue set makes one.")
    for reply in replies:
        render.print_why(reply)
