"""``pilotage inputs``: files that come after their workflow."""

from __future__ import annotations

from pathlib import Path

import click

from common.cli import render
from common.cli.api import Api
from common.cli.client import Client, client_options
from common.cli.file_list import read_file_list
from common.wire import InputsRequest, TaskView

SLICE = 10_000
"""Files of one call."""

_task = click.argument("task_id", metavar="TASK", type=click.IntRange(min=1))


@click.group()
def inputs() -> None:
    """Files for tasks that were submitted with open = true in their input."""


@inputs.command()
@_task
@click.argument("lists", metavar="LIST...", nargs=-1, required=True, type=click.Path(path_type=Path))
@client_options
def add(client: Client, task_id: int, lists: tuple[Path, ...]) -> None:
    """Give a task the files in one or more lists (.json or .txt), the same as files_from takes.

    Files that the task has already are left out, so that the command may be repeated. A task that was done goes on.
    """
    files = [file for path in lists for file in read_file_list(path)]
    api = Api(client.http)
    for start in range(0, len(files), SLICE):
        view = api.add_inputs(task_id, InputsRequest(files[start : start + SLICE]))
    _show(client, view)


@inputs.command()
@_task
@client_options
def close(client: Client, task_id: int) -> None:
    """Say that no more files will come: the task ends when those that it has are over."""
    _show(client, Api(client.http).close_inputs(task_id))


def _show(client: Client, view: TaskView) -> None:
    if client.as_json:
        render.print_json(view)
    else:
        render.print_list([view], render.TASK_COLUMNS)
