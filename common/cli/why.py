"""``pilotage why``: why a slot got nothing, or a task found no slot."""

from __future__ import annotations

from typing import Optional

import click

from common.cli import render
from common.cli.api import Api
from common.cli.client import Client, client_options
from common.cli.demand import print_demand
from common.cli.options import duration, size


@click.command()
@click.option("--queue", metavar="NAME", help="Ask for a slot of this queue.")
@click.option("--task", "task_id", metavar="ID", type=click.IntRange(min=1), help="Ask for this task.")
@click.option("--pilot", "pilot_id", metavar="ID", type=click.IntRange(min=1), help="Ask for a pilot's last offer.")
@click.option("--demand", is_flag=True, help="With --queue: why harvester is asked for as many pilots as it is.")
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
    pilot_id: Optional[int],
    demand: bool,
    cores: Optional[int],
    memory_mb: Optional[int],
    disk_mb: Optional[int],
    wall_s: Optional[int],
    gpus: Optional[int],
    tags: tuple[str, ...],
) -> None:
    """Tell why a slot of a queue, or a pilot, gets nothing, or why a task finds no slot.

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
    if sum(each is not None for each in (queue, task_id, pilot_id)) != 1:
        raise click.UsageError("say whom to ask for: give --queue NAME, --task ID or --pilot ID")
    offers = any(value is not None for value in offer.values())
    if offers and (queue is None or demand):
        raise click.UsageError("what a slot offers goes with --queue alone; leave it out")
    if demand:
        if queue is None:
            raise click.UsageError("demand is a queue's: give --queue NAME")
        print_demand(client, queue, explain=True)
        return
    api = Api(client.http)
    if queue is not None:
        replies = [api.why_queue(queue, **offer)]
    elif pilot_id is not None:
        replies = [api.why_pilot(pilot_id)]
    else:
        replies = api.why_task(task_id or 0)
    if client.as_json:
        render.print_json(replies)
        return
    if not replies:
        click.echo("There is no queue: pilotage admin queue set makes one.")
    for reply in replies:
        render.print_why(reply)
