"""A catalogue of made-up files: the whole way of a dataset can be tried without a real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from common.wire import FileSpec, ReplicaSpec
from server.catalogs.base import Catalog, CatalogUnavailable, Page, UnknownDataset


class FakeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``datasets`` has the number of files of each name, each with a replica on ``storage``."""

    datasets: dict[str, int] = {}
    storage: str = "disk"
    page: Annotated[int, msgspec.Meta(ge=1)] = 1000
    down: bool = False


class FakeCatalog(Catalog):
    """Knows the datasets of its options: ``name`` has the files ``fake:name.0``, ``fake:name.1`` …"""

    Options = FakeOptions

    def __init__(self, options: FakeOptions) -> None:
        self._options = options

    def files(self, query: str, after: str) -> Page:
        """See :class:`Catalog`."""
        if self._options.down:
            raise CatalogUnavailable("the fake catalogue was told to be down")
        total = self._options.datasets.get(query)
        if total is None:
            raise UnknownDataset(f"there is no dataset {query!r}; known: {', '.join(self._options.datasets) or 'none'}")
        first = int(after or 0)
        last = min(first + self._options.page, total)
        files = [self._file(query, number) for number in range(first, last)]
        return Page(files, str(last) if last < total else None)

    def locate(self, dids: Sequence[str]) -> list[FileSpec]:
        """See :class:`Catalog`."""
        if self._options.down:
            raise CatalogUnavailable("the fake catalogue was told to be down")
        found = []
        for did in dids:
            scope, _, rest = did.partition(":")
            name, _, number = rest.rpartition(".")
            known = scope == "fake" and number.isascii() and number.isdigit() and len(number) < 10
            if known and int(number) < self._options.datasets.get(name, 0):
                found.append(self._file(name, int(number)))
        return found

    def _file(self, name: str, number: int) -> FileSpec:
        return FileSpec(
            did=f"fake:{name}.{number}",
            size=1_000_000,
            events=1000,
            replicas=[ReplicaSpec(self._options.storage, f"{name}/{number}")],
        )
