"""``pilotage ban``: refuse a person or worker nodes."""

from __future__ import annotations

import time
from typing import Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.options import duration
from common.wire import BanKind, BanList, BanRequest, BanView

_KIND = click.argument("kind", type=click.Choice([each.value for each in BanKind]))
_COLUMNS: list[render.Column[BanView]] = [
    ("kind", lambda each: each.kind.value),
    ("name", lambda each: each.name),
    ("reason", lambda each: each.reason),
    ("by", lambda each: each.author),
    ("since", lambda each: render.moment(each.time)),
    ("until", lambda each: render.moment(each.expires) or "lifted"),
]


@click.group()
def ban() -> None:
    """Ban people and hosts, for admins."""


@ban.command("add")
@_KIND
@click.argument("name")
@click.option("--reason", required=True, help="Why; it is shown to whom it concerns.")
@click.option("--for", "for_s", type=duration, help="How long, such as 12h; else until it is lifted.")
@client_options
def add(client: Client, kind: str, name: str, reason: str, for_s: Optional[int]) -> None:
    """Ban a person, or a host, or hosts that match a pattern such as 'node*.example.org'."""
    expires = time.time() + for_s if for_s else None
    made = client.http.call("POST", "/v1/bans", BanRequest(BanKind(kind), name, reason, expires), BanView)
    if client.as_json:
        render.print_json(made)
    else:
        click.echo(f"{made.kind.value} {made.name} is banned")


@ban.command("lift")
@_KIND
@click.argument("name")
@client_options
def lift(client: Client, kind: str, name: str) -> None:
    """Lift a ban."""
    client.http.call("DELETE", "/v1/bans", None, type(None), params={"kind": kind, "name": name})
    if not client.as_json:
        click.echo(f"{kind} {name} is no longer banned")


@ban.command("list")
@client_options
def list_all(client: Client) -> None:
    """List the bans in force."""
    found = client.http.call("GET", "/v1/bans", None, BanList).items
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, _COLUMNS)
