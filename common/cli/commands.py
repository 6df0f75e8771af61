"""``pilotage pause``, ``resume``, ``kill``, ``finish``, ``retry``, ``restart``, ``avalanche``: commands to tasks and
whole workflows; ``change``: what may change while a task lives; ``clone`` and ``delete`` of workflows."""

from __future__ import annotations

import json
import uuid
from typing import Any, Callable, Optional, TypeVar

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.wire import (
    CloneRequest,
    DeletionView,
    TaskChange,
    TaskCommand,
    TaskView,
    WorkflowCommandReply,
    WorkflowView,
)

F = TypeVar("F", bound=Callable[..., Any])
ID = click.IntRange(min=1)


def task_options(command: F) -> F:
    """Add the task's id, or ``--workflow``, ``--reason`` and the options of the client."""
    task = click.argument("task_id", metavar="[TASK]", type=ID, required=False)
    workflow = click.option("--workflow", "workflow_id", metavar="ID", type=ID, help="All tasks of this workflow.")
    reason = click.option("--reason", default="", help="Why; kept with the task for others to read.")
    return task(workflow(reason(client_options(command))))


def _send(client: Client, task_id: Optional[int], workflow_id: Optional[int], command: TaskCommand) -> None:
    if (task_id is None) == (workflow_id is None):
        raise click.UsageError("name a task, or all tasks of a workflow with --workflow ID")
    if task_id is not None:
        view = client.http.call("POST", f"/v1/tasks/{task_id}:command", command, TaskView)
        _print_tasks(client, view, [view])
        return
    reply = client.http.call("POST", f"/v1/workflows/{workflow_id}:command", command, WorkflowCommandReply)
    _print_tasks(client, reply, reply.workflow.tasks)
    if not client.as_json:
        for refusal in reply.refused:
            click.echo(f"not told: {refusal.reason}", err=True)


def _print_tasks(client: Client, reply: object, tasks: list[TaskView]) -> None:
    if client.as_json:
        render.print_json(reply)
    else:
        render.print_list(tasks, render.TASK_COLUMNS)


@click.command()
@task_options
def pause(client: Client, task_id: Optional[int], workflow_id: Optional[int], reason: str) -> None:
    """Give a task no more slots until it is resumed. Jobs that run go on."""
    _send(client, task_id, workflow_id, TaskCommand("pause", reason))


@click.command()
@task_options
def resume(client: Client, task_id: Optional[int], workflow_id: Optional[int], reason: str) -> None:
    """Let a paused or exhausted task go on."""
    _send(client, task_id, workflow_id, TaskCommand("resume", reason))


@click.command()
@task_options
def kill(client: Client, task_id: Optional[int], workflow_id: Optional[int], reason: str) -> None:
    """End a task and its jobs now. What is done stays done; it cannot be retried."""
    _send(client, task_id, workflow_id, TaskCommand("kill", reason))


@click.command()
@click.option("--hard", is_flag=True, help="Kill jobs that run; else they may end.")
@task_options
def finish(client: Client, task_id: Optional[int], workflow_id: Optional[int], reason: str, hard: bool) -> None:
    """End a task with what it has: no new jobs, and what is done counts."""
    _send(client, task_id, workflow_id, TaskCommand("finish", reason, hard=hard))


@click.command()
@task_options
def retry(client: Client, task_id: Optional[int], workflow_id: Optional[int], reason: str) -> None:
    """Try the failed and lost units of a task again."""
    _send(client, task_id, workflow_id, TaskCommand("retry", reason))


@click.command()
@click.option("--unit", "units", metavar="ID", type=ID, multiple=True, help="Only this unit, and others of its job.")
@task_options
def restart(
    client: Client, task_id: Optional[int], workflow_id: Optional[int], reason: str, units: tuple[int, ...]
) -> None:
    """Do what is done once more: the next generation. Outputs of the last one are no longer shown."""
    _send(client, task_id, workflow_id, TaskCommand("restart", reason, units=list(units)))


@click.command()
@task_options
def avalanche(client: Client, task_id: Optional[int], workflow_id: Optional[int], reason: str) -> None:
    """Let a task that is scouting run at once with all its units."""
    _send(client, task_id, workflow_id, TaskCommand("avalanche", reason))


