"""``pilotage pilot bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from common.log import setup_logging


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="pilotage-pilot.run",
    show_default=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option(
    "--arch",
    type=click.Choice(["x86_64", "aarch64"]),
    default="x86_64",
    show_default=True,
    help="The machines it is for.",
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="X.Y",
    help="A Python version that it is for; may be repeated. By default 3.9 to 3.13.",
)
@click.option(
    "--with",
    "further",
    multiple=True,
    metavar="REQUIREMENT",
    help="A package to put in besides, such as a plug-in or boto3; may be repeated.",
)
@click.option(
    "--wheels",
    "wheels_dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the fetched wheels there, and use those that are there already.",
)
def bundle(
    output: Path, arch: str, pythons: tuple[str, ...], further: tuple[str, ...], wheels_dir: Optional[Path]
) -> None:
    """Write one executable file that runs the pilot on a bare worker node: no pip, no network, any Python >= 3.9.

    The file is this command with the sub-command `pilot` alone: FILE pilot run --server URL ... ; FILE --version names
    its build. Its start script finds a Python; PILOTAGE_PYTHON names one to try first.
    """
    from pilot.bundle.build import write_bundle
    from pilot.bundle.wheels import PYTHONS

    setup_logging("INFO")
    made = write_bundle(output, arch, pythons or PYTHONS, further=further, wheels_dir=wheels_dir)
    click.echo(f"{made.path}: pilotage {made.version} build {made.build[:16]}, {made.size / 1e6:.1f} MB")
    click.echo(f"for {made.arch} and Python {', '.join(made.pythons)}")
    click.echo(f"sha256 {made.sha256}")
