"""``pilotage pilot doctor``: is this a node that pilots can work on, and what is to be mended if not?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import click

from common.cli import load_section
from common.errors import PilotageError
from common.wire import NodeChecks, NodeInfo, Queue, QueueSpec
from pilot.config import PilotConfig
from pilot.container.apptainer import SYSTEM_PATH
from pilot.container.host import Finding, Level, check_host
from pilot.copytool import BUILT_IN, load_copytool
from pilot.probe import SlotLimits, SlotProbe, checks, host, probe_slot
from pilot.probe.node import describe_node

# What prints tables and reads files of people's is imported where it is used: each pilot loads this module with the
# command that it is part of.

LEAST_SCRATCH_MB = 1024
"""What the doctor wants of the scratch disk where no queue says more."""
MARKS = {Level.OK: "[green]✓[/]", Level.WARNING: "[yellow]![/]", Level.ERROR: "[red]✗[/]"}


@dataclass(frozen=True)
class Patient:
    """What is looked at: the pilot's configuration and environment, the queue that the node is for, and what else is
    asked for. ``root`` is ``/`` but for tests."""

    config: PilotConfig
    environment: Mapping[str, str]
    queue: Optional[Queue] = None
    cvmfs: Sequence[str] = ()
    reachable: Sequence[str] = ()
    root: Path = Path("/")

    @property
    def scratch(self) -> Path:
        """The pilot's folder, or the one that it would be made in."""
        folder = Path(self.config.work_dir).expanduser().absolute()
        return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


@dataclass(frozen=True)
class Report:
    """What was found. ``fit``: nothing essential is missing."""

    findings: list[Finding]
    slot: SlotProbe
    node: NodeInfo

    @property
    def fit(self) -> bool:
        """Whether a pilot can work here."""
        return all(finding.level is not Level.ERROR for finding in self.findings)


def examine(patient: Patient) -> Report:
    """Look at everything. Raises nothing but for a scratch folder that cannot be looked at."""
    queue = patient.queue
    limits = SlotLimits(queue.cores or None, queue.memory_mb or None, queue.disk_mb or None) if queue else SlotLimits()
    slot = probe_slot(patient.scratch, limits, patient.environment, patient.root, patient.config.apptainer)
    return Report(list(_findings(patient, slot)), slot, describe_node(slot.figures, patient.root))


def _findings(patient: Patient, slot: SlotProbe) -> Iterator[Finding]:
    config, queue = patient.config, patient.queue
    wanted = (queue.node_checks if queue is not None else None) or NodeChecks()
    yield host.check_python()
    yield host.check_user()
    yield checks.check_scratch(patient.scratch)
    yield checks.check_space(patient.scratch, wanted.scratch_mb or LEAST_SCRATCH_MB)
    yield host.check_cgroups(patient.root)
    yield from host.check_limits()
    if config.server_url:
        yield from host.check_server(config.server_url, config.ca_file, wanted.clock_s or NodeChecks().clock_s)
    yield host.check_certificates(patient.environment, patient.root)
    yield from _copytools(queue)
    yield host.check_user_namespaces(patient.root)
    yield from _containers(patient, essential=wanted.container)
    yield checks.check_gpus(slot.gpus, wanted.gpus)
    for repository in dict.fromkeys([*wanted.cvmfs, *patient.cvmfs]):
        yield checks.check_cvmfs(repository, patient.root)
    for target in dict.fromkeys([*wanted.reachable, *patient.reachable]):
        yield checks.check_reachable(target)


def _containers(patient: Patient, essential: bool) -> Iterator[Finding]:
    """What cannot be done with containers is essential only where the queue says so."""
    binds = patient.queue.container_binds if patient.queue is not None else ()
    path = patient.environment.get("PATH", SYSTEM_PATH)
    for finding in check_host(patient.config.apptainer, path, binds, accounts=patient.config.payload_users):
        lesser = finding.level is Level.ERROR and not essential
        yield replace(finding, level=Level.WARNING) if lesser else finding


