"""The two ways to work with gfal2: its Python bindings, and its commands; both in child processes.

gfal2 and the storage libraries below it run outside of the pilot: a transfer that hangs in one of them can be killed
at any moment, a crash costs one attempt, the XRootD library that it brings does not meet the pilot's own, and each
transfer has an environment of its own, from which some of them take their credentials and nothing else.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from common.errors import ErrorCode, PilotageError
from common.tokens import read_secret_file
from pilot.copytool.children import Child, Limits, Program, Watch, refuse_secrets, run_child

log = logging.getLogger(__name__)

_PROGRAM = Program.load("gfal_child")

#: The commands that the tool needs.
COMMANDS = ("gfal-copy", "gfal-sum", "gfal-stat", "gfal-rename", "gfal-rm", "gfal-ls")
#: How long a Python may take to say whether it has the bindings, in seconds.
_PROBE_S = 20.0
#: A command that failed says so like this, besides its exit code (an errno, modulo 256).
_COMPLAINT = re.compile(r"gfal-\w+ error: (\d+) \([^)]*\) - (.*)", re.DOTALL)


class GfalFailure(Exception):
    """What gfal2 says of a call that failed: an ``errno``, or a number of XRootD's from 3000 on, and its words."""

    def __init__(self, number: int, message: str) -> None:
        self.number = number
        self.message = message
        super().__init__(f"{number}: {message}")


class Entry(NamedTuple):
    """What is there: its size in bytes, and whether it is a regular file."""

    size: int
    is_file: bool


class Transport(NamedTuple):
    """What a child needs besides its request: environment, open files that its URLs name, and the beginning of the
    URLs that its token is for, where gfal2 has to be told the token."""

    env: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()
    endpoint: str = ""


class Gfal(ABC):
    """One way to call gfal2, in one environment. All calls raise :class:`GfalFailure`, or the direction's error when
    cancelled or late. :meth:`close` it."""

    @abstractmethod
    def entry(self, url: str, limits: Limits) -> Entry:
        """What is at a URL."""

    @abstractmethod
    def checksum(self, url: str, algorithm: str, limits: Limits) -> str:
        """The value of a checksum as the storage tells it."""

    @abstractmethod
    def copy(self, source: str, target: str, limits: Limits, watch: Watch) -> None:
        """Copy one file to a place that is free, whose folders are made."""

    @abstractmethod
    def rename(self, source: str, target: str, limits: Limits) -> None:
        """Give a file another name."""

    @abstractmethod
    def remove(self, url: str, limits: Limits) -> None:
        """Remove a file."""

    @abstractmethod
    def names(self, url: str, limits: Limits) -> list[str]:
        """The names in a folder."""

    @abstractmethod
    def close(self) -> None:
        """End whatever runs."""


class Bindings(Gfal):
    """Calls by the Python bindings: one child, started by the first call and used by all."""

    def __init__(self, python: str, transport: Transport) -> None:
        self._transport = transport
        self._python = python
        self._child: Optional[Child] = None

    def entry(self, url: str, limits: Limits) -> Entry:
        """What is at a URL."""
        return Entry(*self._ask({"do": "entry", "url": url}, limits))

    def checksum(self, url: str, algorithm: str, limits: Limits) -> str:
        """The value of a checksum."""
        return str(self._ask({"do": "checksum", "url": url, "algorithm": algorithm}, limits))

    def copy(self, source: str, target: str, limits: Limits, watch: Watch) -> None:
        """Copy one file."""
        self._ask({"do": "copy", "source": source, "target": target, "parents": True}, limits, watch)

    def rename(self, source: str, target: str, limits: Limits) -> None:
        """Give a file another name."""
        self._ask({"do": "rename", "source": source, "target": target}, limits)

    def remove(self, url: str, limits: Limits) -> None:
        """Remove a file."""
        self._ask({"do": "remove", "url": url}, limits)

    def names(self, url: str, limits: Limits) -> list[str]:
        """The names in a folder."""
        return [str(name) for name in self._ask({"do": "names", "url": url}, limits)]

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _ask(self, request: dict[str, Any], limits: Limits, watch: Optional[Watch] = None) -> Any:
        """Make one call; a child that a call was given up in is not used again."""
        limits.check()
        if self._child is None:
            self._child = _PROGRAM.start(self._python, self._transport.env, self._transport.pass_fds)
        try:
            asked = {**request, "seconds": whole_seconds(limits), "endpoint": self._transport.endpoint}
            self._child.send(json.dumps(asked).encode() + b"\n")
            line = self._child.line(limits, watch)
            if line is None:
                ended = self._child.end()
                raise GfalFailure(errno.ECONNABORTED, f"gfal2 ended with {ended.code}: {ended.text}")
        except BaseException:
            self.close()
            raise
        reply = json.loads(line)
        if "ok" not in reply:
            raise GfalFailure(int(reply["errno"]), str(reply["message"]))
        return reply["ok"]


