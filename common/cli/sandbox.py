"""``pilotage sandbox``, ``pilotage secret`` and ``pilotage log``: what the server keeps for people beside workflows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional, TextIO

import click
import msgspec

from common.cli import render
from common.cli.client import Client, client_options
from common.cli.pack import LEFT_OUT, pack
from common.http import HttpClient, quoted
from common.quantities import format_size
from common.wire import SandboxList, SandboxView, SecretList, SecretValue, SecretView

UPLOAD_S = 600.0
SANDBOX_COLUMNS: list[render.Column[SandboxView]] = [
    ("sha256", lambda view: view.sha256),
    ("size", lambda view: format_size(view.size)),
    ("uploaded", lambda view: render.moment(view.uploaded)),
    ("last used", lambda view: render.moment(view.used)),
]
SECRET_COLUMNS: list[render.Column[SecretView]] = [
    ("name", lambda view: view.name),
    ("set", lambda view: render.moment(view.changed)),
]


def upload_sandbox(http: HttpClient, content: bytes) -> SandboxView:
    """Hand in a packed sandbox. Raises common.http.HttpError."""
    reply = http.transfer(
        "POST", "/v1/sandboxes", content, content_type="application/gzip", timeout=UPLOAD_S, total_s=UPLOAD_S
    )
    return msgspec.json.decode(reply, type=SandboxView)


@click.group()
def sandbox() -> None:
    """Folders with your own programs, unpacked where your jobs start."""


@sandbox.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--exclude", multiple=True, default=LEFT_OUT, show_default=True, help="Names to leave out; patterns.")
@client_options
def upload(client: Client, path: Path, exclude: tuple[str, ...]) -> None:
    """Upload a folder, or a .tar.gz as it is; prints the hash that a stage names with sandbox = "HASH"."""
    view = upload_sandbox(client.http, pack(path, exclude) if path.is_dir() else path.read_bytes())
    if client.as_json:
        render.print_json(view)
    else:
        click.echo(view.sha256)


@sandbox.command(name="pack")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--exclude", multiple=True, default=LEFT_OUT, show_default=True, help="Names to leave out; patterns.")
def pack_command(folder: Path, file: Path, exclude: tuple[str, ...]) -> None:
    """Pack FOLDER into FILE without uploading it, to see what a job would get."""
    file.write_bytes(pack(folder, exclude))


@sandbox.command(name="list")
@client_options
def list_sandboxes(client: Client) -> None:
    """Your sandboxes."""
    reply = client.http.call("GET", "/v1/sandboxes", None, SandboxList)
    if client.as_json:
        render.print_json(reply)
        return
    render.print_list(reply.items, SANDBOX_COLUMNS)
    click.echo(f"{format_size(reply.used)} of {format_size(reply.quota)} are used")


@click.group()
def secret() -> None:
    """Passwords and keys of your own, for jobs that name them."""


@secret.command(name="set")
@click.argument("name")
@click.option("--file", type=click.File("r", encoding="utf-8"), help="Where it is read from; else standard input.")
@client_options
def set_secret(client: Client, name: str, file: Optional[TextIO]) -> None:
    """Set a secret. It is never taken from the command line, which others could see."""
    if file is not None:
        value = file.read()
    elif sys.stdin.isatty():
        value = click.prompt(f"value of {name}", hide_input=True, confirmation_prompt=True)
    else:
        value = sys.stdin.read()
    view = client.http.call("PUT", f"/v1/secrets/{quoted(name)}", SecretValue(value), SecretView)
    if client.as_json:
        render.print_json(view)
    else:
        click.echo(f"secret {view.name} is set")


@secret.command(name="list")
@client_options
def list_secrets(client: Client) -> None:
    """The names of your secrets; what they are nobody is told."""
    reply = client.http.call("GET", "/v1/secrets", None, SecretList)
    if client.as_json:
        render.print_json(reply)
    else:
        render.print_list(reply.items, SECRET_COLUMNS)


@secret.command()
@click.argument("name")
@client_options
def remove(client: Client, name: str) -> None:
    """Forget a secret."""
    client.http.call("DELETE", f"/v1/secrets/{quoted(name)}", None, type(None))


@click.command()
@click.argument("job_id", metavar="JOB", type=click.IntRange(min=1))
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Where to; default job-ID.log.tgz."
)
@client_options
def log(client: Client, job_id: int, output: Optional[Path]) -> None:
    """Fetch the log archive of a failed job from the server, which keeps it for a while."""
    target = output or Path(f"job-{job_id}.log.tgz")
    content = client.http.transfer("GET", f"/v1/jobs/{job_id}/log")
    target.write_bytes(content)
    if client.as_json:
        render.print_json({"file": str(target), "size": len(content)})
    else:
        click.echo(f"{target}: {format_size(len(content))}")
