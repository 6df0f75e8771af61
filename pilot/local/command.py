"""``pilotage pilot run-local``: one job of a stage on this machine, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import click


@click.command("run-local")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--stage", "stage_name", metavar="NAME", help="The stage to run; needed if the file has several.")
@click.option(
    "--unit", type=click.IntRange(min=0), default=0, metavar="N", help="The first unit of the job, from 0 on."
)
@click.option(
    "--file",
    "files",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A local file as input, in place of the stage's own; once for each file of the job.",
)
@click.option("--storage", "storages", multiple=True, metavar="NAME=URL", help="Where a storage of the file list is.")
@click.option("--secondary", multiple=True, metavar="NAME=PATH", help="A local file for a secondary input.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME=FILE", help="A file with the value of a secret.")
@click.option("--sandbox", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The sandbox's folder.")
@click.option("--jobscript-git", metavar="URL#PATH@REF", default="", help="The jobscript of stages without one.")
@click.option(
    "--work-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("pilotage-local"),
    show_default=True,
    help="Each run makes a folder of its own in it.",
)
@click.option("--keep", is_flag=True, default=None, help="Keep the job's own folder, to look at it.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def run_local(
    context: click.Context,
    /,
    file: Path,
    stage_name: Optional[str],
    unit: int,
    files: Sequence[Path],
    storages: Sequence[str],
    secondary: Sequence[str],
    secrets: Sequence[str],
    sandbox: Optional[Path],
    jobscript_git: str,
    work_dir: Path,
    keep: Optional[bool],
    as_json: bool,
) -> None:
    """Run one job of a stage of the workflow in FILE on this machine, exactly as a pilot would, without any server.

    The pilot's own code stages in, runs and watches the payload (in its container, within its limits), collects the
    outputs into a folder, and makes the report and the log that a server would get. FILE is what pilotage submit takes.

    Exit codes: 0 the job finished, else the payload's own exit code, or 1 when it failed for another reason; 2 wrong
    usage; 128 + n ended by signal n of yours.
    """
    from pilot.local.run import Wanted, run_here  # a pilot in a slot needs none of that, and starts without it

    wanted = Wanted(file, stage_name, unit, files, storages, secondary, secrets, sandbox, jobscript_git, work_dir)
    raise click.exceptions.Exit(run_here(context, wanted, keep, as_json))
