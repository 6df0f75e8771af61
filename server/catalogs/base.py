"""What a catalogue of files is to the server: it answers a query with files and their replicas, a page at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from common.wire import FileSpec


class CatalogError(Exception):
    """A query that was not answered; the words are for the person whose task waits."""


class UnknownDataset(CatalogError):
    """The query is wrong, or there is nothing of that name: asking again does not help."""


class CatalogUnavailable(CatalogError):
    """The catalogue does not answer now: asking again later may help."""


@dataclass(frozen=True)
class Page:
    """Files, and where the answer goes on; None at its end."""

    files: list[FileSpec] = field(default_factory=list)
    after: str | None = None


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a plug-in that has none."""


class Catalog(ABC):
    """A catalogue. Entry points of the group ``pilotage.catalogs`` name classes like this; ``Options`` is the struct of
    what an admin may write into ``[server.catalogs.NAME]`` beside ``plugin``."""

    Options: ClassVar[type[msgspec.Struct]] = NoOptions

    @abstractmethod
    def __init__(self, options: Any) -> None:
        """``options`` is an instance of ``Options``. Must not go out to any service."""

    def join(self, others: Mapping[str, Catalog]) -> None:  # noqa: B027 (most need none)
        """Called once, when all catalogues of the configuration are made; ``others`` has them by their sections.

        Raises:
            ConfigError: one that is needed is not there.
        """

    @abstractmethod
    def files(self, query: str, after: str) -> Page:
        """A page of the files that ``query`` finds, from the beginning (``after`` empty) or from where one ended.

        A page should hold some thousand files at the most. The same file may come twice; the server takes it once.

        Raises:
            UnknownDataset: the query will never be answered.
            CatalogUnavailable: it may be answered later.
        """

    def locate(self, dids: Sequence[str]) -> list[FileSpec]:
        """Those of some files that the catalogue knows, with their replicas, in any order; some thousand at the most.

        Raises:
            UnknownDataset: this catalogue cannot be asked for files by their names.
            CatalogUnavailable: it may be answered later.
        """
        raise UnknownDataset("this catalogue finds files by queries only, not by their names")
