"""How a backend that works by commands gets them run, and files to and from where they run.

A transport knows nothing of batch systems. Paths on its far side are POSIX paths, given as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional, Protocol, Union

from harvester.backends.base import BackendError

Input = Union[bytes, IO[bytes], None]
"""What a command reads: bytes, an open file, or nothing."""
LOG_BYTES = 4 << 20
"""Most bytes brought home of a file that a worker wrote: its end."""


class TransportError(BackendError):
    """A command's end is not known: the line broke, the time was up, or it could not be started."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """What it said of a failure, in one line."""
        return " ".join((self.stderr.strip() or self.stdout.strip()).split())[-1000:] or f"exit code {self.code}"


class Transport(Protocol):
    """Runs commands and moves files. Each call is made from one thread at a time."""

    def run(self, command: Sequence[str], stdin: Input = None, timeout_s: float = 60.0) -> Done:
        """Run a command to its end.

        Raises TransportError: how it ended is not known; after ``timeout_s`` it is killed, with its process group.
        """

    def local_path(self, path: str) -> Optional[Path]:
        """Where this machine sees the far side's ``path``; None if it doesn't."""

    def put(self, folder: Path, names: Sequence[str], target: str, timeout_s: float = 60.0) -> None:
        """Have ``folder/name`` (files, links and folders with all in them) as ``target/name``, modes included.

        ``target`` is made if it isn't there. Raises TransportError: some may be there, in part.
        """

    def fetch(self, source: str, names: Sequence[str], folder: Path, timeout_s: float = 60.0) -> None:
        """Bring regular files ``source/name`` home as ``folder/name``, at most the last LOG_BYTES of each.

        Those that aren't there are left out. Raises TransportError.
        """

    def close(self) -> None:
        """Give up connections; the next call makes new ones."""
