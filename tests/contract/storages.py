"""A storage as the contract of copytools sees it."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from pilot.copytool import Copytool

LARGE = 4 * 1024**3  # sparse; far more than a second's transfer


class Storage(ABC):
    """A storage as the tests see it: by its copytool, and behind its back."""

    tool: Copytool

    @abstractmethod
    def url(self, name: str) -> str:
        """The URL of a file."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """Where a file lies on the storage's disk."""

    @abstractmethod
    def own(self, path: Path) -> None:
        """Give a file made behind the storage's back to it."""

    @abstractmethod
    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        """Have the storage judge permissions, which root would be above."""

    def put(self, name: str, content: bytes) -> str:
        """Put a file behind the storage's back; its URL."""
        self.path(name).write_bytes(content)
        self.own(self.path(name))
        return self.url(name)

    def put_large(self, name: str) -> str:
        """Put a file that takes a while to read; its URL."""
        with self.path(name).open("wb") as stream:
            stream.truncate(LARGE)
        self.own(self.path(name))
        return self.url(name)

    def names(self) -> set[str]:
        """All names in the storage's folder, temporary ones too."""
        return {path.name for path in self.path("x").parent.iterdir()}
