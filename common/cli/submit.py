"""``pilotage submit``: hand in a workflow file."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import click
from msgspec import structs

from common.cli import progress, render
from common.cli.api import Api
from common.cli.client import Client, client_options
from common.cli.workflow_file import load_workflow
from common.states import TaskState
from common.wire import WorkflowView


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--follow", is_flag=True, help="Show progress until it ends; exit code 1 unless all its units are done.")
@client_options
def submit(client: Client, file: Path, follow: bool) -> None:
    """Submit the workflow in FILE (.toml or .json)."""
    request = load_workflow(file)
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


def _succeeded(view: WorkflowView) -> bool:
    return all(task.state is TaskState.DONE for task in view.tasks)
