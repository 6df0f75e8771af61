"""``pilotage demo``: the whole system on this machine, from nothing to the plot of a Z peak, and gone again."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Optional

import click
import psutil
from requests.utils import get_environ_proxies
from rich.console import Console
from rich.text import Text

from common.cli import demo_world as world
from common.cli import progress, render
from common.cli.api import Api
from common.cli.demo_processes import DemoError, Processes, ended_by_signals
from common.cli.demo_result import fetch_result, print_result, what_went_wrong
from common.cli.demo_world import DemoFolder, pilotage
from common.http import HttpClient, HttpError
from common.states import ResourceState, TaskState
from common.tokens import read_secret_file, write_secret_file
from common.wire import WorkflowView

log = logging.getLogger(__name__)

SERVER_PYTHON = (3, 11)
MODULES = ("falcon", "granian", "sqlalchemy", "numpy", "uproot", "matplotlib")
LISTENING = re.compile(rb"listening on (http://\S+)")
MAX_UNITS, MAX_EVENTS = 500, 100_000
"""What fits the disk of one job that merges all units, and the memory of one that simulates a file."""
MIN_EVENTS = 5000
"""With fewer in all, the fit has too little to fit."""
STALL_S = 120.0
"""Without any unit moving for so long, something is wrong."""


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Work in this folder; it must be empty or not exist."
)
@click.option(
    "--pilots", type=click.IntRange(min=1), help="At most so many pilots of one core. [default: one a core, at least 2]"
)
@click.option("--units", type=click.IntRange(1, MAX_UNITS), default=40, show_default=True, help="Files to simulate.")
@click.option(
    "--events", type=click.IntRange(1, MAX_EVENTS), default=5000, show_default=True, help="Collisions in each file."
)
@click.option(
    "--container",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Run the payloads in Apptainer: auto does so when --image names an image.",
)
@click.option("--image", help="An Apptainer image whose python3 has numpy, uproot and matplotlib.")
def demo(
    folder: Optional[Path], pilots: Optional[int], units: int, events: int, container: str, image: Optional[str]
) -> None:
    """Run the whole system on this machine and measure the mass of the Z boson.

    Starts a server, harvester and pilots, simulates collisions, analyses them, fits the peak, and stops all that it
    started. Needs no root, no network and no container. Its folder stays.
    """
    _check_installation()
    if units * events < MIN_EVENTS:
        raise click.UsageError(
            f"--units, --events: {units * events} collisions are too few; simulate {MIN_EVENTS:,} in all"
        )
    image = _chosen_image(container, image)
    out = render.console()
    started = time.monotonic()
    place = DemoFolder(_make_folder(folder))
    out.print(Text(f"Pilotage demo in {place.root}", style="bold"), soft_wrap=True)
    count = pilots or max(2, len(psutil.Process().cpu_affinity() or [0]))
    with ended_by_signals(), Processes(_environment(os.environ, place), place.root) as processes:
        url = _start_server(processes, place)
        _step(out, "server", url)
        with closing(HttpClient(url, token=lambda: read_secret_file(place.admin_token), retries=1)) as http:
            api = Api(http)
            world.describe_world(api, place)
            _step(out, "world", f"site {world.SITE_NAME}, storage {world.STORAGE_NAME}, queue {world.QUEUE_NAME}")
            with _drained_at_the_end(api):
                _start_harvester(processes, place, url, count)
                _step(out, "harvester", f"at most {count} pilots of one core")
                view = api.submit(world.workflow(units, events, image))
                _step(out, "workflow", f"{view.id}: " + " → ".join(task.stage for task in view.tasks))
                submitted = time.monotonic()
                final = _run(api, view, processes, out)
                took = time.monotonic() - submitted
            result = fetch_result(api, final, place)
    print_result(out, result, place, units * events, took, time.monotonic() - started)


@contextmanager
def _drained_at_the_end(api: Api) -> Iterator[None]:
    """Drain the queue however it ends: pilots that wait for work are told to leave, and need not be stopped."""
    try:
        yield
    finally:
        try:
            world.describe_queue(api, ResourceState.DRAINING)
        except HttpError as error:
            log.warning("the queue cannot be drained: %s", error.detail)


def _run(api: Api, view: WorkflowView, processes: Processes, out: Console) -> WorkflowView:
    """Show progress to the end. Raises DemoError when a program dies, nothing moves, or a task fails."""
    snapshots = progress.watch(
        api, view.id, processes.wait, pilots=lambda: processes.children("harvester"), interval_s=0.5
    )
    try:
        last = progress.display(_never_stalled(snapshots), out)
    except HttpError as error:
        raise DemoError(processes.obituary() or f"the server cannot be asked: {error.detail}") from error
    except Stalled as stall:
        raise DemoError(f"{stall}\n{what_went_wrong(api, view.id, processes.logs())}") from stall
    if dead := processes.obituary():
        raise DemoError(dead)
    if any(task.state is not TaskState.DONE for task in last.workflow.tasks):
        raise DemoError(f"the workflow did not succeed\n{what_went_wrong(api, view.id, processes.logs())}")
    return last.workflow


class Stalled(Exception):
    """No unit has moved for :data:`STALL_S`."""


def _never_stalled(snapshots: Iterator[progress.Snapshot]) -> Iterator[progress.Snapshot]:
    """The same snapshots; raises Stalled when nothing moves for too long."""
    before: Optional[progress.Snapshot] = None
    for snapshot in snapshots:
        if before is None or progress.moved(before, snapshot):
            before = snapshot
        elif snapshot.elapsed_s - before.elapsed_s > STALL_S:
            raise Stalled(f"no unit has moved for {STALL_S:g} s")
        yield snapshot


def _start_server(processes: Processes, place: DemoFolder) -> str:
    """The server, listening; its address."""
    world.write_server_config(place)
    return processes.start("server", pilotage("--config", str(place.server_config), "server"), LISTENING)


def _start_harvester(processes: Processes, place: DemoFolder, url: str, pilots: int) -> None:
    token = processes.run(
        pilotage(
            *("--config", str(place.server_config), "server", "token"),
            *("--role", "harvester", "--subject", "demo", "--ttl", "1d"),
        ),
        place.root / "server.log",
    )
    write_secret_file(place.harvester_token, token.decode().strip())
    world.write_config(place, url, pilots)
    processes.start("harvester", pilotage("--config", str(place.config), "harvester", "run"))


def _step(out: Console, what: str, words: str) -> None:
    out.print(Text.assemble(("✓ ", "green"), (f"{what:<10}", "bold"), words), soft_wrap=True)


def _check_installation() -> None:
    """Raise DemoError when something is missing that the demo would only miss later."""
    if sys.version_info < SERVER_PYTHON:
        raise DemoError(
            f"the server needs Python {'.'.join(map(str, SERVER_PYTHON))} or later, this is {sys.version.split()[0]}"
        )
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f"not installed: {', '.join(missing)}; run: pip install 'pilotage[demo]'")
    if get_environ_proxies("http://127.0.0.1"):
        raise DemoError("this environment sends calls to this machine itself through a proxy: set NO_PROXY=127.0.0.1")


def _chosen_image(container: str, image: Optional[str]) -> Optional[str]:
    """The image to use, if any."""
    if container == "never" or (container == "auto" and image is None):
        return None
    if image is None:
        raise click.UsageError("--container always needs --image: say which image the payloads shall run in")
    if shutil.which("apptainer") is None:
        raise click.UsageError("--image: there is no apptainer on the search path; install it, or leave --image out")
    return image


def _make_folder(folder: Optional[Path]) -> Path:
    """The demo's folder: empty, absolute, and closed to others."""
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="pilotage-demo-")).resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise click.UsageError(f"--dir: {folder} is not empty; choose another folder")
    except OSError as error:
        raise click.UsageError(f"--dir: {folder} cannot be used: {error.strerror}") from error
    return folder.resolve()


def _environment(environ: Mapping[str, str], place: DemoFolder) -> dict[str, str]:
    """The environment of all programs: nothing that configures another installation reaches them."""
    own = {name: value for name, value in environ.items() if not name.startswith("PILOTAGE_")}
    exempt = ",".join(filter(None, (environ.get("no_proxy") or environ.get("NO_PROXY"), "127.0.0.1", "localhost")))
    return {
        **own,
        "no_proxy": exempt,
        "NO_PROXY": exempt,
        "XDG_CONFIG_HOME": str(place.root / "config"),
        "PYTHONUNBUFFERED": "1",
    }
