"""``pilotage config``: the configuration in force, and where each value came from."""

from __future__ import annotations

import os
from typing import Any, Optional

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.cli import config_paths
from common.config import fields_of, gather, section_names, section_type
from common.log import mask
from common.plugins import PluginError

NOT_SET = "not set"


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@click.argument("section", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: section, key, value and source.")
@click.pass_context
def show(ctx: click.Context, section: Optional[str], as_json: bool) -> None:
    """Print what is in force, and where each value came from.

    SECTION is client, server, pilot or harvester; without it, all that are installed.
    """
    rows = {name: _rows(ctx, name) for name in ([section] if section else _installed())}
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    table = Table("section", "key", "value", "source")
    for name, settings in rows.items():
        for key, setting in settings.items():
            value = setting["value"]
            shown = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            # Text, because rich would take brackets in a plain string for its markup.
            table.add_row(name, key, Text(shown, overflow="fold"), Text(setting["source"], overflow="fold"))
        table.add_section()
    Console().print(table)


def _installed() -> list[str]:
    names = []
    for name in section_names():
        try:
            section_type(name)
        except PluginError as error:
            click.echo(f"[{name}] left out: {error.detail}", err=True)
        else:
            names.append(name)
    return names


def _rows(ctx: click.Context, name: str) -> dict[str, dict[str, Any]]:
    """Value and source of each key; passwords in URLs are masked."""
    declared = section_type(name)
    settings = gather(declared, name, config_paths(ctx), os.environ)
    rows: dict[str, dict[str, Any]] = {}
    for key in fields_of(declared):
        if key in settings:
            plain = msgspec.to_builtins(settings[key].value)
            value = mask(plain) if isinstance(plain, str) else plain
            rows[key] = {"value": value, "source": settings[key].source}
        else:
            rows[key] = {"value": None, "source": NOT_SET}
    return rows
