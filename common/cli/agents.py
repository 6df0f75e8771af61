"""``pilotage agents``: the server's periodic duties, and their switches."""

from __future__ import annotations

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.http import quoted
from common.quantities import format_about
from common.wire import AgentList, AgentSwitch, AgentView

COLUMNS: list[render.Column[AgentView]] = [
    ("agent", lambda agent: agent.name),
    ("every", lambda agent: format_about(agent.period_s)),
    ("last run", lambda agent: render.moment(agent.started)),
    ("took", lambda agent: format_about(agent.seconds)),
    ("handled", lambda agent: agent.handled),
    ("runs", lambda agent: agent.runs),
    ("overruns", lambda agent: agent.overruns),
    ("errors", lambda agent: agent.errors),
    ("now", lambda agent: _now(agent)),
]


def _now(agent: AgentView) -> str:
    """One word or two on how it does."""
    if not agent.enabled:
        return "off"
    if agent.error:
        return f"failing: {agent.error}"
    if agent.late_s:
        return f"late by {format_about(agent.late_s)}"
    return "slow" if agent.overrun else "well"


@click.group()
def agents() -> None:
    """Look at the server's agents, and switch them on and off."""


@agents.command("list")
@client_options
def list_all(client: Client) -> None:
    """List all agents with their last run."""
    found = client.http.call("GET", "/v1/agents", None, AgentList).items
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COLUMNS)


def _switch(client: Client, name: str, enabled: bool) -> None:
    view = client.http.call("PUT", f"/v1/agents/{quoted(name)}", AgentSwitch(enabled), AgentView)
    if client.as_json:
        render.print_json(view)
    else:
        click.echo(f"agent {view.name} is {'on' if view.enabled else 'off'}; its runners notice within seconds")


@agents.command()
@click.argument("name")
@client_options
def on(client: Client, name: str) -> None:
    """Let an agent run again."""
    _switch(client, name, True)


@agents.command()
@click.argument("name")
@client_options
def off(client: Client, name: str) -> None:
    """Keep an agent from running; what it is doing now it ends."""
    _switch(client, name, False)
