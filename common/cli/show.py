"""``pilotage show``: workflows, tasks, units, jobs, outputs and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional, TypeVar

import click

from common.cli import render
from common.cli.api import NEWEST_OF, Api
from common.cli.client import Client, client_options
from common.cli.demand import demand, shares
from common.cli.harvesters import workers
from common.cli.measured import measured_fields
from common.quantities import format_duration
from common.states import JobState, TaskState, UnitState
from common.wire import EventView, JobView, NodeInfo, PilotView, TaskView

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
ID = click.IntRange(min=1)


def list_options(command: F) -> F:
    """Add ``--limit`` and the options of the client."""
    limit = click.option(
        "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show at most so many."
    )
    return limit(client_options(command))


def state_option(states: type[Any]) -> Callable[[F], F]:
    """``--state`` with the states of one kind."""
    return click.option("--state", type=click.Choice([one.value for one in states]), help="Only those in this state.")


def newest_option(command: F) -> F:
    """``--newest`` for what grows without end."""
    return click.option("--newest", is_flag=True, help="Show the newest instead of the oldest ones.")(command)


def _print_first(
    client: Client, found: Sequence[T], columns: Sequence[render.Column[T]], limit: int, hint: str = ""
) -> None:
    """Print the first ``limit`` of what was found; one more that was found tells that the limit cut the list."""
    _print(client, found[:limit], columns)
    if len(found) > limit:
        _tell(client, f"… more: the first {limit} are shown; --limit N shows more{hint}")


def _print_newest(
    client: Client, newest: tuple[Sequence[T], int], columns: Sequence[render.Column[T]], limit: int
) -> None:
    """Print the newest, and how many others there are."""
    found, total = newest
    if total > NEWEST_OF:
        raise click.UsageError(f"--newest looks through {NEWEST_OF} at most and there are more: narrow the list")
    _print(client, found, columns)
    if total > limit:
        _tell(client, f"… more: the newest {limit} of {total} are shown; --limit N shows more")


def _print(client: Client, items: Sequence[T], columns: Sequence[render.Column[T]]) -> None:
    if client.as_json:
        render.print_json(items)
    else:
        render.print_list(items, columns)


def _tell(client: Client, words: str) -> None:
    """A line below a list, kept out of what a program reads."""
    click.echo(words, err=client.as_json)


@click.group()
def show() -> None:
    """Look at workflows, tasks, units, jobs, outputs and events."""


@show.command()
@list_options
def workflows(client: Client, limit: int) -> None:
    """List workflows."""
    _print_first(client, Api(client.http).workflows(limit + 1), render.WORKFLOW_COLUMNS, limit)


@show.command()
@click.argument("workflow_id", metavar="ID", type=ID)
@client_options
def workflow(client: Client, workflow_id: int) -> None:
    """Show one workflow and the tasks of its stages."""
    view = Api(client.http).workflow(workflow_id)
    if client.as_json:
        render.print_json(view)
        return
    render.print_fields(
        [
            ("workflow", f"{view.id} {view.name}"),
            ("owner", view.owner),
            ("scope", view.scope),
            ("group", view.group),
            ("labels", view.labels),
            ("created", render.moment(view.created)),
        ]
    )
    render.print_list(view.tasks, render.TASK_COLUMNS)


@show.command()
@click.option("--workflow", "workflow_id", metavar="ID", type=ID, help="Only those of this workflow.")
@state_option(TaskState)
@list_options
def tasks(client: Client, limit: int, workflow_id: Optional[int], state: Optional[str]) -> None:
    """List tasks."""
    _print_first(
        client, Api(client.http).tasks(limit + 1, workflow=workflow_id, state=state), render.TASK_COLUMNS, limit
    )


@show.command()
@click.argument("task_id", metavar="ID", type=ID)
@client_options
def task(client: Client, task_id: int) -> None:
    """Show one task."""
    view = Api(client.http).task(task_id)
    if client.as_json:
        render.print_json(view)
    else:
        render.print_fields(_task_fields(view))


def _task_fields(view: TaskView) -> list[tuple[str, object]]:
    needs = view.requirements
    return [
        ("task", f"{view.id} {view.stage} (workflow {view.workflow_id})"),
        ("state", view.state),
        ("reason", view.state_reason),
        ("input", f"{view.input_kind}{'' if view.input_closed else ', more may come'}"),
        ("units", render.counts(view.units)),
        ("jobs", render.counts(view.jobs)),
        ("share", f"{view.share}, priority {view.priority}"),
        ("needs", f"{needs.cores} cores, {needs.memory_mb} MiB memory, {needs.disk_mb} MiB disk"),
        ("wall time", format_duration(needs.wall_s) if needs.wall_s else None),
        ("GPUs", needs.gpus),
        ("tags", needs.tags),
        *measured_fields(view.measured),
        ("created", render.moment(view.created)),
        ("ended", render.moment(view.ended)),
    ]


@show.command()
@click.argument("task_id", metavar="TASK", type=ID)
@state_option(UnitState)
@list_options
def units(client: Client, limit: int, task_id: int, state: Optional[str]) -> None:
    """List the units of a task."""
    _print_first(client, Api(client.http).units(task_id, limit + 1, state=state), render.UNIT_COLUMNS, limit)


@show.command()
@click.argument("task_id", metavar="TASK", type=ID)
@list_options
def outputs(client: Client, limit: int, task_id: int) -> None:
    """List the confirmed outputs of a task, and where they lie."""
    _print_first(client, Api(client.http).outputs(task_id, limit + 1), render.OUTPUT_COLUMNS, limit)


JOB_COLUMNS: list[render.Column[JobView]] = [
    ("job", lambda job: job.id),
    ("task", lambda job: job.task_id),
    ("state", lambda job: job.state),
    ("units", lambda job: job.n_units),
    ("queue", lambda job: job.queue),
    ("host", lambda job: job.host),
    ("claimed", lambda job: render.moment(job.claimed)),
    ("took", lambda job: render.span(job.claimed, job.ended)),
    ("error", lambda job: render.error_words(job.error_code, job.error_detail)),
]


@show.command()
@click.option("--task", "task_id", metavar="ID", type=ID, help="Only those of this task.")
@state_option(JobState)
@newest_option
@list_options
def jobs(client: Client, limit: int, newest: bool, task_id: Optional[int], state: Optional[str]) -> None:
    """List jobs."""
    api = Api(client.http)
    if newest:
        _print_newest(client, api.newest_jobs(limit, task=task_id, state=state), JOB_COLUMNS, limit)
    else:
        _print_first(
            client, api.jobs(limit + 1, task=task_id, state=state), JOB_COLUMNS, limit, "; --newest shows the last ones"
        )


@show.command()
@click.argument("job_id", metavar="ID", type=ID)
@client_options
def job(client: Client, job_id: int) -> None:
    """Show one job, with what went wrong and what was measured."""
    view = Api(client.http).job(job_id)
    if client.as_json:
        render.print_json(view)
    else:
        render.print_fields(_job_fields(view))


PILOT_COLUMNS: list[render.Column[PilotView]] = [
    ("pilot", lambda pilot: pilot.id),
    ("state", lambda pilot: pilot.state),
    ("queue", lambda pilot: pilot.queue),
    ("host", lambda pilot: pilot.host),
    ("worker", lambda pilot: pilot.worker),
    ("registered", lambda pilot: render.moment(pilot.registered)),
    ("took", lambda pilot: render.span(pilot.registered, pilot.ended)),
    ("reason", lambda pilot: pilot.end_reason),
]


@show.command()
@click.option("--queue", metavar="NAME", help="Only those of this queue.")
@click.option("--failed", is_flag=True, help="Only those that could not start, left with an error, or were lost.")
@list_options
def pilots(client: Client, limit: int, queue: Optional[str], failed: bool) -> None:
    """List the newest pilots. See pilotage show pilot ID for the end of the log of one that failed."""
    found = Api(client.http).newest_pilots(limit, queue=queue, failed=failed or None)
    _print_newest(client, found, PILOT_COLUMNS, limit)


@show.command()
@click.argument("pilot_id", metavar="ID", type=ID)
@client_options
def pilot(client: Client, pilot_id: int) -> None:
    """Show one pilot: the node that it runs on, what it offers, and how it ended."""
    view = Api(client.http).pilot(pilot_id)
    if client.as_json:
        render.print_json(view)
    else:
        render.print_fields(_pilot_fields(view))


def _pilot_fields(view: PilotView) -> list[tuple[str, object]]:
    info, offer = view.node_info or NodeInfo(), view.offer
    power = f", {info.core_power:g} HS23 a core ({info.power_source})" if info.core_power else ""
    cpu = f"{info.cpu_model} {info.cpu_level}, {info.cores} cores, {info.threads} threads{power}"
    gpus = [f"{gpu.model} ({gpu.memory_mb} MiB)" for gpu in offer.gpus] if offer is not None else []
    return [
        ("pilot", f"{view.id} ({view.version})"),
        ("state", view.state),
        ("worker", f"{view.worker}, node {view.node}"),
        ("where", f"queue {view.queue}, site {view.site}, host {view.host}"),
        ("registered", render.moment(view.registered)),
        ("heard of", render.moment(view.heard)),
        ("ended", render.moment(view.ended)),
        ("reason", view.end_reason),
        ("CPU", cpu if view.node_info is not None else None),
        ("memory", f"{info.memory_mb} MiB" if info.memory_mb else None),
        ("system", ", ".join(word for word in (info.os, info.kernel, info.libc) if word)),
        ("GPUs", gpus),
        ("tags", offer.tags if offer is not None else None),
        ("log", view.log_tail),
    ]


def _job_fields(view: JobView) -> list[tuple[str, object]]:
    measured = {name: round(value, 3) if isinstance(value, float) else value for name, value in view.metrics.items()}
    return [
        ("job", f"{view.id} (task {view.task_id}, {view.n_units} units)"),
        ("state", view.state),
        ("where", f"queue {view.queue}, host {view.host}, pilot {view.pilot_id}"),
        ("claimed", render.moment(view.claimed)),
        ("started", render.moment(view.started)),
        ("ended", render.moment(view.ended)),
        ("heartbeat", render.moment(view.heartbeat)),
        ("exit code", view.exit_code),
        ("error", render.error_words(view.error_code, view.error_detail)),
        ("measured", measured),
        ("log", view.log_did),
    ]


EVENT_COLUMNS: list[render.Column[EventView]] = [
    ("event", lambda event: event.id),
    ("time", lambda event: render.moment(event.time)),
    ("what", lambda event: f"{event.subject} {event.subject_id}"),
    ("kind", lambda event: event.kind),
    ("from", lambda event: render.state(event.source or "")),
    ("to", lambda event: render.state(event.target or "")),
    ("detail", lambda event: event.detail),
]


@show.command()
@click.option("--task", "task_id", metavar="ID", type=ID, help="Only those of this task.")
@click.option("--job", "job_id", metavar="ID", type=ID, help="Only those of this job.")
@newest_option
@list_options
def events(client: Client, limit: int, newest: bool, task_id: Optional[int], job_id: Optional[int]) -> None:
    """List recorded changes of state."""
    api = Api(client.http)
    if newest:
        _print_newest(client, api.newest_events(limit, task=task_id, job=job_id), EVENT_COLUMNS, limit)
    else:
        _print_first(
            client,
            api.events(limit + 1, task=task_id, job=job_id),
            EVENT_COLUMNS,
            limit,
            "; --newest shows the last ones",
        )


show.add_command(demand)
show.add_command(workers)
show.add_command(shares)
