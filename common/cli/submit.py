"""``pilotage submit``: hand in a workflow file."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Optional

import click
from msgspec import structs

from common.cli import progress, render
from common.cli.api import Api
from common.cli.client import Client, client_options
from common.cli.pack import pack
from common.cli.sandbox import upload_sandbox
from common.cli.workflow_file import load_workflow
from common.states import TaskState
from common.wire import WorkflowRequest, WorkflowView


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--follow", is_flag=True, help="Show progress until it ends; exit code 1 unless all its units are done.")
@click.option(
    "--sandbox",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Pack and upload this folder; it is unpacked where the jobs start, of all stages that name no sandbox.",
)
@click.option(
    "--jobscript-git", metavar="URL#PATH@REF", default="", help="The jobscript of stages without one, fetched by git."
)
@client_options
def submit(client: Client, file: Path, follow: bool, sandbox: Optional[Path], jobscript_git: str) -> None:
    """Submit the workflow in FILE (.toml or .json).

    Each [[stage]] says in its input what its units are:

    \b
      input.files_from = "list.txt"            the files of a list (files = [...]: here in FILE)
      input.dataset = "query"                  what a catalogue finds, with input.catalog = "name"
      input.stage = "name"                     the outputs of another stage
      input.stages = ["a", "b"]                or of several
      input.counter = 200                      numbers, such as seeds
      input.single = true                      the stage itself, once

    Its payload is jobscript_file, jobscript, jobscript_git, command or transformation (a program to fetch); processes run
    before, beside and after it. pilotage pilot run-local tries one job of a stage on this machine.

    With files and datasets go pattern, limit, events_per_unit (ranges of events) and open (more files later: see
    pilotage inputs); with stages pattern and events_per_unit. files_per_job, events_per_job or merge say how much a
    job takes; common_input and secondary_inputs what it gets beside; sites, exclude_sites, max_distance and remote_io
    where it runs and reads.
    """
    request = load_workflow(file, jobscript_git)
    if sandbox is not None:
        request = _with_sandbox(client, request, sandbox)
    if request.request_id is None:
        # The client repeats a call whose answer got lost; with this id the server makes one workflow of it.
        request = structs.replace(request, request_id=uuid.uuid4().hex)
    api = Api(client.http)
    view = api.submit(request)
    if follow:
        # Results go to standard output, so progress must not when a program reads them.
        out = render.console(stderr=client.as_json)
        out.print(f"workflow {view.id} is submitted; Ctrl-C ends the watching, not the workflow")
        view = progress.display(progress.watch(api, view.id, threading.Event().wait), out).workflow
    if client.as_json:
        render.print_json(view)
    elif not follow:
        click.echo(f"workflow {view.id}")
        render.print_list(view.tasks, render.TASK_COLUMNS)
    if follow and not _succeeded(view):
        raise click.ClickException(
            f"workflow {view.id} ended without all its units done: see pilotage show workflow {view.id}"
        )


def _with_sandbox(client: Client, request: WorkflowRequest, folder: Path) -> WorkflowRequest:
    sha256 = upload_sandbox(client.http, pack(folder)).sha256
    stages = [structs.replace(stage, sandbox=stage.sandbox or sha256) for stage in request.stages]
    return structs.replace(request, stages=stages)


def _succeeded(view: WorkflowView) -> bool:
    return all(task.state is TaskState.DONE for task in view.tasks)
