"""``pilotage login``, ``logout`` and ``whoami``: who one is for the server."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

import click

from common.cli import load_section, render
from common.cli.client import Client, client_options
from common.cli.session import OURS, Session, granted, load_session, remove_session, save_session
from common.config import ClientConfig, ConfigError
from common.http import HttpClient, HttpError
from common.oidc import OidcHttp, discover, finish_device_flow, printable, start_device_flow
from common.tokens import CODE_PREFIX
from common.wire import CodeLogin, LoginGrant, LoginRenewal, LoginWays, OutsideIssuer, Whoami


def _server(context: click.Context, server_url: Optional[str], ca_file: Optional[str]) -> tuple[str, Optional[str]]:
    """Address and authorities of the server."""
    overrides = {"server_url": server_url, "ca_file": ca_file}
    config = load_section(context, ClientConfig, "client", overrides).value
    if not config.server_url:
        raise ConfigError("no server: give --server URL, set PILOTAGE_CLIENT_SERVER_URL, or [client] server_url")
    return config.server_url, str(Path(config.ca_file).expanduser()) if config.ca_file else None


_SERVER = click.option("--server", "server_url", metavar="URL", help="The server's address.")
_CA_FILE = click.option("--ca-file", type=click.Path(), help="Certificate authorities to verify the server with (PEM).")


@click.command()
@click.option("--code", "with_code", is_flag=True, help="With a one-time code from an admin; it is asked for.")
@click.option("--oidc", "with_oidc", is_flag=True, help="With your institute or experiment, in a browser.")
@click.option("--issuer", metavar="LABEL", help="Which of the server's issuers, if it takes several.")
@_SERVER
@_CA_FILE
@click.pass_context
def login(context: click.Context, /, with_code: bool, with_oidc: bool, issuer: Optional[str], **where: Any) -> None:
    """Log in to the server, and stay logged in."""
    if with_code and (with_oidc or issuer):
        raise click.UsageError("--code and --oidc exclude each other")
    server_url, ca_file = _server(context, **where)
    http = HttpClient(server_url, ca_file=ca_file)
    try:
        offered = [] if with_code else http.call("GET", "/v1/login", None, LoginWays).issuers
        if with_oidc or issuer or offered:
            if not (with_oidc or issuer):
                raise click.UsageError("say how: --code (from an admin), or --oidc (in a browser)")
            session = _with_oidc(http, _chosen(offered, issuer))
        else:
            session = _with_code(http)
    finally:
        http.close()
    path = save_session(session, os.environ)
    who = _whoami(session, ca_file)
    click.echo(f"you are {who.name}, with the roles {', '.join(who.roles) or 'none'}; kept in {path}")
    if os.environ.get("PILOTAGE_TOKEN_FILE"):
        click.echo("note: PILOTAGE_TOKEN_FILE is set and goes first", err=True)


def _with_code(http: HttpClient) -> Session:
    if sys.stdin.isatty():
        code = str(click.prompt("One-time code", hide_input=True))
    else:
        code = sys.stdin.readline()
    code = code.strip()
    if not code.startswith(CODE_PREFIX):
        raise click.ClickException(f"a one-time code begins with {CODE_PREFIX}: paste all of it")
    body = CodeLogin(code, secrets.token_urlsafe(24))
    return granted(http.base_url, http.call("POST", "/v1/login", body, LoginGrant))


def _chosen(offered: list[OutsideIssuer], label: Optional[str]) -> OutsideIssuer:
    labels = [each.label for each in offered]
    found = [each for each in offered if label in (None, each.label)]
    if len(found) != 1:
        words = f"the server takes logins of {', '.join(labels) or 'no issuer'}"
        raise click.ClickException(f"{words}; give --issuer LABEL" if labels else f"{words}: use --code")
    return found[0]


def _with_oidc(http: HttpClient, chosen: OutsideIssuer) -> Session:
    outside = OidcHttp()
    metadata = discover(outside, chosen.issuer)
    code = start_device_flow(outside, metadata, chosen.client_id, chosen.scopes, chosen.audience)
    click.echo(f"In a browser open {code.verification_uri} and enter the code {code.user_code}", err=True)
    if code.complete_uri:
        click.echo(f"or open {code.complete_uri}", err=True)
    click.echo(f"Agree only if that is the page of {printable(chosen.issuer)}. Waiting …", err=True)
    tokens = finish_device_flow(outside, metadata, chosen.client_id, code, threading.Event().wait)
    return Session(
        server=http.base_url,
        issuer=chosen.label,
        access_token=tokens.access_token,
        expires=datetime.now(timezone.utc).timestamp() + tokens.expires_s,
        refresh_token=tokens.refresh_token,
        token_endpoint=metadata.token_endpoint,
        client_id=chosen.client_id,
    )


def _whoami(session: Session, ca_file: Optional[str]) -> Whoami:
    client = HttpClient(session.server, token=lambda: session.access_token, ca_file=ca_file)
    try:
        return client.call("GET", "/v1/whoami", None, Whoami)
    finally:
        client.close()


@click.command()
@_SERVER
@_CA_FILE
@click.pass_context
def logout(context: click.Context, /, **where: Any) -> None:
    """Log out: the server forgets the login, and this machine its token."""
    server_url, ca_file = _server(context, **where)
    session = load_session(server_url, os.environ)
    if session is None:
        click.echo(f"you are not logged in at {server_url}")
        return
    try:
        if session.issuer == OURS:
            http = HttpClient(session.server, ca_file=ca_file, retries=2)
            try:
                http.call("POST", "/v1/logout", LoginRenewal(session.refresh_token), type(None))
            finally:
                http.close()
    except HttpError as error:
        click.echo(f"the server could not be told, its side of the login ends by itself: {error}", err=True)
    finally:
        remove_session(server_url, os.environ)
    click.echo(f"you are logged out at {session.server}")


@click.command()
@client_options
def whoami(client: Client) -> None:
    """Show who you are for the server: name, roles, groups."""
    found = client.http.call("GET", "/v1/whoami", None, Whoami)
    if client.as_json:
        render.print_json(found)
        return
    until = datetime.fromtimestamp(found.expires, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    render.print_fields(
        [
            ("name", found.name),
            ("roles", found.roles),
            ("groups", found.groups),
            ("proved by", found.proof),
            ("token until", until if found.expires else ""),
        ]
    )
