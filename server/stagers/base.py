"""What brings files back from tape: asked for many at once, polled, and told when they are needed no more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import msgspec


class StagerError(Exception):
    """A call that brought nothing: asking again later may help. It says nothing about any file."""


class Recall(str, Enum):
    """What has become of one file of a request."""

    WAITING = "waiting"
    """Not on disk yet."""
    ONLINE = "online"
    """On disk, and pinned there."""
    FAILED = "failed"
    """The tape system gave it up."""


@dataclass(frozen=True)
class Recalled:
    """One file's state, and the tape system's words when it failed."""

    state: Recall
    reason: str = ""


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a plug-in that has none."""


class Stager(ABC):
    """A tape system. Entry points of the group ``pilotage.stagers`` name classes like this; ``Options`` is the struct of
    what an admin may write into ``[server.stagers.NAME]`` beside ``plugin``.

    Paths are those of replicas: below the prefix of their storage. Every call may be repeated after a crash.
    """

    Options: ClassVar[type[msgspec.Struct]] = NoOptions

    @abstractmethod
    def __init__(self, options: Any) -> None:
        """``options`` is an instance of ``Options``. Must not go out to any service."""

    @abstractmethod
    def request(self, paths: Sequence[str]) -> str:
        """Ask for files, some hundred at once; the name of the request, by which it is polled.

        Raises:
            StagerError: it was not taken, as far as can be told.
        """

    @abstractmethod
    def poll(self, request: str, paths: Sequence[str]) -> dict[str, Recalled]:
        """The state of these files of a request. One that is left out is taken as waiting.

        Raises:
            StagerError: it cannot be told now.
        """

    @abstractmethod
    def release(self, request: str, paths: Sequence[str]) -> None:
        """These files are needed no more: cancel what waits, and let go of what is pinned.

        Raises:
            StagerError: it was not taken; pins end by themselves later.
        """
