"""Rucio as a catalogue of input: datasets and containers to files with their replicas, and its storages to ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec

from common.wire import Checksum, Did, FileSpec, Name, ReplicaSpec
from server.catalogs.base import Catalog, CatalogError, CatalogUnavailable, Page, UnknownDataset
from server.catalogs.rucio_books import scopes_of
from server.catalogs.rucio_client import (
    RucioAccess,
    RucioClient,
    RucioDenied,
    RucioDown,
    RucioRefusal,
    did_of,
    path_of,
)
from server.catalogs.rucio_listing import Entry, Listing, Listings, TooMany
from server.catalogs.rucio_places import Rses
from server.catalogs.rucio_world import RUCIO_KINDS, RucioImports, RucioWorld
from server.engine.imports import Document
from server.engine.world import World

PAGE = 1000
"""Files whose replicas are asked for in one call."""


class RucioOptions(RucioAccess, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Beside how to reach Rucio: ``rse_expression`` chooses the RSEs that are looked at. ``storages`` names those of our
    storages that are called otherwise than their RSE. A replica that was called suspicious ``suspicious`` times within
    ten days is left out (0: none is). With a section ``imports`` the RSEs become storages of ours."""

    rse_expression: str = ""
    storages: dict[str, Name] = {}
    suspicious: Annotated[int, msgspec.Meta(ge=0)] = 1
    imports: RucioImports | None = None


