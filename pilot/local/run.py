"""Runs one job of a stage on this machine: the work of ``pilotage pilot run-local``."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import click
import msgspec
from msgspec import structs
from rich.console import Console

from common.cli import load_section, render
from common.cli.pack import pack
from common.cli.strict import InputError
from common.cli.workflow_file import load_workflow
from common.log import UtcFormatter
from common.problem import FieldError
from common.quantities import format_duration
from common.states import JobState
from common.wire import Assignment, JobReport
from pilot.config import PilotConfig
from pilot.local.assignment import Choices, make_assignment, pick_stage
from pilot.local.server import LocalServer
from pilot.local.summary import Summary, show, summarize
from pilot.stopping import catch_signals
from pilot.tails import TailHandler
from pilot.workdir import WorkDir
from pilot.workshop import Workshop

MOST_RUNS = 100_000


@dataclass(frozen=True)
class Wanted:
    """The command's options, as they were written."""

    file: Path
    stage: Optional[str]
    unit: int
    files: Sequence[Path]
    storages: Sequence[str]
    secondary: Sequence[str]
    secrets: Sequence[str]
    sandbox: Optional[Path]
    jobscript_git: str
    work_dir: Path

    def choices(self) -> Choices:
        """What they mean. Raises InputError."""
        return Choices(
            unit=self.unit,
            files=self.files,
            storages=_pairs(self.storages, "--storage", "NAME=URL"),
            secondary=_grouped(self.secondary),
            secrets={name: _secret(path) for name, path in _pairs(self.secrets, "--secret", "NAME=FILE").items()},
            sandbox=None if self.sandbox is None else pack(self.sandbox),
        )


def run_here(context: click.Context, wanted: Wanted, keep: Optional[bool], as_json: bool) -> int:
    """Run the job, tell what came of it, and answer the exit code. Raises InputError."""
    config = load_section(context, PilotConfig, "pilot", {"keep": keep}).value
    choices, where = wanted.choices(), str(wanted.file)
    request = load_workflow(wanted.file, wanted.jobscript_git)
    stage = pick_stage(request, wanted.stage, where)
    make_assignment(request, stage, choices, 1, where)  # a mistake is told before a folder is made
    number, folder = _new_folder(wanted.work_dir)
    assignment = make_assignment(request, stage, choices, number, where)
    summary = run_job(assignment, folder, choices.sandbox, config, render.console(stderr=True))
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    if as_json:
        render.print_json(summary)
    else:
        show(summary, render.console())
    return summary.program_code


def run_job(
    assignment: Assignment, folder: Path, sandbox: Optional[bytes], config: PilotConfig, out: Console
) -> Summary:
    """Run a job in ``folder`` with a pilot of its own. Progress goes to ``out``."""
    (folder / "outputs").mkdir()
    server = LocalServer(assignment, folder / "outputs", sandbox, _Progress(out))
    work_dir = WorkDir(folder / "pilot")
    config = structs.replace(config, work_dir=str(folder / "pilot"), max_jobs=1, queue=None, min_wall_s=0.0)
    tail = TailHandler()
    log = logging.FileHandler(folder / "pilot.log")
    log.setFormatter(UtcFormatter())
    root = logging.getLogger()
    before = root.level
    root.setLevel(config.log_level)
    for handler in (tail, log):
        root.addHandler(handler)
    try:
        agent = Workshop(config, "local", server, work_dir, dict(os.environ), tail.text).agent("local")
        if threading.current_thread() is threading.main_thread():
            catch_signals(agent)
        agent.run()
    finally:
        for handler in (tail, log):
            root.removeHandler(handler)
        root.setLevel(before)
        log.close()
        work_dir.close()
    return summarize(assignment, server, folder)


class _Progress:
    """A line for each state of the job, and now and then what it uses."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._state: Optional[JobState] = None
        self._told_s = 0.0

    def __call__(self, report: JobReport) -> None:
        if report.state is not self._state:
            self._state = report.state
            self._out.print(f"{report.state.value} …")
            return
        metrics = report.metrics
        if metrics is not None and metrics.wall_s >= 2 * self._told_s + 2:
            self._told_s = metrics.wall_s
            used = f"{metrics.cpu_s:.0f} s of CPU, {metrics.max_rss_mb:.0f} MiB, {metrics.processes} processes"
            self._out.print(f"{report.state.value} for {format_duration(round(metrics.wall_s))}: {used}")


def _new_folder(work_dir: Path) -> tuple[int, Path]:
    """A number that no earlier run here has, and its folder."""
    for number in range(1, MOST_RUNS):
        folder = work_dir.absolute() / f"run-{number}"
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            continue
        return number, folder
    raise click.ClickException(f"{work_dir} has {MOST_RUNS} runs: remove some, or give another --work-dir")


def _pairs(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError("", [FieldError(option, f"{text!r}: write {form}")])
        found[name] = value
    return found


def _grouped(texts: Sequence[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for text in texts:
        for name, value in _pairs([text], "--secondary", "NAME=PATH").items():
            path = Path(value)
            if not path.is_file():
                raise InputError("", [FieldError("--secondary", f"{name}: there is no file {value}")])
            found.setdefault(name, []).append(path)
    return found


def _secret(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise InputError("", [FieldError("--secret", f"{path}: {error.strerror}")]) from error
