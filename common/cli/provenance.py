"""``pilotage provenance`` and ``pilotage trace``: where an output comes from, and what ran where for whom."""

from __future__ import annotations

from typing import Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.paging import all_of
from common.http import quoted
from common.wire import ProvenanceView, TracePage, TraceView

COLUMNS: list[render.Column[TraceView]] = [
    ("job", lambda one: one.id),
    ("task", lambda one: one.task_id),
    ("state", lambda one: one.state),
    ("user", lambda one: one.owner),
    ("group", lambda one: one.group),
    ("queue", lambda one: one.queue),
    ("host", lambda one: one.host),
    ("batch job", lambda one: one.batch_id),
    ("claimed", lambda one: render.moment(one.claimed)),
    ("ended", lambda one: render.moment(one.ended)),
]


@click.command()
@click.argument("did", metavar="SCOPE:NAME")
@client_options
def provenance(client: Client, did: str) -> None:
    """Tell where an output comes from: task, script, image, input, job, node."""
    view = client.http.call("GET", f"/v1/outputs/{quoted(did)}/provenance", None, ProvenanceView)
    if client.as_json:
        render.print_json(view)
        return
    job, task, output = view.job, view.task, view.output
    inputs = [unit.get("did") or unit.get("counter") or unit["id"] for unit in job.get("units", [])]
    render.print_fields(
        [
            ("output", view.did),
            ("file", f"{output.get('storage')}: {output.get('path')}, {output.get('size')} bytes"),
            ("checksum", output.get("checksum")),
            ("task", f"{task.get('task')} {task.get('stage')} (workflow {task.get('workflow', {}).get('id')})"),
            ("user", f"{task.get('owner')} {task.get('group') or ''}".strip()),
            ("script", task.get("jobscript_sha256")),
            ("image", task.get("image")),
            ("job", f"{job.get('job')} in queue {job.get('queue')} on host {job.get('host')}"),
            ("claimed", render.moment(job.get("claimed"))),
            ("ended", render.moment(job.get("ended"))),
            ("input", ", ".join(map(str, inputs[:20])) + (f" … {len(inputs)} in all" if len(inputs) > 20 else "")),
            ("more", "--json tells all: the script itself, requirements, common input"),
        ]
    )


@click.command()
@click.option("--host", help="Jobs on this host.")
@click.option("--user", help="Jobs for this user.")
@click.option("--site", help="Only those at this site.")
@click.option(
    "--from", "since", metavar="TIME", help="Only those that ran after this moment, such as 2026-11-21T08:00."
)
@click.option("--to", "until", metavar="TIME", help="Only those that ran before this moment.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Show at most so many.")
@client_options
def trace(
    client: Client,
    host: Optional[str],
    user: Optional[str],
    site: Optional[str],
    since: Optional[str],
    until: Optional[str],
    limit: int,
) -> None:
    """List which jobs ran on a host or for a user, long archived ones included."""
    if host is None and user is None:
        raise click.UsageError("give --host or --user, or both")
    filters = {"host": host, "user": user, "site": site, "from": since, "to": until}
    found = all_of(client.http, "/v1/trace", TracePage, limit, **filters)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COLUMNS)
