"""``pilotage events``: the last events, and those to come."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Any, Callable, Union

import click
import msgspec

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.show import EVENT_COLUMNS
from common.events import EventKind
from common.http import HttpError, ProblemError
from common.quantities import parse_duration
from common.wire import EventPage, EventView

WAIT_S = 30
"""How long one request waits for new events."""
PAGE = 500
RETRY_S = 5.0
"""How long to wait before asking a server again that did not answer."""


def moment(value: Union[str, float]) -> float:
    """``2h`` ago, or a date and time, as seconds since the epoch."""
    if isinstance(value, float):
        return value
    try:
        return time.time() - parse_duration(value)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: write 2h for two hours ago, or 2026-01-31T12:00") from error
    return found.timestamp()  # without a zone: local time, as the lists show it


@click.command()
@click.option("--task", metavar="ID", type=click.IntRange(min=1), help="Only those of this task.")
@click.option("--job", metavar="ID", type=click.IntRange(min=1), help="Only those of this job.")
@click.option("--workflow", metavar="ID", type=click.IntRange(min=1), help="Only those of this workflow.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    type=click.Choice([kind.value for kind in EventKind], case_sensitive=False),
    help="Only those of this kind, such as JOB_FAILED; may be repeated.",
)
@click.option("--subject", metavar="WORD[:ID]", help="Only those of such things, or of one, such as worker:MARK.")
@click.option("--since", type=moment, help="Only those from then on: 2h ago, or a date and time.")
@click.option("--until", type=moment, help="Only those before.")
@click.option("--follow", is_flag=True, help="Go on with those to come; none is lost and none comes twice.")
@click.option("--limit", type=click.IntRange(0, 1000), default=50, show_default=True, help="Begin with so many.")
@client_options
def events(client: Client, follow: bool, limit: int, kinds: tuple[str, ...], **filters: Any) -> None:
    """Show the newest events, and with --follow those to come. (pilotage show events goes from the oldest on.)"""
    asked = {**filters, "kind": ",".join(kinds) or None}
    page = client.http.call(
        "GET", "/v1/events", None, EventPage, params={**asked, "newest": "true", "limit": max(limit, 1)}
    )
    items = page.items[-limit:] if limit else []
    if not follow:
        if client.as_json:
            render.print_json(items)
        else:
            render.print_list(items, EVENT_COLUMNS)
        return
    show = _print_json if client.as_json else _print_line
    for item in items:
        show(item)
    try:
        _follow(client, asked, page.next or "0", show)
    except KeyboardInterrupt:
        return


def _follow(client: Client, asked: dict[str, Any], after: str, show: Callable[[EventView], None]) -> None:
    """Ask again and again from where the last answer ended, through outages of the server."""
    pause = threading.Event()
    while True:
        params = {**asked, "follow": "true", "after": after, "wait": WAIT_S, "limit": PAGE}
        try:
            page = client.http.call("GET", "/v1/events", None, EventPage, params=params)
        except HttpError as error:
            if isinstance(error, ProblemError) and error.status < 500:
                raise
            click.echo(f"the server does not answer, asking again: {error}", err=True)
            pause.wait(RETRY_S)
            continue
        for item in page.items:
            show(item)
        after = page.next or after
        if page.retry_after_s:
            pause.wait(page.retry_after_s)


def _print_json(event: EventView) -> None:
    """A line for programs."""
    click.echo(msgspec.json.encode(render.plain(event)).decode())


def _print_line(event: EventView) -> None:
    """A line for people."""
    change = " → ".join(filter(None, (event.source, event.target)))
    detail = ", ".join(f"{name} {value}" for name, value in event.detail.items() if value not in (None, ""))
    parts = (str(render.moment(event.time)), event.kind, f"{event.subject} {event.subject_id}", change, detail)
    click.echo("  ".join(part for part in parts if part))
