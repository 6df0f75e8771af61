"""What the user's sub-commands share: the options that say which server to call, and the client that calls it."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, cast

import click

from common.cli import load_section
from common.cli.session import session_token
from common.config import ClientConfig, ConfigError, Loaded
from common.http import HttpClient, ProblemError
from common.tokens import discover_token

F = TypeVar("F", bound=Callable[..., Any])
UNAUTHORIZED = 401


@dataclass(frozen=True)
class Client:
    """The server that a command talks to, and whether it was asked to print JSON."""

    http: HttpClient
    as_json: bool


def client_options(command: F) -> F:
    """Give a click command ``--server``, ``--token-file``, ``--ca-file`` and ``--json``.

    The function gets a :class:`Client` as its keyword argument ``client``; the connection is closed when it returns.
    """

    @click.option("--server", "server_url", metavar="URL", help="The server's address.")
    @click.option("--token-file", type=click.Path(), help="A file (mode 0600) with your token.")
    @click.option("--ca-file", type=click.Path(), help="Certificate authorities to verify the server with (PEM).")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
    @functools.wraps(command)
    def with_client(
        *args: Any,
        server_url: Optional[str],
        token_file: Optional[str],
        ca_file: Optional[str],
        as_json: bool,
        **kwargs: Any,
    ) -> Any:
        overrides = {"server_url": server_url, "token_file": token_file, "ca_file": ca_file}
        loaded = load_section(click.get_current_context(), ClientConfig, "client", overrides)
        http = build_http(loaded)
        try:
            return command(*args, client=Client(http, as_json), **kwargs)
        except ProblemError as error:
            if error.status == UNAUTHORIZED and find_token(loaded) is None:
                raise click.ClickException(
                    "the server wants a token, and none was found: run pilotage login, give --token-file FILE, or name"
                    " the file in PILOTAGE_TOKEN_FILE"
                ) from error
            raise
        finally:
            http.close()

    return cast(F, with_client)


def build_http(loaded: Loaded[ClientConfig]) -> HttpClient:
    """A client as configured; it looks the token up anew for each call. Raises ConfigError, or PilotageError."""
    config = loaded.value
    if not config.server_url:
        raise ConfigError("no server: give --server URL, set PILOTAGE_CLIENT_SERVER_URL, or [client] server_url")
    ca_file = Path(config.ca_file).expanduser() if config.ca_file else None
    return HttpClient(config.server_url, token=lambda: find_token(loaded), ca_file=ca_file)


def find_token(loaded: Loaded[ClientConfig]) -> Optional[str]:
    """The user's token, None when there is none anywhere. Raises SecretFileError."""
    token_file = loaded.value.token_file
    if loaded.sources["token_file"].startswith("file ") and os.environ.get("PILOTAGE_TOKEN_FILE"):
        token_file = None  # the environment is stronger than a file, under this name too
    return discover_token(token_file, os.environ, lambda: _login_token(loaded.value))


def _login_token(config: ClientConfig) -> Optional[str]:
    if not config.server_url:
        return None
    ca_file = str(Path(config.ca_file).expanduser()) if config.ca_file else None
    return session_token(config.server_url, os.environ, ca_file)