class RucioCatalog(Catalog):
    """One Rucio server. A query is a DID (``scope:name``) of a dataset, a container or a file."""

    Options = RucioOptions

    def __init__(self, options: RucioOptions) -> None:
        self._options = options
        self._imports = options.imports or RucioImports()
        self._client = RucioClient(options)
        self._rses = Rses(self._client)
        self._listings = Listings()

    @property
    def kinds(self) -> tuple[str, ...]:
        """See :class:`server.catalogs.world_source.WorldSource`."""
        return () if self._options.imports is None else RUCIO_KINDS

    @property
    def period_s(self) -> float:
        """See :class:`server.catalogs.world_source.WorldSource`."""
        return self._imports.period_s

    @property
    def removed_percent(self) -> float:
        """See :class:`server.catalogs.world_source.WorldSource`."""
        return self._imports.removed_percent

    def described(self, world: World) -> list[Document]:
        """See :class:`server.catalogs.world_source.WorldSource`."""
        options = self._options
        reader = RucioWorld(self._client, self._imports, options.storages, options.rse_expression)
        document = Document("rses", options.rucio_host, RUCIO_KINDS)
        try:
            self._client.awake()
            reader.describe(document)
        except (RucioDown, RucioDenied, RucioRefusal) as error:
            document.problem = str(error)
        return [document]

    def files(self, query: str, after: str) -> Page:
        """See :class:`Catalog`. Replicas that are not available, lost, suspicious or on an RSE that is closed for
        reading are left out; a file may have none left."""
        try:
            self._client.awake()
            name, _, offset = after.partition("@")
            listing = self._listings.get(name, query)
            if listing is None:
                name, offset = self._listings.begin(lambda: self._begun(query)), "0"
                listing = self._listings.get(name, query)
                assert listing is not None
            entries, there = listing.page(int(offset), PAGE)
            files = self._files(entries, listing.suspicious)
        except (RucioDown, TooMany, RucioDenied) as error:
            # An account that may not may do so tomorrow: it is the admin's to see to, not the task's to end of.
            raise CatalogUnavailable(str(error)) from error
        except RucioRefusal as error:
            raise UnknownDataset(f"{query}: {error}"[:2000]) from error
        if there is None:
            self._listings.end(name)
            return Page(files)
        return Page(files, f"{name}@{there}")

    def locate(self, dids: Sequence[str]) -> list[FileSpec]:
        """See :class:`Catalog`: one call for up to :data:`PAGE` files."""
        found: list[FileSpec] = []
        try:
            self._client.awake()
            suspicious = frozenset(self._suspicious())
            for start in range(0, len(dids), PAGE):
                parts = (did.partition(":") for did in dids[start : start + PAGE])
                entries = [Entry(scope, name) for scope, _, name in parts]
                known = self._replicas(entries)
                found += [
                    self._file(_sized(each, row), row, suspicious)
                    for each in entries
                    if (row := known.get(did_of(each.scope, each.name))) is not None and row.get("pfns")
                ]
        except (RucioDown, RucioDenied, RucioRefusal) as error:
            raise CatalogUnavailable(str(error)) from error
        return found

    def _begun(self, query: str) -> Listing:
        scope, colon, name = query.partition(":")
        if not (scope and colon and name) or any(letter.isspace() for letter in query):
            raise UnknownDataset(f"{query!r}: give the DID of a dataset or container, as scope:name")
        listing = Listing(query, frozenset(self._suspicious()))
        try:
            listing.fill(self._entries(query))
        except RucioRefusal as error:
            raise self._unknown(query, error) from error
        return listing

    def _entries(self, did: str) -> Iterator[Entry]:
        for each in self._client.stream("GET", f"/dids/{path_of(did)}/files"):
            try:
                yield msgspec.convert(
                    (each["scope"], each["name"], each.get("bytes"), each.get("adler32"), each.get("events"),
                     each.get("guid")), Entry,
                )  # fmt: skip
            except (KeyError, msgspec.ValidationError) as error:
                raise RucioDown(f"Rucio at {self._client.shown} describes a file of {did} wrongly: {error}") from error

    def _unknown(self, query: str, error: RucioRefusal) -> CatalogError:
        """What is wrong with a query, in words that help: a wrong scope is told as such."""
        if error.name != "DataIdentifierNotFound":
            return UnknownDataset(f"{query}: {error}"[:2000])
        scope = query.partition(":")[0]
        known = scopes_of(self._client)
        if scope in known:
            return UnknownDataset(f"{query}: Rucio has nothing of this name, or does not let us see it")
        near = difflib.get_close_matches(scope, known, 3)
        return UnknownDataset(f"{query}: Rucio has no scope {scope!r}" + (f"; near: {', '.join(near)}" if near else ""))

    def _suspicious(self) -> Iterator[tuple[str, str]]:
        if not self._options.suspicious:
            return
        params = {"nattempts": str(self._options.suspicious - 1)}  # Rucio means: more often than
        if self._options.rse_expression:
            params["rse_expression"] = self._options.rse_expression
        for each in self._client.ask("GET", "/replicas/suspicious", params=params) or ():
            if int(each.get("cnt") or 0) >= self._options.suspicious:
                yield str(each["rse"]), did_of(each["scope"], each["name"])

    def _files(self, entries: Sequence[Entry], suspicious: frozenset[tuple[str, str]]) -> list[FileSpec]:
        replicas = self._replicas(entries) if entries else {}
        return [self._file(each, replicas.get(did_of(each.scope, each.name), {}), suspicious) for each in entries]

    def _replicas(self, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "dids": [{"scope": each.scope, "name": each.name} for each in entries],
            "domain": "all",
            "ignore_availability": False,
            "all_states": False,
            "resolve_archives": False,
            "resolve_parents": False,
        }
        if self._options.rse_expression:
            body["rse_expression"] = self._options.rse_expression
        found = {}
        for each in self._client.stream("POST", "/replicas/list", body):
            found[did_of(each["scope"], each["name"])] = each
        return found

    def _file(self, entry: Entry, found: dict[str, Any], suspicious: frozenset[tuple[str, str]]) -> FileSpec:
        did = did_of(entry.scope, entry.name)
        if not _is(did, Did):
            raise UnknownDataset(f"its file {did!r} has a name that cannot be used here")
        replicas: dict[str, ReplicaSpec] = {}
        # The best way of Rucio's to a file comes first; the ways to one RSE all lead to the same path.
        for url, about in sorted((found.get("pfns") or {}).items(), key=lambda item: item[1].get("priority") or 0):
            rse = str(about.get("rse"))
            storage = self._options.storages.get(rse, rse)
            if storage in replicas or (rse, did) in suspicious or not _is(storage, Name):
                continue
            known = self._rses.get(rse)
            path = known.path(url) if known is not None else None
            if path is not None:
                replicas[storage] = ReplicaSpec(storage, path)
        return FileSpec(
            did=did,
            size=entry.size if entry.size is not None and entry.size >= 0 else None,
            events=entry.events if entry.events is not None and entry.events >= 0 else None,
            checksum=_checksum(entry.adler32, found.get("md5")),
            replicas=[replicas[name] for name in sorted(replicas)],
            attributes={"guid": entry.guid} if entry.guid else {},
        )


def _sized(entry: Entry, row: dict[str, Any]) -> Entry:
    """A file with what a list of replicas says of its content."""
    size, adler32 = row.get("bytes"), row.get("adler32")
    known = isinstance(size, int) and not isinstance(size, bool)
    return msgspec.structs.replace(
        entry, size=size if known else None, adler32=adler32 if isinstance(adler32, str) else None
    )


def _checksum(adler32: str | None, md5: object) -> str | None:
    for checksum in (f"adler32:{(adler32 or '').lower():0>8}" if adler32 else "", f"md5:{str(md5).lower()}"):
        if _is(checksum, Checksum):
            return checksum
    return None


def _is(value: str, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
