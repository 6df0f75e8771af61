"""``pilotage harvester``: run it, look at it, stop what it started."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from common.cli import config_paths, load_section
from common.cli.render import console, print_json
from common.clock import SystemClock
from common.config import ConfigError
from common.log import setup_logging
from common.states import FINAL_WORKER_STATES, WorkerState
from harvester.backends.base import close_all
from harvester.checks import Verdict, checks
from harvester.config import SECTION, HarvesterConfig, HarvesterSection, only, resolve, without_queues
from harvester.credentials.keeper import told_states
from harvester.explain import as_plain, explained
from harvester.relay.command import relay_command
from harvester.reload import Reloader, Watch
from harvester.service import Parts, Service, assemble, in_use, kill_workers, last_cycle, open_store, state_dir_of
from harvester.strays import find, remove
from harvester.systemd import unit
from harvester.views import Status, print_checks, print_status, print_workers

MOST_ENDED = 1000
"""Ended workers that are listed where a state of theirs is asked for and no number is given."""


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
    """Run until SIGTERM or Ctrl-C. Workers are left alone, and found again at the next start.

    A changed configuration takes effect by itself; SIGHUP has it read at once.
    """
    setup_logging(log_level)
    wanted = _config(ctx)
    parts = assemble(wanted, SystemClock())
    try:
        watch = Watch(lambda: config_paths(ctx))
        reloader = Reloader(
            wanted, parts.config, lambda: _config(ctx), watch, parts.store, parts.state_dir, parts.clock
        )
        ended = Service(parts, reloader).run()
    finally:
        parts.close()
    if not ended:
        # A thread that a batch system doesn't answer would hold this process up, or fall over as it is taken down.
        logging.shutdown()
        os._exit(0)


@harvester.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
@click.pass_context
def check_command(ctx: click.Context, as_json: bool) -> None:
    """Look at all that the queues need: credentials, server, batch systems. Ends with 1 when anything fails.

    Credentials are obtained, unless a harvester runs, which has them already. Nothing is submitted.
    """
    # What goes wrong is told below, once.
    logging.getLogger("harvester").addHandler(logging.NullHandler())
    with _parts(ctx) as parts:
        if as_json:
            found = list(checks(parts))
            failed = sum(check.verdict is Verdict.FAILED for check in found)
            print_json([check._asdict() for check in found])
        else:
            failed = print_checks(console(), checks(parts))
    if failed:
        raise click.ClickException(f"{failed} of the checks failed")


@harvester.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """How many workers each queue has in each state, how the last cycle went, and how long credentials are good for."""
    found = _status(ctx)
    if not as_json:
        print_status(console(), found)
        return
    rows = {
        name: {
            "drained": name in found.drained,
            "configured": name in found.config.queues or bool(found.unusable),
            "workers": {one.value: found.counts.get((name, one), 0) for one in WorkerState},
        }
        for name in found.queues
    }
    print_json({"running": found.running, "last_cycle": found.last, "queues": rows, "credentials": found.credentials})


def _status(ctx: click.Context) -> Status:
    section, clock = load_section(ctx, HarvesterSection, SECTION).value, SystemClock()
    unusable = ""
    try:
        config = resolve(section)
    except ConfigError as error:
        config, unusable = without_queues(section), error.detail
    state_dir = state_dir_of(config)
    store = open_store(config, clock)
    try:
        counts, drained = store.counts(), store.drained()
    finally:
        store.close()
    told = told_states(state_dir)
    return Status(
        config, unusable, in_use(state_dir), last_cycle(state_dir), counts, frozenset(drained), told, clock.now()
    )


@harvester.command()
@click.option("--queue", metavar="NAME", help="Only those of this queue.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([one.value for one in WorkerState]),
    help="Only those in this state; may be given several times.",
)
@click.option("--ended", default=0, show_default=True, help="Show so many of those that ended last, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
@click.pass_context
def workers(ctx: click.Context, queue: str | None, states: tuple[str, ...], ended: int, as_json: bool) -> None:
    """List the workers that have not ended."""
    clock = SystemClock()
    store = open_store(_config(ctx), clock)
    wanted = {WorkerState(state) for state in states}
    try:
        last = store.ended(ended or (MOST_ENDED if wanted & FINAL_WORKER_STATES else 0))
        found = [*store.live(queue=queue), *(worker for worker in last if queue in (None, worker.queue))]
    finally:
        store.close()
    found = [worker for worker in found if not wanted or worker.state in wanted]
    if as_json:
        print_json(found)
    else:
        print_workers(console(), found, clock.now())


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


@harvester.command()
@click.argument("queue", required=False)
@click.pass_context
def undrain(ctx: click.Context, queue: str | None) -> None:
    """Submit new workers to QUEUE (default: all queues) again."""
    ctx.invoke(drain, queue=queue, off=True)


@harvester.command()
@click.option("--yes", is_flag=True, help="Do it.")
@click.pass_context
def sweep(ctx: click.Context, yes: bool) -> None:
    """Find what nobody remembers: workers in batch systems, secrets, folders. Says what it would do; --yes does it."""
    with _parts(ctx) as parts:
        found = find(parts)
        for problem in found.problems:
            click.echo(problem, err=True)
        for _, queue, ref in found.workers:
            click.echo(f"worker {ref.mark} ({ref.batch_id}) of queue {queue}: {'ended' if yes else 'would be ended'}")
        for path in found.paths:
            click.echo(f"{path}: {'removed' if yes else 'would be removed'}")
        failed = remove(found) if yes else []
    for problem in failed:
        click.echo(problem, err=True)
    if failed:
        raise click.ClickException(f"{len(failed)} could not be dealt with; run it again")
    if not found.workers and not found.paths:
        click.echo("nothing is left over")
    elif not yes:
        click.echo("nothing was changed; --yes does it")


@harvester.command("systemd-unit")
@click.option("--user", default="pilotage", show_default=True, help="The account that harvester runs as.")
@click.option(
    "--config", "config_file", default="/etc/pilotage/harvester.toml", show_default=True, help="Its configuration."
)
@click.option("--state-dir", default="/var/lib/pilotage", show_default=True, help="The folder that it may write to.")
def systemd_unit(user: str, config_file: str, state_dir: str) -> None:
    """Print a unit for systemd: put it into /etc/systemd/system/pilotage-harvester.service."""
    click.echo(unit(user, config_file, state_dir), nl=False)


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


harvester.add_command(relay_command)


def _config(ctx: click.Context) -> HarvesterConfig:
    return resolve(load_section(ctx, HarvesterSection, SECTION).value)


@contextmanager
def _parts(ctx: click.Context) -> Iterator[Parts]:
    parts = assemble(_config(ctx), SystemClock())
    try:
        yield parts
    finally:
        close_all(parts.backends.values())
        parts.close()