class Commands(Gfal):
    """Calls by the commands: a child each."""

    def __init__(self, folder: str, python: Optional[str], transport: Transport) -> None:
        env = {**transport.env, "LC_ALL": "C.UTF-8"}
        if transport.endpoint and "BEARER_TOKEN_FILE" in env:  # gfal2 does not know the file
            env["BEARER_TOKEN"] = read_secret_file(env["BEARER_TOKEN_FILE"])
        if python is not None:  # else they look for one at each start, by trial, and may end up where there is none
            env.setdefault("GFAL_PYTHONBIN", python)
        self._transport = transport._replace(env=env)
        self._folder = folder

    def entry(self, url: str, limits: Limits) -> Entry:
        """What is at a URL."""
        found = re.search(r"^  Size: (\d+)\t(.*)$", self._run("gfal-stat", [url], limits), re.MULTILINE)
        if found is None:
            raise GfalFailure(errno.EPROTO, "gfal-stat tells no size")
        return Entry(int(found.group(1)), "regular" in found.group(2))

    def checksum(self, url: str, algorithm: str, limits: Limits) -> str:
        """The value of a checksum."""
        return self._run("gfal-sum", [url, algorithm.upper()], limits).rstrip("\n").rpartition(" ")[2]

    def copy(self, source: str, target: str, limits: Limits, watch: Watch) -> None:
        """Copy one file."""
        self._run("gfal-copy", ["-p", "-T", str(whole_seconds(limits)), source, target], limits, watch)

    def rename(self, source: str, target: str, limits: Limits) -> None:
        """Give a file another name."""
        self._run("gfal-rename", [source, target], limits)

    def remove(self, url: str, limits: Limits) -> None:
        """Remove a file."""
        self._run("gfal-rm", ["--just-delete", url], limits)

    def names(self, url: str, limits: Limits) -> list[str]:
        """The names in a folder."""
        return self._run("gfal-ls", ["-a", url], limits).splitlines()

    def close(self) -> None:
        """Nothing runs between two calls."""

    def _run(self, command: str, arguments: Sequence[str], limits: Limits, watch: Optional[Watch] = None) -> str:
        for argument in arguments:
            refuse_secrets(argument)
        argv = [str(Path(self._folder, command)), "-t", str(whole_seconds(limits)), *arguments]
        ended = run_child(argv, self._transport.env, limits, pass_fds=self._transport.pass_fds, watch=watch)
        if ended.code == 0:
            return ended.stdout.decode(errors="surrogateescape")
        complaint = _COMPLAINT.search(ended.stderr.decode(errors="replace"))
        if complaint is not None:
            raise GfalFailure(int(complaint.group(1)), " ".join(complaint.group(2).split()))
        if command == "gfal-rm" and ended.stdout.rstrip().endswith(b"\tMISSING"):
            raise GfalFailure(errno.ENOENT, "is missing")
        # its exit code alone would not tell an errno from a Python that failed
        raise GfalFailure(0, f"{command} ended with {ended.code}: {ended.text}")


class Found(NamedTuple):
    """How gfal2 can be called here: by a Python that has the bindings, or by the commands in a folder, with the Python
    that they need where it is known."""

    python: Optional[str]
    folder: Optional[str] = None

    def open(self, transport: Transport) -> Gfal:
        """Get ready to call gfal2."""
        if self.folder is not None:
            return Commands(self.folder, self.python, transport)
        assert self.python is not None
        return Bindings(self.python, transport)


def find_gfal(use: str, python: Optional[str], environ: Mapping[str, str]) -> Found:
    """Find gfal2: ``use`` is ``bindings``, ``commands`` or ``auto`` (the bindings where there are any).

    The bindings are looked for in ``python``, else in the pilot's own Python and then in the node's ``python3``.
    Raises ``MIDDLEWARE_IMPORT_FAILED`` when gfal2 is not there.
    """
    path = environ.get("PATH", os.defpath)
    pythons = [python] if python else [sys.executable, shutil.which("python3", path=path), "/usr/bin/python3"]
    if use in ("auto", "bindings"):
        able = _able("gfal2", pythons, environ)
        if able is not None:
            return Found(able)
    if use in ("auto", "commands"):
        places = [shutil.which(command, path=path) for command in COMMANDS]
        if None not in places:
            return Found(_able("gfal2_util", pythons, environ), str(Path(str(places[0])).parent))
    wanted = {"bindings": "the Python bindings of gfal2 are", "commands": f"the commands {', '.join(COMMANDS)} are"}
    raise PilotageError(
        ErrorCode.MIDDLEWARE_IMPORT_FAILED,
        f"{wanted.get(use, 'gfal2 is')} not on this node: install gfal2-util and python3-gfal2 of its distribution",
    )


def _able(module: str, pythons: Sequence[Optional[str]], environ: Mapping[str, str]) -> Optional[str]:
    """The first of these Pythons that can import a module."""
    for python in dict.fromkeys(pythons):
        if python is None:
            continue
        try:
            done = subprocess.run(
                [python, "-I", "-c", f"import {module}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=dict(environ),
                timeout=_PROBE_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            log.info("%s: %s", python, error)
            continue
        if done.returncode == 0:
            return python
    return None


def whole_seconds(limits: Limits) -> int:
    """The time left as gfal2 wants it: whole seconds, one at least."""
    return max(math.ceil(limits.seconds), 1)