def _copytools(queue: Optional[Queue]) -> Iterator[Finding]:
    """Those that the queue names must be there; of the others it is told which are."""
    named = list(queue.copytools) if queue is not None else []
    for name in named:
        try:
            load_copytool(name)
        except PilotageError as error:
            yield Finding(f"copytool {name}", Level.ERROR, error.detail, "install it, or take it off the queue's list")
        else:
            yield Finding(f"copytool {name}", Level.OK, "can be used")
    if not named:
        usable = [name for name in BUILT_IN if _usable(name)]
        yield Finding("copytools", Level.OK, f"usable here: {', '.join(usable) or 'none'}")


def _usable(name: str) -> bool:
    try:
        load_copytool(name)
    except PilotageError:
        return False
    return True


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--server", "server_url", metavar="URL", help="Also see whether this server can be reached.")
@click.option("--ca-file", metavar="FILE", help="The certificate authorities to verify the server with.")
@click.option("--queue-file", type=click.Path(path_type=Path), help="The queue that the node is for (TOML or JSON).")
@click.option("--work-dir", metavar="DIR", help="The pilot's folder: where jobs will run.")
@click.option("--cvmfs", multiple=True, metavar="REPOSITORY", help="Also look at this repository; may be repeated.")
@click.option(
    "--reachable", multiple=True, metavar="URL", help="Also see whether this can be reached; may be repeated."
)
@click.pass_context
def doctor(
    context: click.Context,
    /,
    as_json: bool,
    queue_file: Optional[Path],
    cvmfs: tuple[str, ...],
    reachable: tuple[str, ...],
    **options: Optional[str],
) -> None:
    """Look at this node and say what is to be mended before pilots come. No server is needed.

    Exit code 1 when something is missing without which no pilot, or no job of the queue, can work here.
    """
    from common.cli import render

    config = load_section(context, PilotConfig, "pilot", options).value
    queue = read_queue(queue_file) if queue_file is not None else None
    report = examine(Patient(config, dict(os.environ), queue, cvmfs, reachable))
    if as_json:
        render.print_json(as_table(report))
    else:
        show(report)
    if not report.fit:
        raise click.exceptions.Exit(1)


def read_queue(file: Path) -> QueueSpec:
    """A queue's description as ``pilotage admin queue set --file`` takes it. Raises InputError."""
    from common.cli.strict import convert
    from common.cli.textfile import read_table

    table = {"name": file.stem, "site": "here", **read_table(file)}
    return convert(table, QueueSpec, str(file))


def as_table(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    slot = report.slot
    return {
        "fit": report.fit,
        "findings": [
            {"name": each.name, "level": each.level.value, "detail": each.detail, "remedy": each.remedy}
            for each in report.findings
        ],
        "slot": {
            "cores": slot.cores,
            "memory_mb": slot.memory_mb,
            "disk_mb": slot.disk_mb,
            "wall_s": slot.wall_s,
            "gpus": slot.gpus,
            "tags": slot.tags,
            "figures": [{"resource": f.resource, "source": f.source, "value": f.value} for f in slot.figures],
        },
        "node": report.node,
    }


def show(report: Report) -> None:
    """For people: the machine, the slot, then each look."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from common.cli import render

    out, node, slot = render.console(), report.node, report.slot
    model = " ".join(word for word in (node.cpu_model, node.cpu_level) if word)
    out.print(f"[bold]{escape(model or node.architecture)}[/], {node.cores} cores, {node.threads} threads", end="")
    out.print(f", {node.memory_mb} MiB; {escape(node.os)}, Linux {escape(node.kernel)}, {escape(node.libc)}")
    wall = f", {slot.wall_s} s left" if slot.wall_s else ""
    out.print(
        f"A slot here: {slot.cores} cores, {slot.memory_mb} MiB, {slot.disk_mb} MiB of disk, {len(slot.gpus)} GPUs{wall}"
    )
    out.print(f"[dim]{escape(slot.explain())}[/]")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("look", no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    for finding in report.findings:
        remedy = f"\n[bold]→ {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(MARKS[finding.level], escape(finding.name), escape(finding.detail) + remedy)
    out.print(table)
    bad = sum(finding.level is Level.ERROR for finding in report.findings)
    odd = sum(finding.level is Level.WARNING for finding in report.findings)
    verdict = "[green]Pilots can work here[/]" if report.fit else f"[red]Not fit: {bad} to be mended[/]"
    out.print(f"{verdict}{f', {odd} worth a look' if odd else ''}.")
