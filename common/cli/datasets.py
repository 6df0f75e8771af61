"""``pilotage datasets``: datasets of outputs, their files, and registrations that wait."""

from __future__ import annotations

from typing import Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.paging import all_of
from common.http import quoted
from common.quantities import format_size
from common.wire import DatasetKind, DatasetPage, DatasetView, OutputPage, RegistrationPage, RegistrationView

COLUMNS: list[render.Column[DatasetView]] = [
    ("dataset", lambda one: one.did),
    ("kind", lambda one: one.kind),
    ("task", lambda one: one.task_id),
    ("storage", lambda one: one.storage),
    ("files", lambda one: one.files),
    ("size", lambda one: format_size(one.bytes)),
    ("rule ends", lambda one: render.moment(one.expires) if one.expires else None),
]
WAITING_COLUMNS: list[render.Column[RegistrationView]] = [
    ("job", lambda one: one.job_id),
    ("task", lambda one: one.task_id),
    ("since", lambda one: render.moment(one.since)),
    ("tries", lambda one: one.tries),
    ("next", lambda one: render.moment(one.next_try)),
    ("what", lambda one: "is taken out again" if one.withdrawing else "is registered"),
    ("error", lambda one: one.error),
]
LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Show at most so many."
)


@click.group()
def datasets() -> None:
    """Look at datasets of outputs and at what waits for its registration."""


@datasets.command("list")
@click.option("--task", "task_id", metavar="ID", type=click.IntRange(min=1), help="Only those of this task.")
@click.option("--scope", help="Only those of this scope.")
@click.option("--kind", type=click.Choice([one.value for one in DatasetKind]), help="Only those of this kind.")
@LIMIT
@client_options
def list_datasets(
    client: Client, task_id: Optional[int], scope: Optional[str], kind: Optional[str], limit: int
) -> None:
    """List datasets."""
    found = all_of(client.http, "/v1/datasets", DatasetPage, limit, task=task_id, scope=scope, kind=kind)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COLUMNS)


@datasets.command()
@click.argument("did", metavar="SCOPE:NAME")
@LIMIT
@client_options
def files(client: Client, did: str, limit: int) -> None:
    """List the visible files of a dataset."""
    found = all_of(client.http, f"/v1/datasets/{quoted(did)}/files", OutputPage, limit)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, render.OUTPUT_COLUMNS)


@datasets.command()
@click.option("--task", "task_id", metavar="ID", type=click.IntRange(min=1), help="Only jobs of this task.")
@LIMIT
@client_options
def waiting(client: Client, task_id: Optional[int], limit: int) -> None:
    """List confirmed jobs whose outputs are not registered yet, and why."""
    found = all_of(client.http, "/v1/registrations", RegistrationPage, limit, task=task_id)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, WAITING_COLUMNS)
