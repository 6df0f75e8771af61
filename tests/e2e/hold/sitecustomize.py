"""Holds a pilot of the crash tests where the test wants it, so that it can be killed there.

Python loads this module by itself, for the tests put its folder on the pilots' PYTHONPATH. The program is the real one:
only calls to the world outside are looked at. The first pilot that comes to a point of which a file in ``CRASH_HOLD``
has the name takes that file, says in ``held`` who it is and what it was about to do, and stays there until it is killed.
"""

from __future__ import annotations

import http.client
import os
import time
from typing import Any

FOLDER = os.environ.get("CRASH_HOLD", "")
_open, _link, _replace, _putrequest = os.open, os.link, os.replace, http.client.HTTPConnection.putrequest


def hold(point: str, what: object) -> None:
    """Stay here if the test wants it."""
    taken = f"{FOLDER}/taken"
    try:
        os.rename(f"{FOLDER}/{point}", taken)  # noqa: PTH104 - one pilot wins
    except FileNotFoundError:
        return
    with open(taken, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"{os.getpid()} {what}")
    os.rename(taken, f"{FOLDER}/held")  # noqa: PTH104
    while True:
        time.sleep(3600)


def is_part(path: Any) -> bool:
    """A file that is not whole yet."""
    return str(path).endswith(".part")


def open_(path: Any, flags: int, *rest: Any, **more: Any) -> int:
    """A pilot works in its own folder: a new file elsewhere is an upload."""
    if flags & os.O_CREAT and is_part(path) and not str(path).startswith(os.getcwd()):  # noqa: PTH109
        hold("between-record-and-upload", path)
    return _open(path, flags, *rest, **more)


def link(source: Any, target: Any, **more: Any) -> None:
    """An uploaded file gets its name."""
    if is_part(source):
        hold("in-the-upload", source)
    _link(source, target, **more)


def replace(source: Any, target: Any, **more: Any) -> None:
    """A fetched file gets its name."""
    if is_part(source):
        hold("in-stage-in", source)
    _replace(source, target, **more)


def putrequest(connection: Any, method: str, url: str, *rest: Any, **more: Any) -> None:
    """The final report is on its way."""
    if url.endswith(":finish"):
        hold("between-upload-and-confirm", url)
    _putrequest(connection, method, url, *rest, **more)


if FOLDER:
    os.open, os.link, os.replace = open_, link, replace  # type: ignore[assignment]
    http.client.HTTPConnection.putrequest = putrequest  # type: ignore[assignment,method-assign]
