"""``pilotage probes``: what probe jobs found of the sites and storages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Optional

import click
from rich.text import Text

from common.cli import render
from common.cli.client import Client, client_options
from common.quantities import format_about
from common.wire import (
    ProbeFinding,
    ProbeLevel,
    ProbeOperation,
    ProbePlace,
    ProbeRequest,
    ProbeResult,
    ProbeState,
    ProbeTable,
    ProbeUse,
)

OPERATIONS = ((ProbeOperation.READ, "r"), (ProbeOperation.WRITE, "w"))


@click.command()
@click.option("--site", metavar="SITE", help="Show this site only.")
@click.option(
    "--now", metavar="SITE", help="Have this site probed by its next slot, and not when it is due; for admins."
)
@client_options
def probes(client: Client, site: Optional[str], now: Optional[str]) -> None:
    """Show which storages each site can read and write, as its probe jobs found.

    r and w in green: it could be read and written when that was tried last; R and W in red: it could not.
    """
    if now is not None:
        table = client.http.call("POST", "/v1/probes", ProbeRequest(now), ProbeTable)
    else:
        table = client.http.call("GET", "/v1/probes", None, ProbeTable)
    places = [each for each in table.places if site in (None, each.site)]
    results = [each for each in table.results if site in (None, each.site)]
    table = ProbeTable(interval_s=table.interval_s, use=table.use, places=places, results=results)
    if client.as_json:
        render.print_json(table)
    else:
        _print(table)


def _print(table: ProbeTable) -> None:
    storages = sorted({each.storage for each in table.results})
    by_cell: dict[tuple[str, bool, str], list[ProbeResult]] = {}
    for each in table.results:
        by_cell.setdefault((each.site, each.gpu, each.storage), []).append(each)
    columns: list[render.Column[ProbePlace]] = [
        ("site", _name),
        ("software", _software),
        ("probed", _when),
    ]
    columns += [(name, partial(_storage, by_cell, name)) for name in storages]
    render.print_list(table.places, columns)
    failed = [each for each in table.results if not each.ok]
    if failed:
        click.echo("\nWhat failed:")
        render.print_list(failed, FAILED)
    missing = [(place, each) for place in table.places for each in place.environment if each.level is not ProbeLevel.OK]
    if missing:
        click.echo("\nWhat the nodes lack:")
        render.print_list(missing, MISSING)
    every = f"each is probed every {format_about(table.interval_s)}" if table.interval_s else "no site is probed"
    use = "what fails is not used" if table.use is ProbeUse.AVOID else "what fails is told, and used all the same"
    click.echo(f"\n{every}; {use} (settings probe_interval_s, probe_use)")


def _storage(by_cell: Mapping[tuple[str, bool, str], Sequence[ProbeResult]], name: str, place: ProbePlace) -> Text:
    return _cell(by_cell.get((place.site, place.gpu, name), []))


def _name(place: ProbePlace) -> str:
    return f"{place.site} (GPU)" if place.gpu else place.site


def _software(place: ProbePlace) -> Text:
    if place.environment_ok is None:
        return Text("?", style="dim")
    return Text("ok", style="green") if place.environment_ok else Text("FAILED", style="red")


def _when(place: ProbePlace) -> Text:
    """How long ago it reported, and whether it runs at all."""
    if place.state is ProbeState.NEVER:
        return Text(f"first {_ago(place.due)}", style="dim")
    if place.state is ProbeState.ASKED:
        return Text(f"asked {_ago(place.asked)}")
    if place.state is ProbeState.MISSED:
        return Text(f"not run, {place.missed} in a row: {place.reason}", style="red")
    return Text(_ago(place.ended))


def _ago(moment: Optional[float]) -> str:
    if moment is None:
        return ""
    seconds = time.time() - moment
    return f"{format_about(seconds)} ago" if seconds >= 0 else f"in {format_about(-seconds)}"


def _cell(found: Sequence[ProbeResult]) -> Text:
    """The letters of what was tried: green what works, red and in capitals what does not."""
    cell = Text()
    for operation, letter in OPERATIONS:
        result = next((each for each in found if each.operation is operation), None)
        if result is None:
            cell.append("-", style="dim")
        else:
            cell.append(letter if result.ok else letter.upper(), style="green" if result.ok else "bold red")
    return cell


FAILED: list[render.Column[ProbeResult]] = [
    ("site", lambda each: f"{each.site} (GPU)" if each.gpu else each.site),
    ("storage", lambda each: each.storage),
    ("cannot", lambda each: Text(each.operation.value, style="red")),
    ("since", lambda each: render.moment(each.since)),
    ("error", lambda each: render.error_words(each.error_code, each.error_detail)),
]
MISSING: list[render.Column[tuple[ProbePlace, ProbeFinding]]] = [
    ("site", lambda each: _name(each[0])),
    ("host", lambda each: each[0].host),
    ("look", lambda each: Text(each[1].name, style="red" if each[1].level is ProbeLevel.ERROR else "yellow")),
    ("found", lambda each: each[1].detail),
    ("what to do", lambda each: each[1].remedy),
]
