"""MetaCat as a catalogue of input: a query in its language finds the files; another catalogue knows where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from common.config import ConfigError
from common.wire import Checksum, Did, FileSpec, Name, ReplicaSpec
from server.catalogs.base import Catalog, CatalogUnavailable, Page, UnknownDataset
from server.catalogs.metacat_client import MetaCat, MetaCatAccess, MetaCatDenied, MetaCatDown, MetaCatRefusal

PAGE = 1000
"""Files of one query."""
EVENTS = "core.event_count"
_CHECKSUMS = ("adler32", "md5", "sha256")


class MetaCatOptions(MetaCatAccess, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Beside how to reach MetaCat: ``replicas`` is the section of another catalogue that knows where files lie. Without
    one, all lie on ``storage``, at ``path`` below its prefix, in which ``{namespace}`` and ``{name}`` are filled in.
    ``events`` is the field of the metadata with the event count; the fields ``attributes`` become attributes of the files."""

    replicas: Name | None = None
    storage: Name | None = None
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] = "{namespace}/{name}"
    events: str = EVENTS
    attributes: list[str] = []


class MetaCatCatalog(Catalog):
    """One MetaCat server. A query is one of MQL for files."""

    Options = MetaCatOptions

    def __init__(self, options: MetaCatOptions) -> None:
        if (options.replicas is None) == (options.storage is None):
            raise ConfigError("MetaCat does not know where files lie: give either replicas = 'CATALOGUE' or storage")
        self._options = options
        self._metacat = MetaCat(options)
        self._finder: Catalog | None = None

    def join(self, others: Mapping[str, Catalog]) -> None:
        """See :class:`Catalog`."""
        name = self._options.replicas
        if name is None:
            return
        finder = others.get(name)
        if finder is None or type(finder).locate is Catalog.locate:
            raise ConfigError(f"replicas: {name!r} is no catalogue of this server that knows where files lie")
        self._finder = finder

    def files(self, query: str, after: str) -> Page:
        """See :class:`Catalog`. A page is a query of its own: what is removed from MetaCat between two of them may hide as
        many files from this round."""
        skip = int(after or 0)
        try:
            found = self._metacat.query(query, skip, PAGE)
        except (MetaCatDown, MetaCatDenied) as error:
            # A token that may not do this may tomorrow: it is the admin's to see to, not the task's to end of.
            raise CatalogUnavailable(str(error)) from error
        except MetaCatRefusal as error:
            raise UnknownDataset(f"{query}: {error}"[:2000]) from error
        return Page(self._placed(found), str(skip + PAGE) if len(found) >= PAGE else None)

    def locate(self, dids: Sequence[str]) -> list[FileSpec]:
        """See :class:`Catalog`."""
        try:
            return self._placed(list(self._metacat.files(dids).values()))
        except (MetaCatDown, MetaCatDenied, MetaCatRefusal) as error:
            raise CatalogUnavailable(str(error)) from error

    def _placed(self, found: Sequence[dict[str, Any]]) -> list[FileSpec]:
        """Files as MetaCat describes them, with their replicas."""
        files = [self._file(each) for each in found]
        replicas = self._replicas([file.did for file in files])
        return [msgspec.structs.replace(file, replicas=list(replicas.get(file.did, ()))) for file in files]

    def _replicas(self, dids: Sequence[str]) -> Mapping[str, Sequence[ReplicaSpec]]:
        if not dids:
            return {}
        if self._finder is not None:
            return {file.did: file.replicas for file in self._finder.locate(dids)}
        assert self._options.storage is not None
        return {did: [ReplicaSpec(self._options.storage, self._path(did))] for did in dids}

    def _path(self, did: str) -> str:
        namespace, _, name = did.partition(":")
        return self._options.path.replace("{namespace}", namespace).replace("{name}", name)

    def _file(self, found: dict[str, Any]) -> FileSpec:
        did = f"{found.get('namespace')}:{found.get('name')}"
        if not _is(did, Did):
            raise UnknownDataset(f"a file {did!r} has a name that cannot be used here")
        metadata = found.get("metadata")
        if not isinstance(metadata, dict):
            metadata = {}
        return FileSpec(
            did=did,
            size=_count(found.get("size")),
            events=_count(metadata.get(self._options.events)),
            checksum=checksum_of(found.get("checksums")),
            replicas=[],
            attributes={name: metadata[name] for name in self._options.attributes if name in metadata},
        )


def checksum_of(told: object) -> str | None:
    """One of MetaCat's checksums as ours are written; None when there is none that we can use."""
    if not isinstance(told, dict):
        return None
    for kind in _CHECKSUMS:
        value = str(told.get(kind) or "").lower().removeprefix("0x")
        checksum = f"{kind}:{value:0>8}" if kind == "adler32" and value else f"{kind}:{value}"
        if _is(checksum, Checksum):
            return checksum
    return None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _is(value: str, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
