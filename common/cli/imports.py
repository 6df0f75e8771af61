"""``pilotage admin cric``: what the server's last look at CRIC brought."""

from __future__ import annotations

from typing import Any

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.wire import ImportChange, ImportReport, ImportSource

_SOURCES: list[render.Column[ImportSource]] = [
    ("document", lambda one: one.name),
    ("entries", lambda one: one.entries),
    ("left out", lambda one: len(one.skipped)),
    ("by hand", lambda one: len(one.by_hand)),
    ("problem", lambda one: one.problem),
    ("where", lambda one: one.where),
]
_CHANGES: list[render.Column[ImportChange]] = [
    ("kind", lambda one: one.kind),
    ("name", lambda one: one.name),
    ("what", lambda one: one.what),
    ("fields", lambda one: ", ".join(one.fields)),
]
_ENTRIES: list[render.Column[Any]] = [
    ("document", lambda one: one[0]),
    ("entry", lambda one: one[1]),
    ("what", lambda one: one[2]),
]


@click.command()
@client_options
def cric(client: Client) -> None:
    """Show what the server's last look at CRIC brought: changes, what was left out and why, and what is by hand."""
    report = client.http.call("GET", "/v1/imports/cric", None, ImportReport)
    if client.as_json:
        render.print_json(report)
        return
    if not report.time:
        raise click.ClickException("CRIC was not looked at yet: is there a section [server.cric]?")
    render.print_fields([("looked at", render.moment(report.time)), ("last changes", render.moment(report.changed))])
    render.print_list(report.sources, _SOURCES)
    rows = [(one.name, name, f"left out: {why}") for one in report.sources for name, why in one.skipped.items()]
    rows += [
        (one.name, name, f"by hand: {', '.join(fields) or 'all of it'}")
        for one in report.sources
        for name, fields in one.by_hand.items()
    ]
    if rows:
        render.print_list(rows, _ENTRIES)
    if report.changes:
        render.print_list(report.changes, _CHANGES)
