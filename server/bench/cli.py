"""``pilotage bench dispatch``: the command."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from server.bench.errors import BenchError
from server.bench.flat import run_flat
from server.bench.idle import run_idle
from server.bench.profiles import Options, bench, run_claim, run_world
from server.bench.report import as_lines
from server.bench.reserve import run_reserve
from server.store.bulk import Unfilled
from server.store.database import DatabaseUnavailable

PROFILES = {"world": run_world, "claim": run_claim, "flat": run_flat, "reserve": run_reserve, "idle": run_idle}
_COUNT = click.IntRange(1)


@click.command()
@click.option("--profile", type=click.Choice(list(PROFILES)), required=True, help="What to measure.")
@click.option("--scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Of the profile's full size: world 10 is ten times the published load of PanDA.")  # fmt: skip
@click.option("--database", metavar="URL", help="An empty database to use (default: a temporary SQLite file).")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="How long to measure.")
@click.option("--warm-up", "warm_up_s", type=click.FloatRange(0), help="Seconds before that, which do not count.")
@click.option("--connections", type=_COUNT, help="Connections of the load.")
@click.option("--load-processes", type=_COUNT, default=1, show_default=True, help="Processes that make the load.")
@click.option("--web-processes", type=_COUNT, help="The server's; default: one for each core, with SQLite one.")
@click.option("--web-threads", type=_COUNT, default=64, show_default=True, help="Threads of each of them.")
@click.option("--queues", type=_COUNT, help="Queues to fill in, over which the pilots are spread.")
@click.option("--tasks", type=_COUNT, help="Tasks to fill in.")
@click.option("--buckets", type=_COUNT, help="Buckets to fill in.")
@click.option("--units", type=_COUNT, help="Ready units to fill in.")
@click.option("--history", type=click.IntRange(0), help="Finished jobs to fill in.")
@click.option("--tls", is_flag=True, help="Speak TLS, with a certificate made for the run.")
@click.option("--keep", is_flag=True, help="Leave the filled tables, to look at them or for --reuse.")
@click.option("--reuse", is_flag=True, help="Use what --keep left, as the run left it, if it was filled so.")
@click.option("--beside-other-data", is_flag=True, help="Use a database that holds other tables; they are not touched.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dispatch(profile: str, as_json: bool, **values: Any) -> None:
    """Measure the dispatcher: a real server, driven over HTTP by load processes.

    It fills tables of its own, starts the web side and the agents as programs with all checks on, and takes everything
    away again. Give PostgreSQL a database of its own for it.

    Profiles: world, the published load of PanDA, held for minutes; claim, as many claims and whole lives as go; flat, what
    a claim costs with few and many ready units; reserve, files of projects, small and large; idle, 10,000 pilots without
    work, what they cost and how soon a new task reaches them (--warm-up: the time over which they come).
    """
    if (values["keep"] or values["reuse"]) and values["database"] is None:
        raise click.UsageError("--keep and --reuse need a --database that outlives the run")
    if values["history"] is None and profile != "world":
        values["history"] = 0
    try:
        with tempfile.TemporaryDirectory(prefix="pilotage-bench-") as folder:
            with bench(Options(**values), Path(folder)) as run:
                report = PROFILES[profile](run)
    except (Unfilled, DatabaseUnavailable) as error:
        raise BenchError(str(error)) from error
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        click.echo("\n".join(as_lines(report)))
