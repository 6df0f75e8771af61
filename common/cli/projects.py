"""``pilotage project``: files that are handed out to workers outside of the pilots' slots."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import click
import msgspec
from msgspec import UNSET, UnsetType

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.paging import all_of
from common.cli.strict import InputError
from common.cli.textfile import read_text
from common.http import quoted
from common.problem import FieldError
from common.quantities import QuantityError, format_duration, parse_duration
from common.wire.projects import (
    FileOutcome,
    FileRelease,
    ProjectCopy,
    ProjectFile,
    ProjectFilePage,
    ProjectFilesRequest,
    ProjectFileView,
    ProjectPage,
    ProjectRequest,
    ProjectRestart,
    ProjectState,
    ProjectView,
    ReleaseReply,
    ReleaseRequest,
    ReserveReply,
    ReserveRequest,
    RestartState,
)

F = TypeVar("F", bound=Callable[..., Any])
SLICE = 10_000
"""Files of one call."""
WAIT_S = 10.0
"""How long one call may wait on the server; then it is asked again."""
WORKER_FILE = ".pilotage_worker_id"
COLUMNS: list[render.Column[ProjectView]] = [
    ("project", lambda one: one.id),
    ("name", lambda one: one.name),
    ("owner", lambda one: one.owner),
    ("state", lambda one: one.state.value),
    ("files", lambda one: sum(one.files.values())),
    ("ready", lambda one: one.files.get("ready", 0) + one.files.get("pending", 0)),
    ("reserved", lambda one: one.files.get("reserved", 0)),
    ("done", lambda one: one.files.get("done", 0)),
    ("failed", lambda one: one.files.get("failed", 0) + one.files.get("lost", 0)),
    ("active", lambda one: render.moment(one.active)),
]
FILE_COLUMNS: list[render.Column[ProjectFileView]] = [
    ("state", lambda one: one.state.value),
    ("replicas", lambda one: f"{sum(each.available for each in one.replicas)}/{len(one.replicas)}"),
    ("attempts", lambda one: one.attempts),
    ("timeouts", lambda one: one.timeouts),
    ("worker", lambda one: one.worker),
    ("file", lambda one: one.did),
]
_id = click.argument("project_id", metavar="PROJECT", type=click.IntRange(min=1))
_attributes = click.option("-A", "--attributes", help="name=value name=value …, or @FILE with JSON.")
_file_attributes = click.option("-a", "--file-attributes", help="The same for each file.")
_worker_timeout = click.option("-w", "--worker-timeout", help="Such as 90m or 12h; none: workers may take for ever.")
_idle_timeout = click.option("-t", "--idle-timeout", help="Such as 72h; none: the project is never abandoned.")
_users = click.option("-u", "--users", help="Others who may work on it, separated by commas.")
_roles = click.option("-r", "--roles", help="Groups and roles whose members may.")
_worker = click.option("--worker", help=f"Who works (default: what {WORKER_FILE} holds; see pilotage project worker).")


@click.group()
def project() -> None:
    """Hand out files to workers of your own, one after another."""


def _show(client: Client, view: ProjectView) -> None:
    if client.as_json:
        render.print_json(view)
    else:
        render.print_list([view], COLUMNS)


def _command(client: Client, project_id: int, verb: str, body: Optional[msgspec.Struct] = None) -> ProjectView:
    return client.http.call("POST", f"/v1/projects/{project_id}:{verb}", body, ProjectView)


# ---------------------------------------------------------------- making


@project.command()
@click.option("-l", "--list", "lists", multiple=True, type=click.Path(path_type=Path, allow_dash=True),
              help="A file list (.json or .txt), as files_from takes it; with --virtual DIDs alone do, and - is stdin.")  # fmt: skip
@click.option("--catalog", help="The catalogue to ask, with --query.")
@click.option("-q", "--query", help="What to ask it for.")
@click.option("--name", default="project", show_default=True)
@_attributes
@_file_attributes
@_worker_timeout
@_idle_timeout
@_users
@_roles
@click.option("--fail-on-timeout", is_flag=True, help="A file fails when its worker times out.")
@click.option("--virtual", is_flag=True, help="Nobody asks where the files lie.")
@click.option("--group", help="The group that it belongs to.")
@client_options
def create(client: Client, lists: tuple[Path, ...], **given: Any) -> None:
    """Make a project of the files in lists, or of those that a catalogue finds."""
    files = [file for path in lists for file in _listed(path, given["virtual"])]
    request = ProjectRequest(
        name=given["name"],
        catalog=given["catalog"],
        query=given["query"],
        open=len(files) > SLICE,
        files=files[:SLICE],
        attributes=_pairs(given["attributes"]),
        file_attributes=_pairs(given["file_attributes"]),
        retry_on_timeout=not given["fail_on_timeout"],
        virtual=given["virtual"],
        users=_words(given["users"]),
        roles=_words(given["roles"]),
        group=given["group"],
        request_id=uuid.uuid4().hex,
    )
    for name in ("worker_timeout", "idle_timeout"):
        value = _timeout(given[name], name)
        if not isinstance(value, UnsetType):
            setattr(request, f"{name}_s", value)
    view = client.http.call("POST", "/v1/projects", request, ProjectView)
    path = f"/v1/projects/{view.id}/files"
    for start in range(SLICE, len(files), SLICE):
        client.http.call("POST", path, ProjectFilesRequest(files[start : start + SLICE]), ProjectView)
    if len(files) > SLICE:
        view = client.http.call("POST", f"{path}:close", None, ProjectView)
    _show(client, view)


def _listed(path: Path, virtual: bool) -> list[ProjectFile]:
    """The files of a list: lines or JSON items that may be bare DIDs where nobody asks for replicas."""
    text = sys.stdin.read() if str(path) == "-" else read_text(path)
    try:
        if text.lstrip().startswith(("[", "{")):
            items = msgspec.json.decode(text)
            items = items["files"] if isinstance(items, dict) else items
            found = [{"did": item} if isinstance(item, str) else _own(item) for item in items]
            return msgspec.convert(found, list[ProjectFile])
        if virtual:
            lines = (line.partition("#")[0].strip() for line in text.splitlines())
            return [msgspec.convert({"did": line}, ProjectFile) for line in lines if line]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise InputError(str(path), [FieldError("", f"this is no list of files: {error}")]) from error
    from common.cli.file_list import parse_file_list  # needed for lists with replicas only

    return [
        msgspec.convert(msgspec.to_builtins(file), ProjectFile) for file in parse_file_list(text, path.name, str(path))
    ]


def _own(item: Any) -> Any:
    """An item of a list; those of Data Dispatcher have ``namespace`` and ``name``."""
    if isinstance(item, dict) and "namespace" in item and "name" in item:
        rest = {key: value for key, value in item.items() if key not in ("namespace", "name")}
        return {"did": f"{item['namespace']}:{item['name']}", **rest}
    return item


def _pairs(text: Optional[str]) -> dict[str, Any]:
    """``name=value …`` or ``@FILE``; values that are JSON are taken as such."""
    if not text:
        return {}
    if text.startswith("@"):
        path = Path(text[1:])
        try:
            return msgspec.json.decode(read_text(path), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise InputError(str(path), [FieldError("", f"write a JSON object: {error}")]) from error
    found = {}
    for part in text.split():
        name, sign, value = part.partition("=")
        if not sign or not name:
            raise click.UsageError(f"{part!r}: write name=value")
        try:
            found[name] = msgspec.json.decode(value)
        except msgspec.MsgspecError:
            found[name] = value
    return found


def _words(text: Optional[str]) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _timeout(text: Optional[str], name: str) -> Union[float, None, UnsetType]:
    if text is None:
        return UNSET
    if text.lower() == "none":
        return None
    try:
        return float(parse_duration(text))
    except QuantityError as error:
        raise click.UsageError(f"--{name.replace('_', '-')}: {error}") from error


@project.command()
@_id
@click.option("--name")
@_attributes
@_file_attributes
@_worker_timeout
@_idle_timeout
@_users
@_roles
@client_options
def copy(client: Client, project_id: int, **given: Any) -> None:
    """Make a project of the same files; what is given replaces what the original has."""
    body = ProjectCopy(
        name=given["name"],
        attributes=_pairs(given["attributes"]),
        file_attributes=_pairs(given["file_attributes"]),
        worker_timeout_s=_timeout(given["worker_timeout"], "worker_timeout"),
        idle_timeout_s=_timeout(given["idle_timeout"], "idle_timeout"),
        users=None if given["users"] is None else _words(given["users"]),
        roles=None if given["roles"] is None else _words(given["roles"]),
        request_id=uuid.uuid4().hex,
    )
    _show(client, _command(client, project_id, "copy", body))


# ---------------------------------------------------------------- looking


@project.command("list")
@click.option("-u", "--owner", help="Only those of this person.")
@click.option("-s", "--state", default="active", show_default=True, help="States separated by commas; all: any.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True)
@client_options
def list_projects(client: Client, owner: Optional[str], state: str, limit: int) -> None:
    """List projects."""
    _print(client, owner, state, None, limit)


@project.command()
@click.argument("where", metavar="CONDITIONS")
@click.option("-u", "--owner", help="Only those of this person.")
@click.option("-s", "--state", default="active", show_default=True, help="States separated by commas; all: any.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True)
@client_options
def search(client: Client, where: str, owner: Optional[str], state: str, limit: int) -> None:
    """List projects by their attributes: "step=reco, version>=3", with = != < <= > >=."""
    _print(client, owner, state, where, limit)


def _print(client: Client, owner: Optional[str], state: str, where: Optional[str], limit: int) -> None:
    states = None if state == "all" else state
    found = all_of(client.http, "/v1/projects", ProjectPage, limit, owner=owner, state=states, where=where)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, COLUMNS)


@project.command()
@_id
@click.option("--files", is_flag=True, help="Its files, too.")
@click.option("-s", "--state", help="Only files in this state of units, such as ready, reserved, done, failed.")
@click.option("-c", "--cpu-site", help="As seen from this site.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Show at most so many files."
)
@client_options
def show(
    client: Client, project_id: int, files: bool, state: Optional[str], cpu_site: Optional[str], limit: int
) -> None:
    """Show a project, or its files."""
    if not files and state is None:
        view = client.http.call("GET", f"/v1/projects/{project_id}", None, ProjectView)
        if client.as_json:
            render.print_json(view)
        else:
            render.print_fields(_fields(view))
        return
    path = f"/v1/projects/{project_id}/files"
    found = all_of(client.http, path, ProjectFilePage, limit, state=state, cpu_site=cpu_site)
    if client.as_json:
        render.print_json(found)
    else:
        render.print_list(found, FILE_COLUMNS)


def _fields(view: ProjectView) -> list[tuple[str, object]]:
    def lasting(seconds: Optional[float]) -> str:
        return "none" if seconds is None else format_duration(seconds)

    return [
        ("project", view.id),
        ("name", view.name),
        ("owner", view.owner),
        ("group", view.group),
        ("state", view.state.value),
        ("reason", view.reason),
        ("files", ", ".join(f"{n} {state}" for state, n in view.files.items())),
        ("more may come", "yes" if view.open else None),
        ("query", view.query),
        ("attributes", msgspec.json.encode(view.attributes).decode() if view.attributes else None),
        ("file attributes", msgspec.json.encode(view.file_attributes).decode() if view.file_attributes else None),
        ("worker time-out", lasting(view.worker_timeout_s)),
        ("idle time-out", lasting(view.idle_timeout_s)),
        ("users", ", ".join(view.users)),
        ("roles", ", ".join(view.roles)),
        ("created", render.moment(view.created)),
        ("active", render.moment(view.active)),
        ("ended", render.moment(view.ended) if view.ended else None),
        ("copied from", view.copied_from),
    ]


# ---------------------------------------------------------------- commanding


@project.command()
@_id
@click.argument("dids", metavar="[DID]...", nargs=-1)
@click.option("-f", "--failed", is_flag=True, help="Files that failed.")
@click.option("-d", "--done", is_flag=True, help="Files that are done.")
@click.option("-r", "--reserved", is_flag=True, help="Files that workers hold: these lose them.")
@click.option("--all", "everything", is_flag=True, help="All of these.")
@client_options
def restart(
    client: Client, project_id: int, dids: tuple[str, ...], failed: bool, done: bool, reserved: bool, everything: bool
) -> None:
    """Make files ready again: those in some states, or the ones that are named."""
    wanted = {RestartState.FAILED: failed, RestartState.DONE: done, RestartState.RESERVED: reserved}
    states = [state for state, asked in wanted.items() if asked or everything]
    _show(client, _command(client, project_id, "restart", ProjectRestart(states, list(dids))))


@project.command()
@_id
@client_options
def activate(client: Client, project_id: int) -> None:
    """Bring an abandoned project back."""
    _show(client, _command(client, project_id, "activate"))


@project.command()
@_id
@client_options
def cancel(client: Client, project_id: int) -> None:
    """End a project for good."""
    _show(client, _command(client, project_id, "cancel"))


@project.command()
@_id
@client_options
def delete(client: Client, project_id: int) -> None:
    """Take a project away with all that is known of it; an active one is cancelled first."""
    client.http.call("DELETE", f"/v1/projects/{project_id}", None, type(None))


# ---------------------------------------------------------------- working


@project.command()
@click.argument("name", required=False)
@click.option("-n", "--new", is_flag=True, help="Make one up.")
def worker(name: Optional[str], new: bool) -> None:
    """Show, or set, who works in this folder."""
    if new or name:
        name = name or uuid.uuid4().hex[:8]
        Path(WORKER_FILE).write_text(name + "\n", encoding="utf-8")
    click.echo(name or _who(None))


def _who(given: Optional[str]) -> str:
    if given:
        return given
    path = Path(WORKER_FILE)
    found = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not found:
        raise click.UsageError("who works? give --worker, or run pilotage project worker --new here first")
    return found


@project.command("next")
@_id
@_worker
@click.option("-c", "--cpu-site", help="Where the worker is: the nearest file comes first.")
@click.option("-t", "--timeout", type=click.FloatRange(min=0), help="Wait so many seconds (default: until one comes).")
@client_options
@click.pass_context
def next_file(
    ctx: click.Context,
    project_id: int,
    client: Client,
    worker: Optional[str],
    cpu_site: Optional[str],
    timeout: Optional[float],
) -> None:
    """Reserve the next file and print its DID.

    Without one the command prints why ("timeout", or the state of a project that is over) and exits with 1.
    """
    patience = threading.Event()
    deadline = None if timeout is None else time.monotonic() + timeout
    request_id = uuid.uuid4().hex
    while True:
        left = WAIT_S if deadline is None else max(0.0, min(WAIT_S, deadline - time.monotonic()))
        body = ReserveRequest(request_id=request_id, worker=_who(worker), cpu_site=cpu_site, wait_s=left)
        reply = client.http.call("POST", f"/v1/projects/{project_id}/files:reserve", body, ReserveReply)
        if reply.files:
            if client.as_json:
                render.print_json(reply)
            else:
                click.echo(reply.files[0].did)
            return
        over = reply.state is not ProjectState.ACTIVE
        if over or (deadline is not None and time.monotonic() >= deadline):
            click.echo(reply.state.value if over else "timeout")
            ctx.exit(1)
        if reply.retry_after_s:  # the server had no place for waiting
            patience.wait(min(reply.retry_after_s, left))


@project.command()
@_id
@click.argument("dids", metavar="DID...", nargs=-1, required=True)
@_worker
@client_options
def done(client: Client, project_id: int, dids: tuple[str, ...], worker: Optional[str]) -> None:
    """Say that files were processed."""
    _release(client, project_id, _who(worker), [FileRelease(did, FileOutcome.DONE) for did in dids])


@project.command()
@_id
@click.argument("dids", metavar="DID...", nargs=-1, required=True)
@click.option("-f", "--final", is_flag=True, help="Don't try them again.")
@_worker
@client_options
def failed(client: Client, project_id: int, dids: tuple[str, ...], final: bool, worker: Optional[str]) -> None:
    """Say that files were not processed: they go to the end of the queue."""
    _release(client, project_id, _who(worker), [FileRelease(did, FileOutcome.FAILED, not final) for did in dids])


def _release(client: Client, project_id: int, worker: str, files: list[FileRelease]) -> None:
    path = f"/v1/projects/{quoted(str(project_id))}/files:release"
    reply = client.http.call("POST", path, ReleaseRequest(worker, files), ReleaseReply)
    if client.as_json:
        render.print_json(reply)
    refused = [each for each in reply.files if not each.accepted]
    if refused:
        raise click.ClickException("; ".join(f"{each.did}: {each.reason}" for each in refused))
