"""The plug-in interface of catalogues that the server registers outputs in, and a catalogue that is simulated.

A registrar is named by its entry point in ``pilotage.registrars``; the server's configuration says which one is used.
Calls are in bulk, with an outcome for each file, and may come again at any time: after a crash the server does not know
which of its calls arrived.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from common.plugins import PluginError, load_plugin, plugins

GROUP = "pilotage.registrars"


@dataclass(frozen=True)
class Place:
    """A dataset that a file belongs to: made by the registrar if the catalogue does not know it.

    With a ``storage``, a rule is to keep the dataset there: until ``expires`` (seconds since the epoch), or for ever.
    """

    did: str
    storage: str | None = None
    lifetime_days: int | None = None
    expires: float | None = None


@dataclass(frozen=True)
class OutputFile:
    """A file that lies on a storage. ``path`` is below the storage's prefix, ``url`` where it can be read; ``parents`` are
    the DIDs of the files that its job has processed."""

    did: str
    storage: str
    path: str
    url: str
    size: int
    checksum: str
    events: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[Place, ...] = ()
    parents: tuple[str, ...] = ()


class Outcome(Enum):
    """What became of a file."""

    DONE = "done"
    """The catalogue knows it (or, after a withdrawal, does not know it), by this call or an earlier one."""
    AGAIN = "again"
    """Not now: the catalogue is away or too busy. It will be tried again, however often."""
    REFUSED = "refused"
    """Never: the catalogue has another file of this name, or does not take such names."""


@dataclass(frozen=True)
class Answer:
    """The outcome for one file, with words for people when it is not done."""

    outcome: Outcome
    words: str = ""


class Unavailable(Exception):
    """The catalogue cannot be reached: the same as ``AGAIN`` for every file."""


class Registrar(Protocol):
    """A catalogue that can be written to."""

    def register(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """Make files, their replicas and their datasets known; an answer for each, in order.

        A file that is known with the same size and checksum is done. Raises Unavailable.
        """

    def withdraw(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """Make files unknown, as they are about to be removed; one that is not known is done. Raises Unavailable."""


@runtime_checkable
class Confirming(Protocol):
    """A registrar that also wants to know when it is certain that a file will not be taken back."""

    def confirm(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """The jobs of files that were registered have ended well; an answer for each. A refusal ends it. Raises
        Unavailable."""


def load_registrar(name: str) -> Registrar:
    """The registrar of that name, one that takes no options.

    Raises:
        PluginError: there is none, or it cannot be loaded.
    """
    entry = plugins(GROUP).get(name)
    if entry is None:
        known = ", ".join(plugins(GROUP)) or "none is installed"
        raise PluginError(f"[server] registrar: there is no {name!r}; known: {known}")
    factory = load_plugin(entry)
    if hasattr(factory, "Options"):
        raise PluginError(f"[server] registrar: {name} needs options: write a section [server.registrars.{name}]")
    made: Registrar = factory()
    return made


class FakeRegistrar:
    """A catalogue in memory. Faults are injected by ``judge``: what it answers for a file, None for its usual answer."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self.files: dict[str, OutputFile] = {}
        self.datasets: dict[str, set[str]] = {}
        self.judge: Callable[[str, OutputFile], Answer | None] = lambda _call, _file: None
        self.away = False
        self.calls: list[tuple[str, int]] = []
        """Each call: its name, and of how many files."""

    def register(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """See :class:`Registrar`."""
        return self._each("register", files, self._register)

    def withdraw(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """See :class:`Registrar`."""
        return self._each("withdraw", files, self._withdraw)

    def _each(self, call: str, files: Sequence[OutputFile], work: Callable[[OutputFile], Answer]) -> Sequence[Answer]:
        with self._mutex:
            self.calls.append((call, len(files)))
            if self.away:
                raise Unavailable("the catalogue is away")
            return [self.judge(call, file) or work(file) for file in files]

    def _register(self, file: OutputFile) -> Answer:
        known = self.files.get(file.did)
        if known is not None and (known.size, known.checksum) != (file.size, file.checksum):
            return Answer(Outcome.REFUSED, f"{file.did} is known with another content")
        self.files[file.did] = file
        for place in file.datasets:
            self.datasets.setdefault(place.did, set()).add(file.did)
        return Answer(Outcome.DONE)

    def _withdraw(self, file: OutputFile) -> Answer:
        self.files.pop(file.did, None)
        for members in self.datasets.values():
            members.discard(file.did)
        return Answer(Outcome.DONE)
