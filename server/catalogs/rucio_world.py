"""Rucio's RSEs as storages of ours: sites, protocols, names of files, availability, and how far they are from each other.

The distance of a site to a storage is the smallest that Rucio has from that RSE to any RSE of the site, times
``distance_step``, and at least 1 and at most 100. Where Rucio has none nothing is said: a storage of another site is then
as far as can be (100).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import msgspec

from common.states import ResourceState
from common.wire import Activity, CredentialKind, Name, Registration
from server.catalogs.rucio_client import RucioClient, RucioDenied
from server.catalogs.rucio_places import Protocol, Rse, names_of, read_rse
from server.engine.imports import DISTANCES, Document

RUCIO_KINDS = ("site", "storage", DISTANCES)
"""What Rucio describes."""
NEAREST, FARTHEST = 1, 100
USES: dict[Activity, tuple[str, str]] = {
    Activity.READ_LAN: ("lan", "read"),
    Activity.WRITE_LAN: ("lan", "write"),
    Activity.READ_WAN: ("wan", "read"),
    Activity.WRITE_WAN: ("wan", "write"),
}
"""What Rucio calls our activities."""


class RucioImports(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How RSEs become storages, each ``period_s``. At most ``removed_percent`` of them may vanish at once.
    ``site_attribute`` is the RSE attribute that holds a site's name; an RSE without it is a site of its own. The other
    fields become those of the storages and their endpoints."""

    period_s: Annotated[float, msgspec.Meta(ge=1)] = 3600.0
    removed_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 20.0
    site_attribute: str = "site"
    distance_step: Annotated[float, msgspec.Meta(gt=0, le=100)] = 10.0
    registration: Registration = Registration.NONE
    stager: Name | None = None
    credential: CredentialKind = CredentialKind.AMBIENT
    provider: Name | None = None


class RucioWorld:
    """Reads RSEs and distances; methods raise as :meth:`RucioClient.ask`."""

    def __init__(
        self, client: RucioClient, imports: RucioImports, storages: Mapping[str, str], expression: str
    ) -> None:
        self._client = client
        self._imports = imports
        self._storages = storages
        self._expression = expression

    def describe(self, document: Document) -> None:
        """All RSEs that the expression selects."""
        chosen = names_of(self._client, self._expression)
        try:
            rses, distances = self._exported(chosen)
        except RucioDenied:
            # Rucio exports to admins of its own only; anybody may look at the RSEs one by one.
            rses, distances = self._one_by_one(chosen)
        self._tell(document, rses, distances)

    def _exported(self, chosen: Sequence[str]) -> tuple[list[Rse], dict[tuple[str, str], int]]:
        document = self._client.ask("GET", "/export/", params={"distance": "True"})
        names = {identity: str(each["rse"]) for identity, each in document["rses"].items()}
        found = {str(each["rse"]): read_rse(each, each.get("attributes") or {}) for each in document["rses"].values()}
        distances = {}
        for source, ways in (document.get("distances") or {}).items():
            for destination, about in ways.items():
                if source in names and destination in names and about.get("distance") is not None:
                    distances[names[source], names[destination]] = int(about["distance"])
        return [found[name] for name in chosen if name in found], distances

    def _one_by_one(self, chosen: Sequence[str]) -> tuple[list[Rse], dict[tuple[str, str], int]]:
        rses = []
        for name in chosen:
            where = f"/rses/{quote(name, safe='')}"
            rses.append(read_rse(self._client.ask("GET", where), self._client.ask("GET", f"{where}/attr/") or {}))
        distances = {}
        for source in rses:
            for destination in rses:
                if self._site(source) != self._site(destination):
                    where = f"/rses/{quote(source.name, safe='')}/distances/{quote(destination.name, safe='')}"
                    for each in self._client.ask("GET", where) or ():
                        if each.get("distance") is not None:
                            distances[source.name, destination.name] = int(each["distance"])
        return rses, distances

    def _tell(self, document: Document, rses: Sequence[Rse], distances: Mapping[tuple[str, str], int]) -> None:
        used = {}
        for rse in rses:
            name, fields = self._storages.get(rse.name, rse.name), self._storage(rse)
            if not fields["endpoints"]:
                document.skipped["storage", name] = "it has no protocol"
            elif document.add("storage", name, fields) and document.add("site", fields["site"], {}):
                used[rse.name] = (name, fields["site"])
        document.entries = len(used)
        near: dict[str, dict[str, int]] = {}
        for (source, destination), distance in distances.items():
            if source in used and destination in used:
                (storage, there), (_, site) = used[source], used[destination]
                if there != site:
                    ours = max(NEAREST, min(FARTHEST, round(distance * self._imports.distance_step)))
                    known = near.setdefault(site, {})
                    known[storage] = min(ours, known.get(storage, FARTHEST))
        document.found.update({(DISTANCES, site): known for site, known in near.items()})

    def _site(self, rse: Rse) -> str:
        return rse.attributes.get(self._imports.site_attribute) or rse.name

    def _storage(self, rse: Rse) -> dict[str, Any]:
        writes = rse.writes and rse.naming is not None
        status = ResourceState.ONLINE if rse.reads and rse.writes else ResourceState.PAUSED
        return {
            "site": self._site(rse),
            "tape": rse.tape,
            "stager": self._imports.stager if rse.tape else None,
            "registration": self._imports.registration.value,
            "naming": rse.naming.value if rse.naming is not None else "job",
            "status": (status if rse.reads else ResourceState.OFFLINE).value,
            "endpoints": self._endpoints(rse, writes),
        }

    def _endpoints(self, rse: Rse, writes: bool) -> list[dict[str, Any]]:
        """In the order of Rucio's ranks. Where it makes paths in a way that is not known here nothing is written."""
        found = []
        for protocol in sorted(rse.protocols, key=_rank):
            activities = [
                activity.value for activity, use in USES.items() if protocol.rank(*use) and (writes or use[1] == "read")
            ]
            if activities:
                endpoint: dict[str, Any] = {"url": protocol.url, "activities": activities}
                if self._imports.credential is not CredentialKind.AMBIENT:
                    endpoint["credential"] = self._imports.credential.value
                if self._imports.provider is not None:
                    endpoint["provider"] = self._imports.provider
                found.append(endpoint)
        return found


def _rank(protocol: Protocol) -> int:
    return min((rank for use in USES.values() if (rank := protocol.rank(*use))), default=0)
