"""Names that the shell completes: they are asked of the server while a command line is typed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable

import click

from common.cli import Frame

WAIT_S = 2.0
"""Who types waits no longer for names."""
Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def names(path: str, reply_type: Any, pick: Callable[[Any], Iterable[str]]) -> Completer:
    """What ``shell_complete`` of a parameter takes: the names that ``pick`` finds in the reply to ``GET path``."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        from common.errors import PilotageError

        try:
            found = pick(_ask(context, path, reply_type))
        except (PilotageError, OSError):
            return []  # a line that is being typed is no place for errors: the command itself will tell
        return sorted(name for name in found if name.startswith(incomplete))

    return complete


def item_names(path: str, reply_type: Any) -> Completer:
    """The same for a list whose items have names."""
    return names(path, reply_type, lambda reply: (each.name for each in reply.items))


def _ask(context: click.Context, path: str, reply_type: Any) -> Any:
    from common.cli import load_section
    from common.cli.client import build_http
    from common.config import ClientConfig

    root = context.find_root()
    if root.obj is None:  # while a line is completed, click runs no command that would have said what is before it
        root.obj = Frame(config_file=root.params.get("config_file"))
    overrides = {name: context.params.get(name) for name in ("server_url", "token_file", "ca_file")}
    http = build_http(load_section(context, ClientConfig, "client", overrides))
    try:
        return http.call("GET", path, None, reply_type, total_s=WAIT_S, retry=False)
    finally:
        http.close()
