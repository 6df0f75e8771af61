"""The sub-command ``pilotage pilot remove``: removes files from storages for a program that has no copytools itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

import click
import msgspec

from common.log import setup_logging
from common.tokens import read_secret_file
from common.wire import CredentialKind
from pilot.copytool import Copytool
from pilot.copytool.credentials import Ambient, Credential, CredentialSource
from pilot.credentials import of_kind, plain
from pilot.staging import StageOutClient
from pilot.workshop import load_tools


class Removal(msgspec.Struct):
    """What became of one file: a line of the answer. ``error`` says why it is still there."""

    url: str
    ok: bool
    error: str = ""


def remove_each(lines: Iterable[bytes], tools: Sequence[Union[str, Copytool]]) -> Iterator[Removal]:
    """Remove files one after another, each with the first of ``tools`` that can; one that was absent already is ok.

    Each of ``lines`` holds a URL as a JSON string (a name may end with a blank), or nothing. One that cannot be read is
    answered like a file that could not be removed, with the line itself in place of the URL.
    """
    client = StageOutClient(tools)
    for line in filter(bytes.strip, lines):
        try:
            url = msgspec.json.decode(line, type=str)
        except msgspec.DecodeError as error:
            said = line.decode("utf-8", "replace").rstrip("\n")
            yield Removal(said, False, f'the line is no JSON string such as "file:///folder/file": {error}')
            continue
        problem = client.remove([url])[0]
        yield Removal(url, problem is None, "" if problem is None else str(problem))


class ListedCredential(msgspec.Struct):
    """What to show for the URLs that ``covers`` holds, or, where one ends in a slash, all below it."""

    covers: list[str]
    kind: CredentialKind
    token_file: Optional[str] = None
    proxy_file: Optional[str] = None


class Listed:
    """Credentials from a list in a file; what it does not cover is shown what ``ambient`` has."""

    def __init__(self, file: Path, ambient: CredentialSource) -> None:
        self._entries = msgspec.json.decode(file.read_bytes(), type=list[ListedCredential])
        self._ambient = ambient

    def for_url(self, url: str, *, write: bool) -> Credential:
        """As :class:`pilot.copytool.credentials.CredentialSource` has it. Raises PilotageError."""
        name = plain(url)
        for entry in self._entries:
            if not any(
                name == plain(each) or each.endswith("/") and name.startswith(plain(each)) for each in entry.covers
            ):
                continue
            if entry.token_file is not None:
                return Credential(token=read_secret_file(entry.token_file), token_file=Path(entry.token_file))
            if entry.proxy_file is not None:
                return Credential(proxy_file=Path(entry.proxy_file))
            return of_kind(entry.kind, self._ambient, url, write)
        return self._ambient.for_url(url, write=write)


@click.command("remove")
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, exists=True),
    help="A list (JSON) of what to show to which storage.",
)
def remove(credentials: Optional[Path]) -> None:
    """Remove files from storages.

    Reads URLs from standard input, one a line, each as a JSON string such as "file:///folder/file", and answers each
    at once with a line of JSON on standard output: url, ok and error. The exit code is 0 whatever became of the files.
    """
    setup_logging()
    ambient = Ambient(os.environ)
    source = ambient if credentials is None else Listed(credentials, ambient)
    for removal in remove_each(sys.stdin.buffer, load_tools([], source)):
        click.echo(msgspec.json.encode(removal))
