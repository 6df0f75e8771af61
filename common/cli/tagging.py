"""``pilotage admin tagging-rule``: which share, priority and labels new tasks get, whatever their users ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import click
import msgspec

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.strict import InputError, convert
from common.cli.textfile import read_table
from common.http import quoted
from common.problem import FieldError
from common.wire import TaggingRule, TaggingRuleList

RULES = "/v1/tagging-rules"
_CONDITION = ("owner", "group", "workflow", "stage", "image", "scope")


@click.group("tagging-rule", help="Give new tasks a share, a priority or labels by rules.")
def tagging_rule() -> None:
    """Rules that the server holds against each new task."""


@tagging_rule.command("list")
@client_options
def list_rules(client: Client) -> None:
    """List all rules, in the order in which they are asked."""
    found = _every(client)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COLUMNS)


@tagging_rule.command("show")
@click.argument("name")
@client_options
def show_rule(client: Client, name: str) -> None:
    """Show one rule."""
    _print(client, client.http.call("GET", f"{RULES}/{quoted(name)}", None, TaggingRule))


@tagging_rule.command("delete")
@click.argument("name")
@client_options
def delete_rule(client: Client, name: str) -> None:
    """Delete a rule."""
    client.http.call("DELETE", f"{RULES}/{quoted(name)}", None, type(None))
    if not client.as_json:
        click.echo(f"tagging rule {name} is deleted")


@tagging_rule.command("set")
@click.argument("name")
@click.option("--position", type=click.IntRange(min=0), help="Rules are asked in this order.")
@click.option("--active/--passive", default=None, help="Whether it is asked at all.")
@click.option("--owner", help="A regular expression that the owner must match; likewise below.")
@click.option("--group", help="The group's name.")
@click.option("--workflow", help="The workflow's name.")
@click.option("--stage", help="The stage's name.")
@click.option("--image", help="The container image.")
@click.option("--scope", help="The scope of the outputs.")
@click.option("--if-share", help="The share that the user asked for.")
@click.option("--if-label", "labels", multiple=True, metavar="KEY=REGEX", help="A label of the workflow.")
@click.option("--if-attribute", "attributes", multiple=True, metavar="KEY=REGEX", help="An attribute of the task.")
@click.option("--share", help="Give this share.")
@click.option("--priority", type=int, help="Give this priority.")
@click.option("--label", "tags", multiple=True, metavar="KEY=VALUE", help="Give this label.")
@click.option("--description", help="For people.")
@click.option("--file", type=click.Path(path_type=Path), help="Take the rule from this TOML or JSON file.")
@client_options
def set_rule(client: Client, name: str, file: Optional[Path], **options: Any) -> None:
    """Make or change a rule: a file replaces the whole of it, options only what they name."""
    if file is not None:
        table = read_table(file)
        if table.get("name", name) != name:
            words = f"the file describes {table['name']!r}, the command line says {name!r}: make them agree"
            raise InputError(str(file), [FieldError("name", words)])
    else:
        table = next((msgspec.to_builtins(each) for each in _every(client) if each.name == name), {})
    _change(table, {field: value for field, value in options.items() if value not in (None, ())})
    table["name"] = name
    rule = convert(table, TaggingRule, str(file) if file is not None else f"tagging rule {name}")
    _print(client, client.http.call("PUT", f"{RULES}/{quoted(name)}", rule, TaggingRule))


def _change(table: dict[str, Any], given: dict[str, Any]) -> None:
    """Put options where they belong: the rule itself, its condition, or what it gives."""
    when, gives = table.setdefault("when", {}), table.setdefault("set", {})
    for field in ("position", "active", "description"):
        if field in given:
            table[field] = given[field]
    when.update({field: given[field] for field in _CONDITION if field in given})
    if "if_share" in given:
        when["share"] = given["if_share"]
    for field in ("labels", "attributes"):
        if field in given:
            when[field] = dict(map(_pair, given[field]))
    gives.update({field: given[field] for field in ("share", "priority") if field in given})
    if "tags" in given:
        gives["labels"] = dict(map(_pair, given["tags"]))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{text!r}: write KEY=VALUE")
    return key, value


def _every(client: Client) -> list[TaggingRule]:
    return client.http.call("GET", RULES, None, TaggingRuleList).items


def _print(client: Client, rule: TaggingRule) -> None:
    if client.as_json:
        render.print_json(rule)
        return
    render.print_fields(
        [
            ("name", rule.name),
            ("position", rule.position),
            ("active", "yes" if rule.active else "no"),
            ("applies to", _words(rule.when) or "every task"),
            ("gives", _words(rule.set)),
            ("description", rule.description),
        ]
    )


def _words(part: msgspec.Struct) -> str:
    return " and ".join(f"{name} {value}" for name, value in msgspec.to_builtins(part).items())


COLUMNS: list[render.Column[TaggingRule]] = [
    ("position", lambda rule: rule.position),
    ("rule", lambda rule: rule.name),
    ("active", lambda rule: "yes" if rule.active else "no"),
    ("applies to", lambda rule: _words(rule.when) or "every task"),
    ("gives", lambda rule: _words(rule.set)),
]
