"""``pilotage justin``: what users of justIN type, in their words; the rest of this package knows none of them.

A simple workflow has one stage, ``1``; what is not said is as with justIN.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import click

from common.cli import render
from common.cli.api import Api
from common.cli.client import Client, client_options
from common.cli.jobscript import GITHUB, FetchedScript, fetch_jobscript
from common.cli.justin_events import Row, Seen, rows_of
from common.cli.strict import InputError, convert
from common.cli.textfile import read_text
from common.http import HttpError
from common.problem import FieldError
from common.wire import EventView, TaskView, WorkflowRequest

F = TypeVar("F", bound=Callable[..., Any])
STAGE = "1"
WALL_S = 80_000
MEMORY_MIB = 2000
LIFETIME_DAYS = 1
ALLOCATIONS = 6
"""How often a file is tried."""
IMAGES = "/cvmfs/singularity.opensciencegrid.org/fermilab/"
"""Where images are that are named without a path."""
MANY = 100_000
_VARIABLE = re.compile(r"\$(\{JUSTIN_(?P<braced>[A-Z_]+)\}|JUSTIN_(?P<plain>[A-Z_]+))")
_COLUMNS: list[render.Column[Row]] = [
    ("time", lambda one: render.moment(one.time)),
    ("event", lambda one: one.event),
    ("workflow", lambda one: one.workflow_id),
    ("stage", lambda one: one.stage_id),
    ("file DID", lambda one: one.file_did),
    ("jobsub ID", lambda one: one.jobsub_id),
    ("site", lambda one: one.site_name),
    ("RSE", lambda one: one.rse_name),
]


@click.group()
def justin() -> None:
    """Commands of justIN, for those who come from there."""


def _payload_options(command: F) -> F:
    for option in (
        click.option("--jobscript", type=click.Path(path_type=Path), help="The jobscript, a file."),
        click.option("--jobscript-git", metavar="OWNER/REPOSITORY/PATH:REF", help="The jobscript, out of git."),
        click.option("--git-server", metavar="URL", default=GITHUB, show_default=True, help="Whose repositories."),
        click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="A variable for the jobscript."),
        click.option("--image", metavar="NAME", help=f"A path, an address, or an image below {IMAGES}"),
    ):
        command = option(command)
    return command


def _needs_options(command: F) -> F:
    for option in (
        click.option(
            "--wall-seconds", "--wall", "wall_s", type=click.IntRange(min=1), default=WALL_S, show_default=True
        ),
        click.option("--rss-mib", "--rss-mb", type=click.IntRange(min=1), default=MEMORY_MIB, show_default=True),
        click.option("--processors", type=click.IntRange(min=1), default=1, show_default=True),
        click.option("--gpu", is_flag=True, help="One GPU."),
        click.option("--max-distance", type=click.IntRange(0, 100), default=0, show_default=True),
    ):
        command = option(command)
    return command


def _output_options(command: F) -> F:
    for option in (
        click.option("--scope", metavar="NAME", help="The scope of outputs."),
        click.option("--output-pattern", "patterns", multiple=True, metavar="PATTERN[:DATASET]"),
        click.option("--output-rse", "storage", metavar="NAME", help="Where outputs go (else the nearest storage)."),
        click.option("--lifetime-days", type=click.IntRange(min=1), default=LIFETIME_DAYS, show_default=True),
    ):
        command = option(command)
    return command


@justin.command("simple-workflow")
@click.option("--description", default="", help="In your words.")
@click.option("--mql", metavar="QUERY", help="The files that MetaCat finds.")
@click.option("--catalog", default="metacat", show_default=True, help="Which catalogue of the server is asked.")
@click.option("--monte-carlo", type=click.IntRange(min=1), metavar="N", help="Counters from 1 to N in place of files.")
@_payload_options
@_needs_options
@_output_options
@client_options
def simple_workflow(client: Client, **given: Any) -> None:
    """Submit a workflow of one stage."""
    view = Api(client.http).submit(simple_request(**given))
    if client.as_json:
        render.print_json(view)
    else:
        click.echo(f"Workflow ID: {view.id}")


def simple_request(
    *,
    description: str,
    mql: Optional[str],
    catalog: str,
    monte_carlo: Optional[int],
    jobscript: Optional[Path],
    jobscript_git: Optional[str],
    git_server: str,
    environment: tuple[str, ...],
    image: Optional[str],
    wall_s: int,
    rss_mib: int,
    processors: int,
    gpu: bool,
    max_distance: int,
    scope: Optional[str],
    patterns: tuple[str, ...],
    storage: Optional[str],
    lifetime_days: int,
) -> WorkflowRequest:
    """The workflow that the options of ``simple-workflow`` ask for. Raises InputError, which names the option."""
    stage: dict[str, Any] = {
        "name": STAGE,
        "input": _input(mql, catalog, monte_carlo),
        "environment": dict(_variable(each) for each in environment),
        "outputs": [_output(each, scope, storage, lifetime_days) for each in patterns],
        "requirements": {"cores": processors, "memory_mb": rss_mib, "wall_s": wall_s},
        "max_attempts": ALLOCATIONS,
        "max_distance": max_distance,
    }
    if gpu:
        stage["requirements"]["gpus"] = {"count": 1}
    if image is not None:
        stage["image"] = image if image.startswith("/") or "://" in image else f"{IMAGES}{image}"
    script = _jobscript(jobscript, jobscript_git, git_server)
    stage["jobscript"] = script.text if isinstance(script, FetchedScript) else script
    request: dict[str, Any] = {
        "name": "simple-workflow",
        "scope": scope,
        "stages": [stage],
        "request_id": uuid.uuid4().hex,
    }
    if description:
        request["labels"] = {"description": description}
    made = convert(request, WorkflowRequest, "justin simple-workflow")
    if isinstance(script, FetchedScript):
        made.stages[0].jobscript_git = script.source
    return made


def _input(mql: Optional[str], catalog: str, count: Optional[int]) -> dict[str, Any]:
    if (mql is None) == (count is None):
        raise _wrong("--mql", "give either --mql QUERY or --monte-carlo N")
    if count is not None:
        return {"kind": "counter", "count": count, "first": 1}
    return {"kind": "dataset", "catalog": catalog, "query": mql}


def _jobscript(file: Optional[Path], reference: Optional[str], git_server: str) -> str | FetchedScript:
    if (file is None) == (reference is None):
        raise _wrong("--jobscript", "give either --jobscript FILE or --jobscript-git OWNER/REPOSITORY/PATH:REF")
    if file is not None:
        return read_text(file)
    assert reference is not None
    return fetch_jobscript(reference, "--jobscript-git", git_server.rstrip("/") + "/")


def _variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals:
        raise _wrong("--env", f"{given!r}: write NAME=VALUE")
    return name, value


def _output(given: str, scope: Optional[str], storage: Optional[str], lifetime_days: int) -> dict[str, Any]:
    """A pattern and its dataset; that no file matches fails no job of justIN."""
    pattern, colon, target = given.partition(":")
    output: dict[str, Any] = {"pattern": pattern, "optional": True, "lifetime_days": lifetime_days}
    if storage is not None:
        output["storage"] = storage
    if target.startswith("https://"):
        raise _wrong(
            "--output-pattern",
            f"{target}: outputs go to storages that the server knows; ask an admin to make this place one, and name it"
            " with --output-rse",
        )
    if colon:
        output["dataset"] = _dataset(target, scope)
    return output


def _dataset(name: str, scope: Optional[str]) -> str:
    """justIN's variables in a dataset's name become ours."""
    known = {"WORKFLOW_ID": "{workflow}", "STAGE_ID": "{stage}", "SCOPE": scope or ""}

    def value(match: re.Match[str]) -> str:
        variable = match["braced"] or match["plain"]
        if not known.get(variable):
            raise _wrong("--output-pattern", f"{name!r}: {match[0]} is not known here")
        return known[variable]

    return _VARIABLE.sub(value, name)


def _wrong(option: str, words: str) -> InputError:
    return InputError("justin", [FieldError(option, words)])


@justin.command("show-events")
@click.option("--workflow-id", type=click.IntRange(min=1), help="Of the jobs of a workflow.")
@click.option("--stage-id", help="Of one stage of it, by its number or its name.")
@click.option("--jobsub-id", type=click.IntRange(min=1), help="Of one job.")
@client_options
def show_events(client: Client, workflow_id: Optional[int], stage_id: Optional[str], jobsub_id: Optional[int]) -> None:
    """Show what happened to jobs and files, by justIN's names of events."""
    api = Api(client.http)
    if (workflow_id is None) == (jobsub_id is None):
        raise click.UsageError("give either --workflow-id or --jobsub-id")
    if jobsub_id is not None:
        tasks = [api.task(api.job(jobsub_id).task_id)]
    else:
        tasks = api.tasks(MANY, workflow=workflow_id)
    rows = [
        row
        for number, task in enumerate(tasks, 1)
        if stage_id in (None, task.stage, str(number))
        for row in _rows(api, task, jobsub_id)
    ]
    rows.sort(key=lambda row: row.time)
    if client.as_json:
        render.print_json(rows)
    else:
        render.print_list(rows, _COLUMNS)


def _rows(api: Api, task: TaskView, job_id: Optional[int]) -> list[Row]:
    units, outputs = api.units(task.id, MANY), api.outputs(task.id, MANY)
    events = api.events(MANY, job=job_id) if job_id is not None else api.events(MANY, task=task.id)
    jobs = [api.job(job_id)] if job_id is not None else api.jobs(MANY, task=task.id)
    pilots = {each.pilot_id for each in jobs if each.pilot_id is not None}
    places = {number: _place(api, number) for number in pilots}
    return rows_of(task, Seen(jobs, units, outputs, events, places))


def _place(api: Api, pilot_id: int) -> tuple[str, float]:
    """The site of a pilot, and when its worker was submitted; a pilot that was forgotten has neither."""
    try:
        pilot = api.pilot(pilot_id)
    except HttpError:
        return "", 0.0
    worker: list[EventView] = api.events(1, subject=f"worker:{pilot.worker}") if pilot.worker else []
    return pilot.site, min([pilot.registered, *(each.time for each in worker)])
