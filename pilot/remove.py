"""The sub-command ``pilotage pilot remove``: removes files from storages for a program that has no copytools itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Union

import click
import msgspec

from common.log import setup_logging
from pilot.copytool import Copytool
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


@click.command("remove")
def remove() -> None:
    """Remove files from storages.

    Reads URLs from standard input, one a line, each as a JSON string such as "file:///folder/file", and answers each
    at once with a line of JSON on standard output: url, ok and error. The exit code is 0 whatever became of the files.
    """
    setup_logging()
    for removal in remove_each(sys.stdin.buffer, load_tools([])):
        click.echo(msgspec.json.encode(removal))
