"""``pilotage admin retry-rule`` and ``blocked-host``: what becomes of failures, and of hosts that fail jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import click
import msgspec

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.options import duration, size
from common.cli.strict import InputError, convert
from common.cli.textfile import read_table
from common.http import quoted
from common.problem import FieldError
from common.wire import BlockedHost, BlockedHostList, ErrorSource, RetryRule, RetryRuleList

F = TypeVar("F", bound=Callable[..., Any])
RULES = "/v1/retry-rules"
HOSTS = "/v1/blocked-hosts"
KINDS = ("no_retry", "limit_retry", "more_memory", "more_time", "custom")


@click.group("retry-rule", help="Say which failures are tried again, and with what.")
def retry_rule() -> None:
    """Rules that the server holds against each failed job."""


@retry_rule.command("list")
@client_options
def list_rules(client: Client) -> None:
    """List all rules, in the order in which they are asked."""
    found = _every(client)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, RULE_COLUMNS)


@retry_rule.command("show")
@click.argument("name")
@client_options
def show_rule(client: Client, name: str) -> None:
    """Show one rule."""
    found = _one(client, name)
    if found is None:
        raise click.ClickException(f"there is no retry rule {name!r}; pilotage admin retry-rule list shows all")
    _print(client, found)


@retry_rule.command("delete")
@click.argument("name")
@client_options
def delete_rule(client: Client, name: str) -> None:
    """Delete a rule."""
    client.http.call("DELETE", f"{RULES}/{quoted(name)}", None, type(None))
    if not client.as_json:
        click.echo(f"retry rule {name} is deleted")


def _rule_options(command: F) -> F:
    options = (
        click.option("--position", type=click.IntRange(min=0), help="Rules are asked in this order."),
        click.option("--active/--passive", default=None, help="Apply it, or only leave an event where it would apply."),
        click.option("--source", "sources", multiple=True, type=click.Choice([each.value for each in ErrorSource])),
        click.option(
            "--code", "error_codes", multiple=True, metavar="N", help="An error number, or a range 1200..1207."
        ),
        click.option(
            "--exit-code", "exit_codes", multiple=True, metavar="N", help="The payload's, or a range of them."
        ),
        click.option("--message", help="A regular expression, looked for in the error's words."),
        click.option("--share", "shares", multiple=True, help="Only tasks of this share."),
        click.option("--site", "sites", multiple=True, help="Only jobs at this site."),
        click.option("--image", "images", multiple=True, help="Only tasks with this image; * and ? are wildcards."),
        click.option("--tag", "tags", multiple=True, help="Only tasks that ask for this tag."),
        click.option("--architecture", "architectures", multiple=True, help="Only nodes with this tag, as x86_64-v3."),
        click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only workflows with this label."),
        click.option("--action", "kind", type=click.Choice(KINDS), help="What to do."),
        click.option("--limit", type=click.IntRange(min=1), help="limit_retry: how often."),
        click.option("--factor", type=float, help="more_memory, more_time: how many times as much."),
        click.option("--memory-step", "step_mb", type=size, help="more_memory: so much more, as 2GiB."),
        click.option("--memory-cap", "cap_mb", type=size, help="more_memory: never above this."),
        click.option("--time-step", "step_s", type=duration, help="more_time: so much more, as 6h."),
        click.option("--time-cap", "cap_s", type=duration, help="more_time: never above this."),
        click.option("--plugin", help="custom: the plug-in's name."),
        click.option("--description", help="For people."),
        click.option("--file", type=click.Path(path_type=Path), help="Take the rule from this TOML or JSON file."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@retry_rule.command("set")
@click.argument("name")
@_rule_options
@client_options
def set_rule(client: Client, name: str, file: Optional[Path], **options: Any) -> None:
    """Make or change a rule: a file replaces the whole of it, options only what they name."""
    if file is not None:
        table = _from_file(file, name)
    else:
        table = msgspec.to_builtins(_one(client, name)) or {}
    given = {field: value for field, value in options.items() if value not in (None, ())}
    _change(table, given)
    table["name"] = name
    rule = convert(table, RetryRule, str(file) if file is not None else f"retry rule {name}")
    _print(client, client.http.call("PUT", f"{RULES}/{quoted(name)}", rule, RetryRule))


_ACTION = ("limit", "factor", "step_mb", "cap_mb", "step_s", "cap_s", "plugin")
_RULE = ("position", "active", "description")


def _change(table: dict[str, Any], given: dict[str, Any]) -> None:
    """Put options where they belong: the rule itself, its action, or its condition."""
    labels = given.pop("labels", ())
    kind = given.pop("kind", None)
    if kind is not None and table.get("action", {}).get("kind") != kind:
        table["action"] = {"kind": kind}
    for field, value in given.items():
        if field in _RULE:
            table[field] = value
        elif field in _ACTION:
            table.setdefault("action", {})[field] = value
        else:
            table.setdefault("when", {})[field] = list(value) if isinstance(value, tuple) else value
    if labels:
        table.setdefault("when", {})["labels"] = dict(_pair(each) for each in labels)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r}: write KEY=VALUE", param_hint="--label")
    return key, value


def _from_file(file: Path, name: str) -> dict[str, Any]:
    table = read_table(file)
    if table.get("name", name) != name:
        words = f"the file describes {table['name']!r}, the command line says {name!r}: make them agree"
        raise InputError(str(file), [FieldError("name", words)])
    return table


def _every(client: Client) -> list[RetryRule]:
    return client.http.call("GET", RULES, None, RetryRuleList).items


def _one(client: Client, name: str) -> Optional[RetryRule]:
    return next((each for each in _every(client) if each.name == name), None)


def _print(client: Client, rule: RetryRule) -> None:
    if client.as_json:
        render.print_json(rule)
        return
    render.print_fields(
        [
            ("name", rule.name),
            ("position", rule.position),
            ("active", "yes" if rule.active else "no: it only leaves events"),
            ("applies to", _condition(rule)),
            ("action", _action(rule)),
            ("description", rule.description),
        ]
    )


def _condition(rule: RetryRule) -> str:
    """The condition in words: what is given, joined by "and"."""
    given = msgspec.to_builtins(rule.when)
    parts = [f"{name.replace('_', ' ')} {_words(value)}" for name, value in given.items()]
    return " and ".join(parts) or "every failure"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _action(rule: RetryRule) -> str:
    given = msgspec.to_builtins(rule.action)
    kind = given.pop("kind")
    return " ".join([kind, *(f"{name} {_words(value)}" for name, value in given.items())])


RULE_COLUMNS: list[render.Column[RetryRule]] = [
    ("position", lambda rule: rule.position),
    ("rule", lambda rule: rule.name),
    ("active", lambda rule: "yes" if rule.active else "no"),
    ("applies to", _condition),
    ("action", _action),
]


@click.group("blocked-host", help="Hosts that get nothing because they failed jobs fast.")
def blocked_host() -> None:
    """Black-hole hosts."""


@blocked_host.command("list")
@client_options
def list_hosts(client: Client) -> None:
    """List the hosts that get nothing now."""
    found = client.http.call("GET", HOSTS, None, BlockedHostList).items
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, HOST_COLUMNS)


@blocked_host.command("unblock")
@click.argument("queue")
@click.argument("host")
@client_options
def unblock(client: Client, queue: str, host: str) -> None:
    """Give a host work again, and forget what it failed."""
    client.http.call("DELETE", f"{HOSTS}/{quoted(queue)}/{quoted(host)}", None, type(None))
    if not client.as_json:
        click.echo(f"host {host} of queue {queue} gets work again")


HOST_COLUMNS: list[render.Column[BlockedHost]] = [
    ("queue", lambda host: host.queue),
    ("host", lambda host: host.host),
    ("until", lambda host: render.moment(host.until)),
    ("times", lambda host: host.blocks),
    ("last error", lambda host: render.error_words(host.error_code, "")),
]
