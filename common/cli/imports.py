"""``pilotage admin imports``: what the server's last looks at other descriptions of the world brought, or look now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.http import quoted
from common.wire import ImportChange, ImportDocument, ImportReport, ImportReports, ImportRequest

LOOK_S = 600.0
"""How long a look may take: Rucio may have to be asked for each pair of storages."""
_DOCUMENTS: list[render.Column[ImportDocument]] = [
    ("document", lambda one: one.name),
    ("entries", lambda one: one.entries),
    ("problem", lambda one: one.problem),
    ("where", lambda one: one.where),
]
_CHANGES: list[render.Column[ImportChange]] = [
    ("kind", lambda one: one.kind),
    ("name", lambda one: one.name),
    ("what", lambda one: one.step.value),
    ("fields", lambda one: _fields(one.fields)),
    ("why", lambda one: one.why),
]


@click.command()
@click.argument("source", required=False)
@click.option("--now", is_flag=True, help="Have the server look at SOURCE now.")
@click.option("--dry-run", is_flag=True, help="Look, say what would be changed, and change nothing.")
@click.option(
    "--take",
    multiple=True,
    metavar="NAME",
    help="Look, and have the site, storage or queue NAME follow SOURCE altogether, also what was changed or deleted by hand;"
    " may be repeated.",
)
@click.option("--believe", is_flag=True, help="Look, and believe it however many entries have vanished.")
@client_options
def imports(
    client: Client, source: Optional[str], now: bool, dry_run: bool, take: tuple[str, ...], believe: bool
) -> None:  # fmt: skip
    """Show what the server's last look at SOURCE brought (else: at each), and what is other than there and why."""
    if now or dry_run or take or believe:
        if source is None:
            raise click.UsageError("say at what: give SOURCE")
        _look(client, source, ImportRequest(dry_run, list(take), believe))
        return
    found = client.http.call("GET", "/v1/imports", None, ImportReports).items
    if not found:
        raise click.ClickException(
            "nothing is imported: the server has neither [server.cric] nor a catalogue that imports"
        )
    if source is not None and source not in [each.source for each in found]:
        words = ", ".join(each.source for each in found)
        raise click.ClickException(f"nothing is imported from {source!r}; what is: {words}")
    shown = [each for each in found if source in (None, each.source)]
    if client.as_json:
        render.print_json(ImportReports(shown))
        return
    for report in shown:
        looked = render.moment(report.time) if report.time else "not yet"
        last = render.moment(report.changed) if report.changed else "none"
        render.print_fields([("source", report.source), ("looked at", looked), ("last changes", last)])
        _print(report, report.changes)


def _look(client: Client, source: str, request: ImportRequest) -> None:
    path = f"/v1/imports/{quoted(source)}"
    report = client.http.call("POST", path, request, ImportReport, timeout=LOOK_S, retry=False)
    if client.as_json:
        render.print_json(report)
    else:
        changes = report.changes if report.changed == report.time else []
        _print(report, changes)
        done = "would be changed" if request.dry_run else "changed"
        click.echo(f"{len(changes)} {done}, {len(report.left)} left as they are")
    if any(each.problem for each in report.documents):
        raise click.ClickException(
            "; ".join(f"{each.name}: {each.problem}" for each in report.documents if each.problem)
        )


def _print(report: ImportReport, changes: list[ImportChange]) -> None:
    render.print_list(report.documents, _DOCUMENTS)
    if changes or report.left:
        render.print_list([*changes, *report.left], _CHANGES)


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in sorted(fields.items()))


def _short(value: Any) -> str:
    """Of a list of objects, such as endpoints, their URLs."""
    if isinstance(value, list):
        words = (str(each.get("url", each)) if isinstance(each, dict) else str(each) for each in value)
        return f"[{', '.join(words)}]"
    return "-" if value is None else str(value)
