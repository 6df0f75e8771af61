"""``pilotage pause``, ``resume``, ``kill`` and ``retry``: commands to tasks."""

from __future__ import annotations

from typing import Any, Callable, TypeVar

import click

from common.cli import render
from common.cli.api import Api
from common.cli.client import Client, client_options
from common.wire import TaskCommand

F = TypeVar("F", bound=Callable[..., Any])


def task_options(command: F) -> F:
    """Add the task's id, ``--reason`` and the options of the client."""
    task = click.argument("task_id", metavar="TASK", type=click.IntRange(min=1))
    reason = click.option("--reason", default="", help="Why; kept with the task for others to read.")
    return task(reason(client_options(command)))


def _send(client: Client, task_id: int, command: str, reason: str) -> None:
    view = Api(client.http).command(task_id, TaskCommand(command=command, reason=reason))
    if client.as_json:
        render.print_json(view)
    else:
        render.print_list([view], render.TASK_COLUMNS)


@click.command()
@task_options
def pause(client: Client, task_id: int, reason: str) -> None:
    """Give a task no more slots until it is resumed. Jobs that run go on."""
    _send(client, task_id, "pause", reason)


@click.command()
@task_options
def resume(client: Client, task_id: int, reason: str) -> None:
    """Let a paused or exhausted task go on."""
    _send(client, task_id, "resume", reason)


@click.command()
@task_options
def kill(client: Client, task_id: int, reason: str) -> None:
    """End a task and its jobs now. What is done stays done."""
    _send(client, task_id, "kill", reason)


@click.command()
@task_options
def retry(client: Client, task_id: int, reason: str) -> None:
    """Try the failed and lost units of a task again."""
    _send(client, task_id, "retry", reason)
