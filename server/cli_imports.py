"""``pilotage server import``: sites, storages and distances from a catalogue, now, or only what would change."""

from __future__ import annotations

from typing import Any

import click

from common.errors import ErrorCode, PilotageError
from server.agents.import_world import import_from
from server.catalogs.base import CatalogError
from server.cli_people import on_database
from server.config import ServerConfig
from server.engine.imports import report


@click.command("import")
@click.argument("catalog")
@click.option("--dry-run", is_flag=True, help="Say what would be changed, and change nothing.")
@click.pass_obj
def import_command(config: tuple[Any, ServerConfig], catalog: str, dry_run: bool) -> None:
    """Import sites, storages and distances from CATALOG, as the agent import-world does each hour."""
    with on_database(config[1]) as dispatcher:
        try:
            found = import_from(dispatcher, catalog, dry=dry_run)
        except CatalogError as error:
            raise PilotageError(ErrorCode.SERVICE_UNAVAILABLE, f"catalogue {catalog}: {error}") from error
    for line in report(found.changes):
        click.echo(line)
    done = "would be changed" if dry_run else "changed"
    click.echo(f"{len(found.steps)} {done}, {len(found.changes) - len(found.steps)} left as they are")
