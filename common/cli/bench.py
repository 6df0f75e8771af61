"""``pilotage bench``: the shipped benchmarks. Each starts real programs in a temporary folder and prints what it measured."""

from __future__ import annotations

import click

from common.cli.main import LazyCommands


class Benchmarks(LazyCommands):
    """They come by entry point, so that each imports only its own."""

    entry_points = "pilotage.bench"


@click.group(cls=Benchmarks)
def bench() -> None:
    """Measure this installation, on this machine."""