@click.command()
@click.argument("task_id", metavar="TASK", type=ID)
@click.option("--priority", type=click.IntRange(-10_000, 10_000))
@click.option("--share", metavar="NAME")
@click.option("--max-attempts", type=click.IntRange(1, 100))
@click.option("--site", "sites", metavar="NAME", multiple=True, help="Only there; several times for several.")
@click.option("--any-site", is_flag=True, help="No longer only at some sites.")
@click.option("--exclude-site", "excluded", metavar="NAME", multiple=True, help="Not there.")
@click.option("--exclude-none", is_flag=True, help="No site is excluded any more.")
@click.option("--reason", default="", help="Why; kept with the task for others to read.")
@client_options
def change(
    client: Client,
    task_id: int,
    priority: Optional[int],
    share: Optional[str],
    max_attempts: Optional[int],
    sites: tuple[str, ...],
    any_site: bool,
    excluded: tuple[str, ...],
    exclude_none: bool,
    reason: str,
) -> None:
    """Change a task while it lives."""
    if (sites and any_site) or (excluded and exclude_none):
        raise click.UsageError("--site and --any-site, --exclude-site and --exclude-none exclude each other")
    body = TaskChange(
        priority=priority,
        share=share,
        max_attempts=max_attempts,
        sites=list(sites) if sites or any_site else None,
        exclude_sites=list(excluded) if excluded or exclude_none else None,
        reason=reason,
    )
    view = client.http.call("PATCH", f"/v1/tasks/{task_id}", body, TaskView)
    _print_tasks(client, view, [view])


@click.command()
@click.argument("workflow_id", metavar="WORKFLOW", type=ID)
@click.option("--name", help="Another name.")
@click.option(
    "--set", "settings", metavar="STAGE.FIELD=VALUE", multiple=True,
    help="Change a field of a stage (* for all): VALUE is JSON, or text; null puts it back to its default.",
)  # fmt: skip
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True)
@client_options
def clone(
    client: Client, workflow_id: int, name: Optional[str], settings: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    """Submit a workflow again as it was, with some fields changed.

    For example: pilotage clone 12 --set 'fit.requirements.memory_mb=4000' --set '*.max_attempts=5'
    """
    request = CloneRequest(
        name=name,
        overrides=_overrides(settings),
        labels=dict(_pair(label, "--label") for label in labels),
        request_id=uuid.uuid4().hex,
    )
    view = client.http.call("POST", f"/v1/workflows/{workflow_id}:clone", request, WorkflowView)
    if not client.as_json:
        click.echo(f"workflow {view.id}")
    _print_tasks(client, view, view.tasks)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise click.UsageError(f"{option} {text!r}: write NAME=VALUE")
    return name, value


def _overrides(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``fit.requirements.cores=4`` as tables within tables. Raises click.UsageError."""
    overrides: dict[str, dict[str, Any]] = {}
    for setting in settings:
        where, value = _pair(setting, "--set")
        stage, found, path = where.partition(".")
        if not (stage and found and all(path.split("."))):
            raise click.UsageError(f"--set {setting!r}: write STAGE.FIELD=VALUE")
        table = overrides.setdefault(stage, {})
        *outer, last = path.split(".")
        for name in outer:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise click.UsageError(f"--set {setting!r}: {name} has a value already")
        table[last] = _value(value)
    return overrides


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@click.command()
@click.argument("workflow_id", metavar="WORKFLOW", type=ID)
@click.option("--force", is_flag=True, help="Also when it has outputs: their files stay, what is known of them goes.")
@client_options
def delete(client: Client, workflow_id: int, force: bool) -> None:
    """Take away a workflow that is over, with all that is known of it."""
    path = f"/v1/workflows/{workflow_id}"
    view = client.http.call("DELETE", path, None, DeletionView, params={"force": force})
    if client.as_json:
        render.print_json(view)
    else:
        click.echo(f"workflow {workflow_id} {'is gone' if view.ended is not None else 'is being taken away'}")
