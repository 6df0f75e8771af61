"""A tape system that brings files back after being polled some times: for trying the whole way without a robot."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

from server.stagers.base import Recall, Recalled, Stager, StagerError


class FakeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request's files are online at its ``polls``-th poll; those whose path matches ``broken`` fail instead."""

    polls: Annotated[int, msgspec.Meta(ge=1)] = 1
    broken: str = ""
    down: bool = False


class FakeStager(Stager):
    """Remembers what it was asked for in :attr:`requested` and :attr:`released`."""

    Options = FakeOptions

    def __init__(self, options: FakeOptions) -> None:
        self._options = options
        self._mutex = threading.Lock()
        self._polls: Counter[str] = Counter()
        self.requested: list[list[str]] = []
        self.released: list[str] = []

    def request(self, paths: Sequence[str]) -> str:
        """See :class:`Stager`."""
        self._check()
        with self._mutex:
            self.requested.append(list(paths))
            return f"fake-{len(self.requested)}"

    def poll(self, request: str, paths: Sequence[str]) -> dict[str, Recalled]:
        """See :class:`Stager`."""
        self._check()
        with self._mutex:
            self._polls[request] += 1
            if self._polls[request] < self._options.polls:
                return {path: Recalled(Recall.WAITING) for path in paths}
        return {path: self._end(path) for path in paths}

    def _end(self, path: str) -> Recalled:
        if self._options.broken and fnmatchcase(path, self._options.broken):
            return Recalled(Recall.FAILED, "the tape is torn")
        return Recalled(Recall.ONLINE)

    def release(self, request: str, paths: Sequence[str]) -> None:
        """See :class:`Stager`."""
        self._check()
        with self._mutex:
            self.released += paths

    def _check(self) -> None:
        if self._options.down:
            raise StagerError("the fake tape system was told to be down")
