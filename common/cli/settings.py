"""``pilotage admin setting``: look at the server's settings, and turn them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Union

import click
import msgspec
from rich.text import Text

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.completion import names
from common.http import quoted
from common.quantities import QuantityError, format_duration, parse_duration

SETTINGS = "/v1/settings"
OPENAPI = "/v1/openapi.json"
SCHEMA = "Knobs"
"""What the server's OpenAPI document calls all settings together; their defaults stand there."""
RATES = ("_per_s", "_kb_s")
"""Ends of names that are no durations although they end like one."""
SWITCH = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
MOST_NEAR = 3


class Setting(msgspec.Struct):
    """A setting as it is now; ``default`` is what it is until somebody turns it, ``choices`` the words it can be."""

    key: str
    value: Any
    default: Any
    choices: list[str] = []

    @property
    def changed(self) -> bool:
        """Whether it is not at its default."""
        return bool(self.value != self.default)


class _Schema(msgspec.Struct):
    """The part of a JSON schema that is needed here."""

    properties: dict[str, _Schema] = {}
    default: Any = None
    enum: list[Any] = []
    ref: str = msgspec.field(default="", name="$ref")


class _Components(msgspec.Struct):
    schemas: dict[str, _Schema] = {}

    def setting(self, key: str) -> _Schema:
        """What a setting can be, and is without anybody's doing."""
        return self.schemas.get(SCHEMA, _Schema()).properties.get(key, _Schema())

    def choices(self, key: str) -> list[str]:
        """The words that a setting can be; none where it is no word."""
        found = self.schemas.get(self.setting(key).ref.rpartition("/")[2], _Schema())
        return sorted(map(str, found.enum))


class _OpenApi(msgspec.Struct):
    components: _Components


@click.group("setting", help="Look at the server's settings, and turn them without a restart.")
def setting() -> None:
    """Heartbeats, time-outs, caps, scouts: the reference of the protocol says under Knobs what each means."""


_KEY = click.argument("key", shell_complete=names(SETTINGS, dict[str, Any], list))


@setting.command("list")
@click.option("--changed", is_flag=True, help="Only those that are not at their default.")
@client_options
def list_all(client: Client, changed: bool) -> None:
    """List all settings with their defaults."""
    found = [each for each in _every(client) if each.changed or not changed]
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COLUMNS)


@setting.command("show")
@_KEY
@client_options
def show(client: Client, key: str) -> None:
    """Show one setting."""
    _print(client, _one(client, key))


def _choices(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Values to complete: the words that the named setting can be, nothing for numbers."""
    pick = names(OPENAPI, _OpenApi, lambda reply: reply.components.choices(str(context.params.get("key"))))
    return pick(context, _, incomplete)


# A negative number is no option: it is told what is wrong with it as a value.
@setting.command("set", context_settings={"ignore_unknown_options": True})
@_KEY
@click.argument("value", shell_complete=_choices)
@client_options
def set_value(client: Client, key: str, value: str) -> None:
    """Turn a setting; all server processes follow within seconds.

    VALUE is a number, a duration such as 90s or 12h for times (a bare number means seconds), true or false for
    switches, or names with commas between them for lists ('' for none):

    \b
        pilotage admin setting set heartbeat_s 5m
        pilotage admin setting set user_priority true
        pilotage admin setting set production_shares mc,reprocessing
    """
    before = _one(client, key)
    body = {"value": _parsed(before, value)}
    _tell(client, before, client.http.call("PUT", f"{SETTINGS}/{quoted(key)}", body, dict[str, Any]))


@setting.command("reset")
@_KEY
@client_options
def reset(client: Client, key: str) -> None:
    """Put a setting back to its default, now and with every later version of the server."""
    before = _one(client, key)
    _tell(client, before, client.http.call("DELETE", f"{SETTINGS}/{quoted(key)}", None, dict[str, Any]))


def _tell(client: Client, before: Setting, after: Mapping[str, Any]) -> None:
    """What became of a setting."""
    key = before.key
    now = Setting(key, after.get(key), before.default, before.choices)
    if client.as_json:
        render.print_json(now)
    elif now.value == before.value:
        click.echo(f"{key} stays {_words(key, now.value)}")
    else:
        click.echo(f"{key} is {_words(key, now.value)}, was {_words(key, before.value)}")


def _every(client: Client) -> list[Setting]:
    values = client.http.call("GET", SETTINGS, None, dict[str, Any])
    known = client.http.call("GET", OPENAPI, None, _OpenApi).components
    return [Setting(key, value, known.setting(key).default, known.choices(key)) for key, value in values.items()]


def _one(client: Client, key: str) -> Setting:
    found = {each.key: each for each in _every(client)}
    if key not in found:
        raise click.ClickException(f"there is no setting {key!r}{_near(key, found)}")
    return found[key]


def _near(key: str, known: Mapping[str, object]) -> str:
    """How to go on from a name that is not known."""
    close = difflib.get_close_matches(key, known, n=MOST_NEAR, cutoff=0.6)
    holding = [each for each in known if key.lower() in each and each not in close]
    near = (close + holding)[:MOST_NEAR]
    question = f": did you mean {' or '.join(near)}?" if near else ";"
    return f"{question} pilotage admin setting list shows all"


def is_duration(key: str) -> bool:
    """Whether a setting is a time in seconds."""
    return key.endswith("_s") and not key.endswith(RATES)


def _parsed(before: Setting, text: str) -> Any:
    """What a person wrote, as the type of the present value. Raises click.BadParameter."""
    key, present = before.key, before.value
    if isinstance(present, bool):
        if text.lower() not in SWITCH:
            raise _wrong(key, text, "write true or false")
        return SWITCH[text.lower()]
    if isinstance(present, (int, float)):
        return _duration(key, text) if is_duration(key) else _number(key, text, whole=isinstance(present, int))
    if isinstance(present, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    if before.choices and text not in before.choices:
        raise _wrong(key, text, f"write {' or '.join(before.choices)}")
    return text


def _duration(key: str, text: str) -> float:
    try:
        return parse_duration(text, key)
    except QuantityError as error:
        raise _wrong(key, text, error.remedy) from error


def _number(key: str, text: str, *, whole: bool) -> Union[int, float]:
    try:
        number = float(text)
    except ValueError as error:
        raise _wrong(key, text, "write a whole number" if whole else "write a number") from error
    if not math.isfinite(number):
        raise _wrong(key, text, "write a number")
    if whole and not number.is_integer():
        raise _wrong(key, text, "write a whole number")
    return int(number) if whole else number


def _wrong(key: str, text: str, remedy: str) -> click.BadParameter:
    return click.BadParameter(f"{key}: {text!r}: {remedy}", param_hint="VALUE")


def _words(key: str, value: object) -> str:
    """A value as :func:`set_value` takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return format_duration(value) if is_duration(key) else f"{value:.12g}"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "" if value is None else str(value)


def _print(client: Client, found: Setting) -> None:
    if client.as_json:
        render.print_json(found)
        return
    choices = ("choices", found.choices)
    render.print_fields([*((name, get(found)) for name, get in COLUMNS), choices])


COLUMNS: list[render.Column[Setting]] = [
    ("setting", lambda each: each.key),
    ("value", lambda each: Text(_words(each.key, each.value), style="bold" if each.changed else "")),
    ("default", lambda each: _words(each.key, each.default)),
    ("changed", lambda each: "yes" if each.changed else ""),
]
