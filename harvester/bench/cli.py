"""The sub-command ``pilotage bench harvester``."""

from __future__ import annotations

import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
import psutil

from common.plugins import version
from harvester.bench.world import BATCH_SYSTEMS, World, world

ROUNDS = 5


class Report(msgspec.Struct, kw_only=True):
    """The benchmark's JSON: seconds, MB (2**20 bytes)."""

    workers: int
    cycle_s: float
    rss_mb: float
    cycles_s: list[float]
    changed: int
    submitted: int
    first_cycle_s: float
    fill_s: float
    restart_s: float
    conditions: dict[str, Any]


@click.command()
@click.option("--workers", type=click.IntRange(1), default=100_000, show_default=True, help="Live workers.")
@click.option("--queues", type=click.IntRange(1), default=100, show_default=True, help="Queues.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def harvester(workers: int, queues: int, as_json: bool) -> None:
    """What a cycle of harvester takes: all steps one after another, over simulated batch systems full of workers.

    A cycle asks for the status of all workers, of which a sixtieth has ended and another has started, and for the demand
    of all queues, replaces those that ended, and reports. In the first cycle every worker has changed: so is the one
    after an outage. fill_s is for planning, announcing and submitting them all, restart_s for reading them from the disk.
    rss_mb is the most memory of the process that harvester and the batch systems share; the server is a stand-in, over
    HTTP.
    """
    with tempfile.TemporaryDirectory(prefix="pilotage-bench-") as folder:
        with world(Path(folder), workers, queues) as made:
            report = _measure(made, queues)
    if as_json:
        click.echo(msgspec.json.encode(report))
        return
    for name, value in msgspec.to_builtins(report).items():
        click.echo(f"{name:<14} {value}")


def _peak_rss_mb() -> float:
    """The most memory that this process had. getrusage() would count what its parent had at the fork, too."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def _measure(made: World, queues: int) -> Report:
    load = psutil.getloadavg()[0]
    fill_s = made.fill()
    first_cycle_s, first = made.cycle()
    rounds = [made.cycle() for _ in range(ROUNDS)]
    problems = [problem for done in (first, *(done for _, done in rounds)) for problem in done.problems]
    if problems:
        raise click.ClickException(f"the cycles went wrong: {problems[0]}")
    workers = made.live()
    restart_s = made.restart()
    last = rounds[-1][1]
    return Report(
        workers=workers,
        cycle_s=round(statistics.median(took for took, _ in rounds), 3),
        rss_mb=round(_peak_rss_mb(), 1),
        cycles_s=[round(took, 3) for took, _ in rounds],
        changed=last.changed,
        submitted=last.submitted,
        first_cycle_s=round(first_cycle_s, 3),
        fill_s=round(fill_s, 3),
        restart_s=round(restart_s, 3),
        conditions={
            "queues": queues,
            "batch_systems": min(BATCH_SYSTEMS, queues),
            "cores": psutil.cpu_count() or 1,
            "load_1_min": round(load, 2),
            "python": platform.python_version(),
            "pilotage": version(),
        },
    )
