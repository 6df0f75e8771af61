"""Lists of Rucio's files, read at Rucio's speed into a file without a name, and given out from there page by page.

Rucio answers with all files of a dataset in one stream, and cannot go on in its middle. It is not left waiting while
units are made of what came first, and a million files stay out of memory. A list that is lost (the server started anew,
an hour without a question) is read again from its beginning: whoever asked takes each file once.
"""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO

import msgspec

MOST = 64
"""Lists that are read at the same time."""
FORSAKEN_S = 3600.0


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A file of a list."""

    scope: str
    name: str
    size: int | None = None
    adler32: str | None = None
    events: int | None = None
    guid: str | None = None


class TooMany(Exception):
    """So many lists are being read that this one must wait."""


@dataclass
class Listing:
    """One list. ``suspicious`` are replicas that are left out: RSE and DID."""

    query: str
    suspicious: frozenset[tuple[str, str]]
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    touched: float = field(default_factory=time.monotonic)

    def fill(self, entries: Iterable[Entry]) -> None:
        """Write all down."""
        encoder = msgspec.json.Encoder()
        for entry in entries:
            self.file.write(encoder.encode(entry) + b"\n")
        self.file.flush()

    def page(self, offset: int, count: int) -> tuple[list[Entry], int | None]:
        """Up to ``count`` entries from an offset on, and the offset of the next; None at the end."""
        self.touched = time.monotonic()
        self.file.seek(offset)
        found: list[Entry] = []
        for _ in range(count):
            line = self.file.readline()
            if not line:
                return found, None
            found.append(_ENTRY.decode(line))
        here = self.file.tell()
        return found, here if self.file.read(1) else None


_ENTRY = msgspec.json.Decoder(Entry)


class Listings:
    """The lists that are being read, by a name of each."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._open: dict[str, Listing] = {}

    def begin(self, make: Callable[[], Listing]) -> str:
        """Make a list; its name. Raises TooMany."""
        with self._mutex:
            self._forget_old()
            if len(self._open) >= MOST:
                raise TooMany(f"{MOST} lists are being read at the same time; this one waits")
        listing = make()
        name = uuid.uuid4().hex[:12]
        with self._mutex:
            self._open[name] = listing
        return name

    def get(self, name: str, query: str) -> Listing | None:
        """The list of that name, if it is there still and of that query."""
        with self._mutex:
            found = self._open.get(name)
        return found if found is not None and found.query == query else None

    def end(self, name: str) -> None:
        """Let go of a list."""
        with self._mutex:
            found = self._open.pop(name, None)
        if found is not None:
            found.file.close()

    def _forget_old(self) -> None:
        before = time.monotonic() - FORSAKEN_S
        for name in [name for name, each in self._open.items() if each.touched < before]:
            self._open.pop(name).file.close()
