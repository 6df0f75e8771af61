"""``pilotage admin downtime``: when sites, queues and storages are not used."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Optional, Union

import click
from msgspec import structs

from common.cli import render
from common.cli.api import QUEUE, SITE, STORAGE, Api, ResourceKind
from common.cli.client import Client, client_options
from common.cli.options import duration
from common.wire import Downtime, QueueSpec, SiteSpec, StorageSpec

Described = Union[SiteSpec, QueueSpec, StorageSpec]
KINDS = {kind.word: kind for kind in (SITE, QUEUE, STORAGE)}
KIND = click.Choice(sorted(KINDS))


@click.group("downtime", help="Say when a site, a queue or a storage is not used.")
def downtime() -> None:
    """Nothing is given to a queue that would end in a downtime; storages give and take nothing in theirs."""


def _moment(_: click.Context, param: click.Parameter, text: Optional[str]) -> Optional[float]:
    """A moment such as ``2026-11-22T08:00Z``; without a zone it is UTC."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: write it as 2026-11-22T08:00Z", param=param) from error
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


@downtime.command("add")
@click.argument("kind", type=KIND)
@click.argument("name")
@click.option("--start", callback=_moment, metavar="TIME", help="As 2026-11-22T08:00Z; without it, now.")
@click.option("--end", callback=_moment, metavar="TIME", help="Likewise; or give --for.")
@click.option("--for", "length", type=duration, help="How long, such as 12h.")
@click.option("--reason", default="", help="For people.")
@client_options
def add(
    client: Client,
    kind: str,
    name: str,
    start: Optional[float],
    end: Optional[float],
    length: Optional[int],
    reason: str,
) -> None:
    """Add a downtime."""
    if (end is None) == (length is None):
        raise click.UsageError("say how long: give --end TIME or --for DURATION")
    begin = time.time() if start is None else start
    until = end if end is not None else begin + float(length or 0)
    if until <= begin:
        raise click.UsageError("it ends before it begins: give a later --end")
    spec = _get(client, KINDS[kind], name)
    _put(client, KINDS[kind], spec, [*spec.downtimes, Downtime(begin, until, reason)])


@downtime.command("list")
@click.argument("kind", type=KIND, required=False)
@click.option("--all", "past", is_flag=True, help="Those that are over, too.")
@client_options
def list_all(client: Client, kind: Optional[str], past: bool) -> None:
    """List the downtimes that are not over."""
    now = time.time()
    found = [
        (word, spec.name, number, each)
        for word in ([kind] if kind else sorted(KINDS))
        for spec in Api(client.http).resources(KINDS[word])
        if isinstance(spec, (SiteSpec, QueueSpec, StorageSpec))
        for number, each in enumerate(spec.downtimes, 1)
        if past or each.end > now
    ]
    if client.as_json:
        render.print_json(
            [
                {
                    "kind": word,
                    "name": name,
                    "number": number,
                    "start": each.start,
                    "end": each.end,
                    "reason": each.reason,
                }
                for word, name, number, each in found
            ]
        )
    else:
        render.print_list(found, COLUMNS)


@downtime.command("remove")
@click.argument("kind", type=KIND)
@click.argument("name")
@click.argument("number", type=click.IntRange(min=1))
@client_options
def remove(client: Client, kind: str, name: str, number: int) -> None:
    """Remove a downtime by the number that list shows."""
    spec = _get(client, KINDS[kind], name)
    if number > len(spec.downtimes):
        raise click.ClickException(f"{kind} {name} has {len(spec.downtimes)} downtimes: list --all shows them")
    _put(client, KINDS[kind], spec, [each for at, each in enumerate(spec.downtimes, 1) if at != number])


def _get(client: Client, kind: ResourceKind, name: str) -> Described:
    found = Api(client.http).resource(kind, name)
    if not isinstance(found, (SiteSpec, QueueSpec, StorageSpec)):
        raise click.ClickException(f"there is no {kind.word} {name!r}; pilotage admin {kind.word} list shows all")
    return found


def _put(client: Client, kind: ResourceKind, spec: Described, downtimes: list[Downtime]) -> None:
    downtimes = sorted(downtimes, key=lambda each: (each.start, each.end))
    changed = Api(client.http).put_resource(kind, spec.name, structs.replace(spec, downtimes=downtimes))
    if client.as_json:
        render.print_json(changed)
    else:
        render.print_list([(kind.word, spec.name, at, each) for at, each in enumerate(downtimes, 1)], COLUMNS)


COLUMNS: list[render.Column[tuple[str, str, int, Downtime]]] = [
    ("kind", lambda row: row[0]),
    ("name", lambda row: row[1]),
    ("number", lambda row: row[2]),
    ("start", lambda row: render.moment(row[3].start)),
    ("end", lambda row: render.moment(row[3].end)),
    ("reason", lambda row: row[3].reason),
]
