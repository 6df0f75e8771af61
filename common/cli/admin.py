"""``pilotage admin``: describe sites, queues, storages and shares; rules, downtimes and settings; harvesters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import click
import msgspec

from common.cli import render
from common.cli.api import QUEUE, SHARE, SITE, STORAGE, Api, ResourceKind
from common.cli.client import Client, client_options
from common.cli.downtimes import downtime
from common.cli.harvesters import harvester
from common.cli.imports import imports
from common.cli.options import duration, size
from common.cli.retry_rules import blocked_host, retry_rule
from common.cli.settings import setting
from common.cli.strict import InputError, convert
from common.cli.tagging import tagging_rule
from common.cli.textfile import read_table
from common.problem import FieldError
from common.states import ResourceState
from common.wire import Endpoint, QueueMode, QueueSpec, ShareSpec, SiteSpec, StorageSpec

F = TypeVar("F", bound=Callable[..., Any])
STATUS = click.Choice([one.value for one in ResourceState])


@click.group()
def admin() -> None:
    """Describe sites, queues, storages and shares; rules, downtimes and settings."""


def resource_group(kind: ResourceKind, columns: list[render.Column[Any]]) -> click.Group:
    """The group of a kind, with ``show``, ``list`` and ``delete``."""

    @admin.group(kind.word, help=f"Set, show, list and delete {kind.word}s.")
    def group() -> None:
        pass

    @group.command("show", help=f"Show one {kind.word}.")
    @click.argument("name")
    @client_options
    def show(client: Client, name: str) -> None:
        found = Api(client.http).resource(kind, name)
        if found is None:
            raise click.ClickException(f"there is no {kind.word} {name!r}; pilotage admin {kind.word} list shows all")
        _print(client, found)

    @group.command("list", help=f"List all {kind.word}s.")
    @client_options
    def list_all(client: Client) -> None:
        found = Api(client.http).resources(kind)
        if client.as_json:
            render.print_json(found)
        else:
            render.print_list(found, columns)

    @group.command("delete", help=f"Delete a {kind.word}.")
    @click.argument("name")
    @client_options
    def delete(client: Client, name: str) -> None:
        Api(client.http).delete_resource(kind, name)
        if not client.as_json:
            click.echo(f"{kind.word} {name} is deleted")

    return group


def set_options(command: F) -> F:
    """Add the name, ``--file`` and the options of the client."""
    name = click.argument("name")
    file = click.option(
        "--file", type=click.Path(path_type=Path), help="Take the description from this TOML or JSON file."
    )
    return name(file(client_options(command)))


def _set(client: Client, kind: ResourceKind, name: str, file: Optional[Path], changes: dict[str, Any]) -> None:
    """Make ``name``, or change it: a file replaces the whole description, options only what they name."""
    api = Api(client.http)
    table = _from_file(file, name) if file is not None else _existing(api, kind, name)
    table.update({field: value for field, value in changes.items() if value not in (None, ())})
    table["name"] = name
    where = str(file) if file is not None else f"{kind.word} {name}"
    _print(client, api.put_resource(kind, name, convert(table, kind.spec, where)))


def _from_file(file: Path, name: str) -> dict[str, Any]:
    table = read_table(file)
    if table.get("name", name) != name:
        words = f"the file describes {table['name']!r}, the command line says {name!r}: make them agree"
        raise InputError(str(file), [FieldError("name", words)])
    return table


def _existing(api: Api, kind: ResourceKind, name: str) -> dict[str, Any]:
    """What the server has under this name; nothing when it has none."""
    found: dict[str, Any] = msgspec.to_builtins(api.resource(kind, name)) or {}
    return found


def _print(client: Client, spec: msgspec.Struct) -> None:
    if client.as_json:
        render.print_json(spec)
    else:
        render.print_fields((name.replace("_", " "), getattr(spec, name)) for name in spec.__struct_fields__)


SITE_COLUMNS: list[render.Column[SiteSpec]] = [
    ("site", lambda site: site.name),
    ("status", lambda site: site.status),
    ("distances", lambda site: site.distances),
    ("description", lambda site: site.description),
]
QUEUE_COLUMNS: list[render.Column[QueueSpec]] = [
    ("queue", lambda queue: queue.name),
    ("site", lambda queue: queue.site),
    ("status", lambda queue: queue.status),
    ("cores", lambda queue: queue.cores or "any"),
    ("memory MiB", lambda queue: queue.memory_mb or "any"),
    ("disk MiB", lambda queue: queue.disk_mb or "any"),
    ("wall s", lambda queue: queue.wall_s or "any"),
    ("GPUs", lambda queue: queue.gpus),
    ("trusted", lambda queue: "yes" if queue.trusted else "no"),
    ("tags", lambda queue: queue.tags),
    ("copytools", lambda queue: queue.copytools),
]


def credential_of(endpoint: Endpoint) -> str:
    """What an endpoint wants to be shown, and who gives it."""
    kind = endpoint.credential.value
    return kind if endpoint.provider is None else f"{kind} from {endpoint.provider}"


STORAGE_COLUMNS: list[render.Column[StorageSpec]] = [
    ("storage", lambda storage: storage.name),
    ("site", lambda storage: storage.site),
    ("status", lambda storage: storage.status),
    ("tape", lambda storage: (storage.stager or "no stager") if storage.tape else ""),
    ("endpoints", lambda storage: [endpoint.url for endpoint in storage.endpoints]),
    ("credentials", lambda storage: [credential_of(endpoint) for endpoint in storage.endpoints]),
]
SHARE_COLUMNS: list[render.Column[ShareSpec]] = [
    ("share", lambda share: share.name),
    ("parent", lambda share: share.parent),
    ("weight", lambda share: share.weight),
]

site = resource_group(SITE, SITE_COLUMNS)
queue = resource_group(QUEUE, QUEUE_COLUMNS)
storage = resource_group(STORAGE, STORAGE_COLUMNS)
share = resource_group(SHARE, SHARE_COLUMNS)
admin.add_command(retry_rule)
admin.add_command(blocked_host)
admin.add_command(tagging_rule)
admin.add_command(downtime)
admin.add_command(harvester)
admin.add_command(setting)
admin.add_command(imports)


def _distances(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Optional[dict[str, int]]:
    """``STORAGE=N`` as a table."""
    found = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        if not equals or not number.isdigit():
            raise click.BadParameter(
                f"{value!r}: write STORAGE=N, with N from 0 (same site) to 100 (far); 101 is never"
            )
        found[name] = int(number)
    return found or None


@site.command("set")
@click.option("--status", type=STATUS, help="Whether it may be used.")
@click.option(
    "--distance",
    "distances",
    multiple=True,
    callback=_distances,
    metavar="STORAGE=N",
    help="How far a storage is: 0 … 100, 101 never; may be repeated.",
)
@click.option("--description", help="For people.")
@set_options
def set_site(client: Client, name: str, file: Optional[Path], **changes: Any) -> None:
    """Make or change a site."""
    _set(client, SITE, name, file, changes)


@queue.command("set")
@click.option("--site", help="The site it belongs to.")
@click.option("--status", type=STATUS, help="Whether it may be used.")
@click.option("--cores", type=click.IntRange(min=0), help="The most cores a slot has; 0 is no limit, here and below.")
@click.option("--memory", "memory_mb", type=size, help="The most memory, such as 64GiB.")
@click.option("--disk", "disk_mb", type=size, help="The most scratch disk, such as 100GB.")
@click.option("--wall", "wall_s", type=duration, help="The longest wall time, such as 2d.")
@click.option("--gpus", type=click.IntRange(min=0), help="The most GPUs.")
@click.option("--core-power", type=click.FloatRange(min=0, min_open=True), help="What a core does, in HS23.")
@click.option("--cpu-efficiency", type=click.FloatRange(0, 1, min_open=True), help="How much of it payloads use.")
@click.option("--trusted/--not-trusted", default=None, help="Whether payloads may run without a container.")
@click.option("--heartbeat-timeout", "heartbeat_timeout_s", type=duration, help="In place of the setting, such as 4h.")
@click.option("--no-reassign/--reassign", default=None, help="Take no work from silent or slow pilots.")
@click.option("--remote-io/--no-remote-io", default=None, help="Whether payloads may read input from the storage.")
@click.option(
    "--alternative-stage-out/--no-alternative-stage-out",
    default=None,
    help="Whether an output that a storage does not take may go to the next one.",
)
@click.option("--mode", type=click.Choice([mode.value for mode in QueueMode]), help="When jobs are claimed.")
@click.option("--shape-from-jobs/--shape-from-queue", default=None, help="In push mode: what sizes workers.")
@click.option("--pull-more/--no-pull-more", default=None, help="In push mode: whether pilots then ask for more.")
@click.option("--tag", "tags", multiple=True, help="What its slots can do; may be repeated.")
@click.option("--copytool", "copytools", multiple=True, help="How files are moved there, best first; may be repeated.")
@click.option("--bind", "container_binds", multiple=True, help="A path that containers see; may be repeated.")
@click.option("--description", help="For people.")
@set_options
def set_queue(client: Client, name: str, file: Optional[Path], **changes: Any) -> None:
    """Make or change a queue."""
    _set(client, QUEUE, name, file, changes)


@storage.command("set")
@click.option("--site", help="The site it belongs to.")
@click.option("--status", type=STATUS, help="Whether it may be used.")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="URL",
    help="A prefix such as root://host:1094//data, for reading and writing; may be repeated. A file can say more.",
)
@click.option("--tape/--disk", "tape", default=None, help="Whether files must be recalled before they are read.")
@click.option("--stager", help="What recalls them: a [server.stagers.NAME] of the server's configuration.")
@click.option("--description", help="For people.")
@set_options
def set_storage(client: Client, name: str, file: Optional[Path], endpoints: tuple[str, ...], **changes: Any) -> None:
    """Make or change a storage."""
    _set(client, STORAGE, name, file, {**changes, "endpoints": [{"url": url} for url in endpoints] or None})


@share.command("set")
@click.option("--parent", help="The share that this one divides with its siblings.")
@click.option("--weight", type=float, help="Its weight against its siblings.")
@set_options
def set_share(client: Client, name: str, file: Optional[Path], **changes: Any) -> None:
    """Make or change a share."""
    _set(client, SHARE, name, file, changes)
