"""``pilotage harvester``: run it, look at it, stop what it started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import click
from rich.text import Text

from common.cli import load_section
from common.cli.render import console, plain, print_json
from common.clock import SystemClock
from common.log import setup_logging
from common.quantities import format_duration
from common.states import WorkerState
from harvester.config import SECTION, HarvesterConfig, check, only
from harvester.explain import as_plain, explained, shape_text, table
from harvester.service import Parts, Service, alone, assemble, kill_workers, last_cycle, open_store, state_dir_of


@click.group()
def harvester() -> None:
    """Keep the right number of workers in every queue.

    Configured by section [harvester], with a table [harvester.queues.NAME] for each queue.
    """


@harvester.command()
@click.option(
    "--log-level", default="INFO", show_default=True, type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"])
)
@click.pass_context
def run(ctx: click.Context, log_level: str) -> None:
    """Run until SIGTERM or Ctrl-C. Workers are left alone, and found again at the next start."""
    setup_logging(log_level)
    with _parts(ctx) as parts:
        Service(parts).run()


@harvester.command("check")
@click.pass_context
def check_command(ctx: click.Context) -> None:
    """Validate the configuration and reach the server and the batch system of every queue."""
    with _parts(ctx) as parts:
        failed = 0
        for name in parts.config.queues:
            for what, error in parts.cycle.check(name):
                failed += error is not None
                click.echo(f"queue {name}: {what}: {error or 'ok'}")
    if failed:
        raise click.ClickException(f"{failed} of the checks failed")


@harvester.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """How many workers each queue has in each state, and how the last cycle went."""
    config = _config(ctx)
    state_dir = state_dir_of(config)
    store = open_store(config, SystemClock())
    try:
        counts, drained = store.counts(), store.drained()
    finally:
        store.close()
    with alone(state_dir) as first:
        running = not first
    last = last_cycle(state_dir)
    names = sorted({*config.queues, *(queue for queue, _ in counts)})
    rows = {
        name: {"drained": name in drained, "workers": {one.value: counts.get((name, one), 0) for one in WorkerState}}
        for name in names
    }
    if as_json:
        print_json({"running": running, "last_cycle": plain(last), "queues": rows})
        return
    click.echo(f"harvester {config.name} is {'running' if running else 'not running'}")
    if last is not None:
        click.echo(f"last cycle at {_time(last.started)}, took {format_duration(last.duration_s)}")
        for problem in last.problems:
            click.echo(f"  {problem}")
    shown = table("queue", *(one.value for one in WorkerState))
    for name in names:
        cells = [str(counts.get((name, one), "")) for one in WorkerState]
        shown.add_row(Text(f"{name} (drained)" if name in drained else name), *cells)
    console().print(shown)


@harvester.command()
@click.option("--ended", default=0, show_default=True, help="Show so many of those that ended last, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
@click.pass_context
def workers(ctx: click.Context, ended: int, as_json: bool) -> None:
    """List the workers that have not ended."""
    store = open_store(_config(ctx), SystemClock())
    try:
        found = [*store.live(), *(store.ended(ended) if ended else [])]
    finally:
        store.close()
    if as_json:
        print_json(found)
        return
    shown = table("mark", "queue", "state", "shape", "batch id", "since", "reason")
    for one in found:
        cells = [
            one.mark,
            one.queue,
            one.state.value,
            shape_text(one.shape),
            one.batch_id,
            _time(one.updated),
            one.reason,
        ]
        shown.add_row(*(Text(cell, overflow="fold") for cell in cells))
    console().print(shown)


@harvester.command()
@click.argument("queue")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
@click.pass_context
def explain(ctx: click.Context, queue: str, as_json: bool) -> None:
    """Show how many workers QUEUE would get now, with the numbers behind it. Submits nothing."""
    with _parts(ctx) as parts:
        only(parts.config.queues, queue)
        decision = parts.cycle.decide(queue)
    if as_json:
        print_json(as_plain(decision))
        return
    for line in explained(decision):
        console().print(line)


@harvester.command()
@click.argument("queue", required=False)
@click.option("--off", is_flag=True, help="Submit new workers again.")
@click.pass_context
def drain(ctx: click.Context, queue: str | None, off: bool) -> None:
    """Submit no new workers to QUEUE (default: all queues). Kills nothing; a running harvester obeys at once."""
    config = _config(ctx)
    names = only(config.queues, queue)
    store = open_store(config, SystemClock())
    try:
        store.set_drained(names, not off)
    finally:
        store.close()
    click.echo(f"{', '.join(names)}: {'workers are submitted again' if off else 'no new workers'}")


@harvester.command("kill-workers")
@click.argument("queue", required=False)
@click.option(
    "--timeout", "timeout_s", default=60.0, show_default=True, help="How long to wait for their end, in seconds."
)
@click.pass_context
def kill_workers_command(ctx: click.Context, queue: str | None, timeout_s: float) -> None:
    """End all workers of QUEUE (default: of all queues) and wait for their end.

    A running harvester goes on submitting new ones: drain the queue first, or stop harvester.
    """
    with _parts(ctx) as parts:
        left, done = kill_workers(parts, only(parts.config.queues, queue), timeout_s)
    for problem in done.problems:
        click.echo(problem, err=True)
    if left:
        raise click.ClickException(f"{left} workers have not ended within {timeout_s:g} s; run it again")
    click.echo("no worker is left")


def _config(ctx: click.Context) -> HarvesterConfig:
    return check(load_section(ctx, HarvesterConfig, SECTION).value)


@contextmanager
def _parts(ctx: click.Context) -> Iterator[Parts]:
    parts = assemble(_config(ctx), SystemClock())
    try:
        yield parts
    finally:
        parts.close()


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(sep=" ", timespec="seconds")
