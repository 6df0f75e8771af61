"""Where Rucio's files lie: RSEs, their protocols, and the paths below a storage's prefix that their URLs mean."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from common.wire import OutputNaming
from server.catalogs.rucio_client import RucioClient, RucioRefusal
from server.engine.naming import fixed_path
from server.engine.world import path_problem

KEEP_S = 3600.0
"""RSEs are looked at again after so long."""
NAMINGS = {
    "default": OutputNaming.RUCIO_HASH,
    "hash": OutputNaming.RUCIO_HASH,
    "identity": OutputNaming.RUCIO_IDENTITY,
}
"""Rucio's algorithms from names to paths that are known here."""


@dataclass(frozen=True)
class Protocol:
    """A way to an RSE. ``domains`` are the uses (``read``, ``write``) in which it has a rank, by ``lan`` and ``wan``;
    rank 1 is tried first, the others by their number."""

    scheme: str
    hostname: str
    port: int
    prefix: str
    service: str
    domains: dict[str, dict[str, int]]

    @property
    def url(self) -> str:
        """The prefix of files as a URL: what a storage's endpoint has."""
        place = self.hostname + (f":{self.port}" if self.port else "")
        if self.scheme == "file":
            return f"file:///{self.prefix.strip('/')}"
        # A path that begins with a slash is an absolute one for XRootD, and begins behind the host's own slash.
        path = f"//{self.prefix.strip('/')}" if self.scheme in ("root", "roots") else f"/{self.prefix.strip('/')}"
        return f"{self.scheme}://{place}{self.service}{path}".rstrip("/")

    def rank(self, domain: str, use: str) -> int:
        """Its place among those for a use; 0: it is not for it."""
        return self.domains.get(domain, {}).get(use) or 0


@dataclass(frozen=True)
class Rse:
    """A storage of Rucio's. ``algorithm`` is how it makes paths of DIDs, empty where it takes any path."""

    name: str
    protocols: tuple[Protocol, ...]
    deterministic: bool
    algorithm: str
    tape: bool
    reads: bool
    writes: bool
    attributes: dict[str, str]

    def path_of(self, did: str) -> str | None:
        """Where Rucio looks for a file below the prefix; None where it takes any path, or makes it in a way of its own."""
        naming = self.naming
        if naming is OutputNaming.JOB or naming is None:
            return None
        scope, _, name = did.partition(":")
        return fixed_path(naming, scope, name)

    @property
    def naming(self) -> OutputNaming | None:
        """How new files are to be named here; None: in a way that only Rucio knows."""
        if not self.deterministic:
            return OutputNaming.JOB
        return NAMINGS.get(self.algorithm)

    def url(self, path: str) -> str | None:
        """The URL by which Rucio is told of a file at ``path``; None where nothing can be written."""
        able = [each for each in self.protocols if each.rank("wan", "write") or each.rank("lan", "write")]
        if not able:
            return None
        best = min(able, key=lambda each: each.rank("wan", "write") or 1000 + each.rank("lan", "write"))
        return f"{best.url}/{path.lstrip('/')}"

    def path(self, url: str) -> str | None:
        """Where the file of a replica's URL lies below the prefix; None if that cannot be told."""
        scheme, _, rest = url.partition("://")
        rest = rest.partition("/")[2]
        if "SFN=" in rest:
            rest = rest.partition("SFN=")[2]
        rest = rest.lstrip("/")
        # A signed URL has its signature behind the path.
        rest = rest.partition("?")[0]
        prefixes = {each.prefix.strip("/") for each in self.protocols if each.scheme == scheme}
        for prefix in sorted(prefixes, key=len, reverse=True):
            if not prefix or rest.startswith(prefix + "/"):
                path = rest[len(prefix) :].lstrip("/")
                return path if path and len(path) <= 4096 and not path_problem(path) else None
        return None


def read_rse(document: dict[str, Any], attributes: dict[str, Any]) -> Rse:
    """An RSE as Rucio describes it. ``attributes`` are listed apart."""
    deterministic = bool(document.get("deterministic", True))
    algorithm = str(document.get("lfn2pfn_algorithm") or attributes.get("lfn2pfn_algorithm") or "default")
    return Rse(
        name=str(document["rse"]),
        protocols=tuple(_protocol(each) for each in document.get("protocols") or ()),
        deterministic=deterministic,
        algorithm=algorithm if deterministic else "",
        tape=str(document.get("rse_type") or attributes.get("istape") or "").upper() in ("TAPE", "TRUE"),
        reads=bool(document.get("availability_read", True)),
        writes=bool(document.get("availability_write", True)),
        attributes={str(key): str(value) for key, value in attributes.items()},
    )


def _protocol(document: dict[str, Any]) -> Protocol:
    more = document.get("extended_attributes")
    service = str(more.get("web_service_path") or "") if isinstance(more, dict) else ""
    return Protocol(
        scheme=str(document["scheme"]),
        hostname=str(document["hostname"]),
        port=int(document.get("port") or 0),
        prefix=str(document.get("prefix") or ""),
        service=service,
        domains={
            name: {use: int(rank or 0) for use, rank in ranks.items() if isinstance(rank, int)}
            for name, ranks in (document.get("domains") or {}).items()
        },
    )


class Rses:
    """RSEs by name, asked for when they are first needed and kept for an hour."""

    def __init__(self, client: RucioClient) -> None:
        self._client = client
        self._mutex = threading.Lock()
        self._known: dict[str, tuple[float, Rse | None]] = {}

    def get(self, name: str) -> Rse | None:
        """The RSE; None if there is none of that name. Raises as :meth:`RucioClient.ask`."""
        now = time.monotonic()
        with self._mutex:
            since, known = self._known.get(name, (-KEEP_S, None))
        if now - since < KEEP_S:
            return known
        try:
            found: Rse | None = read_rse(self._client.ask("GET", f"/rses/{quote(name, safe='')}"), {})
        except RucioRefusal as error:
            if error.name != "RSENotFound":
                raise
            found = None
        with self._mutex:
            self._known[name] = (now, found)
        return found


def names_of(client: RucioClient, expression: str) -> Sequence[str]:
    """The RSEs that an expression selects; all, if it is empty."""
    params = {"expression": expression} if expression else None
    return [str(each["rse"]) for each in client.stream("GET", "/rses/", params=params)]
