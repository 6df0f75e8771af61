"""The parent's side of :mod:`harvester.backends.htcondor_child`: a call, an answer, and an end to waiting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harvester.backends import htcondor_child
from harvester.backends.base import BackendError

CONFIG_VARIABLE = "CONDOR_CONFIG"
NO_CONFIG = "/dev/null"
RECEIVE_BYTES = 1 << 16


class Refused(Exception):
    """HTCondor certainly did not take what it was given; the text says why."""


@dataclass(frozen=True)
class Settings:
    """How to reach a schedd. ``config`` is HTCondor's own configuration file, ``parameters`` override it."""

    pool: str | None
    schedd: str | None
    address: str | None
    config: str | None
    parameters: Mapping[str, str]
    timeout_s: float


class _Child:
    def __init__(self, settings: Settings) -> None:
        self.channel, theirs = socket.socketpair()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._received = b""
        command = [sys.executable, "-I", htcondor_child.__file__, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env=_environment(settings.config),
                pass_fds=(theirs.fileno(),),
            )

    def send(self, message: object, end: float) -> None:
        self.channel.settimeout(max(0.001, end - time.monotonic()))
        self.channel.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, end: float) -> dict[str, Any]:
        parts = [self._received]
        while b"\n" not in parts[-1]:
            self.channel.settimeout(max(0.001, end - time.monotonic()))
            part = self.channel.recv(RECEIVE_BYTES)
            if not part:
                raise ConnectionError(self.last_words())
            parts.append(part)
        line, _, self._received = b"".join(parts).partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def last_words(self) -> str:
        """What a child that has ended wrote last."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"its process ended with exit code {code}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.channel.close()
        self.errors.close()


class CondorClient:
    """Calls the child, which is started when first needed and again after it has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: _Child | None = None

    def call(self, call: str, extra_s: float = 0.0, **arguments: Any) -> Any:
        """Make one of the calls of :class:`~harvester.backends.htcondor_child.Condor`; it may take ``extra_s`` longer.

        Raises BackendError: no usable answer within the time-out. Raises Refused: see there.
        """
        limit_s = self._settings.timeout_s + extra_s
        end = time.monotonic() + limit_s
        try:
            child = self._living(end)
            child.send({"call": call, **arguments}, end)
            answer = child.receive(end)
        except TimeoutError as error:
            self.close()
            raise BackendError(f"HTCondor: no answer within {limit_s:g} s") from error
        except OSError as error:
            self.close()
            raise BackendError(f"HTCondor: {error}") from error
        if answer.get("error") == "refused":
            raise Refused(answer["text"])
        if "error" in answer:
            raise BackendError(f"HTCondor: {' '.join(answer['text'].split())}")
        return answer["result"]

    def close(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _living(self, end: float) -> _Child:
        if self._child is not None and self._child.process.poll() is not None:
            self.close()
        if self._child is None:
            self._child = _Child(self._settings)
            there = {"pool": self._settings.pool, "schedd": self._settings.schedd, "address": self._settings.address}
            self._child.send({**there, "parameters": dict(self._settings.parameters)}, end)
        return self._child


def _environment(config: str | None) -> dict[str, str]:
    """Harvester's own, less what configures harvester; without a configuration the library would search and warn."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    if config is not None:
        kept[CONFIG_VARIABLE] = config
    elif CONFIG_VARIABLE not in kept and not Path("/etc/condor/condor_config").exists():
        kept[CONFIG_VARIABLE] = NO_CONFIG
    return kept
