"""``pilotage server user``: the people of the built-in issuer. It works on the database, and so on the server's machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

import click
import msgspec

from common.errors import ErrorCode, PilotageError
from common.tokens import write_secret_file
from common.wire import Name
from server.access import logins
from server.app import create_dispatcher
from server.config import ServerConfig
from server.dispatch.context import Dispatcher
from server.engine.access import GIVEN, Role
from server.store import access
from server.store.database import DatabaseUnavailable

_ROLES = tuple(sorted(role.value for role in GIVEN))


@contextmanager
def on_database(config: ServerConfig) -> Iterator[Dispatcher]:
    """A dispatcher for a command of the server's machine; a database that cannot be used is told with what to do."""
    dispatcher = create_dispatcher(config)
    try:
        yield dispatcher
    except DatabaseUnavailable as error:
        words = f"[server] database: {error}; a new one is prepared by pilotage server migrate, or by the first start"
        raise PilotageError(ErrorCode.BAD_CONFIGURATION, words) from error
    finally:
        dispatcher.database.close()


@click.group()
def user() -> None:
    """The people whom this server knows itself."""


@user.command("add")
@click.argument("name")
@click.option("--role", "roles", type=click.Choice(_ROLES), multiple=True, required=True, help="What they may do.")
@click.option("--group", "groups", multiple=True, help="A group that they belong to; may be repeated.")
@click.option("--output", type=click.Path(path_type=Path), help="File for the code, mode 0600; else standard output.")
@click.pass_obj
def add(
    config: tuple[Any, ServerConfig], name: str, roles: tuple[str, ...], groups: tuple[str, ...], output: Optional[Path]
) -> None:
    """Make a person known, or change their roles and groups; prints a one-time code for ``pilotage login``."""
    for each in (name, *groups):
        _check_name(each)
    with on_database(config[1]) as dispatcher:
        code, expires = logins.invite(dispatcher, name, [Role(each) for each in roles], groups)
    if output is None:
        click.echo(code)
    else:
        write_secret_file(output, code)
    until = datetime.fromtimestamp(expires, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    click.echo(f"give this code to {name}, who runs: pilotage login --code; it is good once, until {until}", err=True)


@user.command("list")
@click.pass_obj
def list_all(config: tuple[Any, ServerConfig]) -> None:
    """List the people whom this server knows itself."""
    with on_database(config[1]) as dispatcher, dispatcher.database.read() as connection:
        for each in access.people(connection):
            click.echo(f"{each.name}\t{','.join(each.roles)}\t{','.join(each.groups)}")


@user.command("remove")
@click.argument("name")
@click.pass_obj
def remove(config: tuple[Any, ServerConfig], name: str) -> None:
    """Forget a person; to cut off tokens that are out at once, ban the person too."""
    with on_database(config[1]) as dispatcher:
        found = logins.forget(dispatcher, name)
    if not found:
        raise click.ClickException(f"nobody is called {name!r}; pilotage server user list shows all")
    click.echo(f"{name} is forgotten")


def _check_name(name: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        words = f"{name!r}: letters, digits and . _ + -, beginning with a letter or digit"
        raise PilotageError(ErrorCode.BAD_CONFIGURATION, words) from error
