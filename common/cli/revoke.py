"""``pilotage revoke``: refuse tokens that have leaked."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.tokens import CODE_PREFIX, PILOT_PREFIX, REFRESH_PREFIX, SECRET_PREFIX, read_secret_file
from common.wire import RevocationKind, RevocationList, RevocationRequest, RevocationView

PATH = "/v1/revocations"
OURS = (PILOT_PREFIX, REFRESH_PREFIX, CODE_PREFIX, SECRET_PREFIX)
_REASON = click.option("--reason", required=True, help="Why; for other admins.")


@click.group()
def revoke() -> None:
    """Refuse tokens that have leaked, for admins. It cannot be undone: who needs one gets a new one."""


@revoke.command("token")
@click.argument("token_id", metavar="[ID]", required=False)
@click.option(
    "--from", "file", metavar="FILE", type=click.Path(path_type=Path), help="Take the id from the token in this file."
)
@_REASON
@client_options
def token(client: Client, token_id: Optional[str], file: Optional[Path], reason: str) -> None:
    """Refuse one token of a person or program, by its id: its claim jti.

    The token itself stays out of the command line, where others could see it: put it into a file of mode 0600.
    """
    if (token_id is None) == (file is None):
        raise click.UsageError("say which: give the token's id, or --from FILE with the token in it")
    if token_id is not None and (token_id.startswith(OURS) or (token_id.startswith("eyJ") and "." in token_id)):
        raise click.UsageError("that is a token, not its id: put it into a file of mode 0600, and give --from FILE")
    found = token_id if file is None else _id_in(file)
    made = _send(client, RevocationKind.TOKEN, str(found), reason)
    _say(client, made, f"token {made.value} is refused")


@revoke.command("person")
@click.argument("name")
@_REASON
@client_options
def person(client: Client, name: str, reason: str) -> None:
    """Refuse all tokens that a person or program was given until now, and end their logins.

    They may log in again; a ban keeps them out. Who is known by an issuer's name is written ISSUER:SUBJECT.
    """
    made = _send(client, RevocationKind.PERSON, name, reason)
    _say(client, made, f"all tokens that {made.value} was given until now are refused, and their logins are ended")


@revoke.command("pilot")
@click.argument("number", type=click.IntRange(min=1))
@_REASON
@client_options
def pilot(client: Client, number: int, reason: str) -> None:
    """Refuse the tokens of one pilot, by its number: it can neither report nor get anything."""
    made = _send(client, RevocationKind.PILOT, str(number), reason)
    _say(client, made, f"the tokens of pilot {made.value} are refused")


@revoke.command("list")
@client_options
def list_all(client: Client) -> None:
    """List the revocations in force."""
    found = client.http.call("GET", PATH, None, RevocationList).items
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COLUMNS)


def _send(client: Client, kind: RevocationKind, value: str, reason: str) -> RevocationView:
    return client.http.call("POST", PATH, RevocationRequest(kind, value, reason), RevocationView)


def _say(client: Client, made: RevocationView, words: str) -> None:
    if client.as_json:
        render.print_json(made)
    else:
        click.echo(words)


def _id_in(file: Path) -> str:
    """The claim ``jti`` of the token in a file. Raises SecretFileError, or click.ClickException."""
    import jwt

    text = read_secret_file(file)
    if text.startswith(PILOT_PREFIX):
        raise click.ClickException(f"{file}: it is a pilot's token: pilotage revoke pilot NUMBER refuses that")
    if text.startswith(REFRESH_PREFIX):
        raise click.ClickException(f"{file}: it renews a login: pilotage revoke person NAME ends that")
    try:
        claims = jwt.decode(text, options={"verify_signature": False})  # whoever signed it: only its id is of use here
    except (jwt.PyJWTError, RecursionError) as error:
        raise click.ClickException(f"{file}: it holds no token that has an id") from error
    found = claims.get("jti")
    if not isinstance(found, str) or not found:
        raise click.ClickException(f"{file}: the token has no id (claim jti): pilotage revoke person NAME refuses it")
    return found


COLUMNS: list[render.Column[RevocationView]] = [
    ("kind", lambda each: each.kind.value),
    ("of", lambda each: each.value),
    ("reason", lambda each: each.reason),
    ("by", lambda each: each.author),
    ("since", lambda each: render.moment(each.time)),
    ("until", lambda each: render.moment(each.expires)),
]
