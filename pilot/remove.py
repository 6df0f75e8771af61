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


def remove_each(urls: Iterable[str], tools: Sequence[Union[str, Copytool]]) -> Iterator[Removal]:
    """Remove files one after another, each with the first of ``tools`` that can; one that was absent already is ok."""
    client = StageOutClient(tools)
    for url in urls:
        error = client.remove([url])[0]
        yield Removal(url, error is None, "" if error is None else str(error))


@click.command("remove")
def remove() -> None:
    """Remove files from storages.

    Reads URLs from standard input, a JSON string a line, and answers each at once with a line of JSON on standard output:
    url, ok and error. The exit code is 0 whatever became of the files.
    """
    setup_logging()
    urls = (msgspec.json.decode(line, type=str) for line in sys.stdin.buffer if line.strip())
    for removal in remove_each(urls, load_tools([])):
        click.echo(msgspec.json.encode(removal))
