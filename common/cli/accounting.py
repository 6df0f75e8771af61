"""``pilotage accounting``: what was used, by whom, where and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional
from urllib.parse import urlencode

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.wire import AccountingReport, AccountingRow

WORDS = ("site", "group", "user", "task", "queue", "day")


def _key(word: str) -> Callable[[AccountingRow], object]:
    return lambda row: row.key.get(word, "")


def columns(by: list[str]) -> list[render.Column[AccountingRow]]:
    """What grouping by some words shows."""
    return [
        *((word, _key(word)) for word in by),
        ("ok", lambda row: row.jobs_ok),
        ("failed", lambda row: row.jobs_failed),
        ("wall core-h", lambda row: f"{row.wall_core_h:.2f}"),
        ("CPU h", lambda row: f"{row.cpu_h:.2f}"),
        ("wall HS23-h", lambda row: f"{row.wall_hs23_h:.1f}"),
        ("CPU HS23-h", lambda row: f"{row.cpu_hs23_h:.1f}"),
        ("kWh", lambda row: f"{row.energy_kwh:.2f}" if row.energy_kwh else ""),
    ]


@click.command()
@click.option("--from", "since", metavar="DATE", help="The first day, such as 2026-11-01.")
@click.option("--to", "until", metavar="DATE", help="The last day.")
@click.option("--site", help="Only this site.")
@click.option("--group", help="Only this group.")
@click.option("--user", help="Only this user.")
@click.option("--task", type=click.IntRange(min=1), help="Only this task.")
@click.option("--queue", help="Only this queue.")
@click.option("--by", default="site", show_default=True, help=f"Sum up by some of: {', '.join(WORDS)}.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--apel", metavar="YYYY-MM", help="Print a month's summary records for APEL (admins).")
@click.option("--apel-host", metavar="NAME", help="The name under which the records are published.")
@client_options
def accounting(
    client: Client,
    since: Optional[str],
    until: Optional[str],
    site: Optional[str],
    group: Optional[str],
    user: Optional[str],
    task: Optional[int],
    queue: Optional[str],
    by: str,
    as_csv: bool,
    apel: Optional[str],
    apel_host: Optional[str],
) -> None:
    """Tell what jobs used: core-hours, HS23-hours, energy."""
    if apel is not None:
        query = urlencode(_given({"month": apel, "site": site, "host": apel_host}))
        click.echo(client.http.transfer("GET", f"/v1/accounting/apel?{query}").decode(), nl=False)
        return
    filters = {"from": since, "to": until, "site": site, "group": group, "user": user, "task": task, "queue": queue}
    if as_csv:
        query = urlencode(_given({**filters, "by": by, "format": "csv"}))
        click.echo(client.http.transfer("GET", f"/v1/accounting?{query}").decode(), nl=False)
        return
    report = client.http.call("GET", "/v1/accounting", None, AccountingReport, params=_given({**filters, "by": by}))
    words = [word for word in by.split(",") if word]
    if client.as_json:
        render.print_json(report)
    else:
        render.print_list(report.items, columns(words))
        if report.waiting:
            click.echo(f"{report.waiting} more jobs have ended and are not in the books yet")


def _given(values: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}
