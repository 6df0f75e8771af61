"""CRIC as a description of the world: its documents, fetched from an address or a file, and only when they have changed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Annotated, Any

import msgspec
import requests
from requests.utils import get_environ_proxies

from common.endpoint import certificate_authorities, without_user
from server.engine import cric
from server.engine.imports import DISTANCES, Document
from server.engine.world import World

Source = Annotated[str, msgspec.Meta(pattern=r"^((https?|file)://[^\s]+|/[^\x00]+|)$(?!\n)", max_length=2048)]
MAX_BYTES = 512 * 1024 * 1024
_BLOCK = 1024 * 1024


class CricConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section ``[server.cric]``: where the documents are, each an address, ``file://`` or a path; those that are not given
    are not asked for. At most ``removed_percent`` of the entries of one may vanish at once."""

    sites: Source = ""
    storages: Source = ""
    blacklist: Source = ""
    closeness: Source = ""
    queues: Source = ""
    period_s: Annotated[float, msgspec.Meta(ge=1)] = 600.0
    removed_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 20.0
    client_cert: str | None = None
    client_key: str | None = None
    ca_file: str | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


KINDS: dict[str, tuple[str, ...]] = {
    "sites": ("site",),
    "blacklist": (),
    "storages": ("storage",),
    "closeness": (DISTANCES,),
    "queues": ("queue",),
}
"""The documents, and what they describe; the blacklist is of the storages."""


class CricFailed(Exception):
    """A document that cannot be had, or is none; the words are for the admin."""


class CricFeed:
    """The documents as they were read last, and what is needed to ask whether they have changed."""

    def __init__(self, config: CricConfig) -> None:
        self._config = config
        self._marks: dict[str, dict[str, str]] = {}
        self._contents: dict[str, Any] = {}
        self._lock = threading.Lock()
        if config.ca_file is not None:
            certificate_authorities(config.ca_file)  # one that is no good is told at the start

    @property
    def kinds(self) -> tuple[str, ...]:
        """See :class:`server.catalogs.world_source.WorldSource`."""
        return tuple(kind for name in self._names for kind in KINDS[name])

    @property
    def period_s(self) -> float:
        """See :class:`server.catalogs.world_source.WorldSource`."""
        return self._config.period_s

    @property
    def removed_percent(self) -> float:
        """See :class:`server.catalogs.world_source.WorldSource`."""
        return self._config.removed_percent

    def described(self, world: World) -> list[Document]:
        """See :class:`server.catalogs.world_source.WorldSource`. Distances are also to storages of others' making."""
        with self._lock:
            made = {name: Document(name, self._where(name), KINDS[name]) for name in self._names}
            blacklist: dict[str, str] = {}
            for name, document in made.items():
                try:
                    content = self._content(name)
                    if name == "sites":
                        cric.read_sites(content, document)
                    elif name == "blacklist":
                        blacklist = cric.read_blacklist(content)
                        document.entries = len(blacklist)
                    elif name == "storages":
                        if "blacklist" in made and made["blacklist"].problem:
                            raise CricFailed("the blacklist cannot be had: without it nothing is said of storages")
                        cric.read_storages(content, document, blacklist)
                    elif name == "closeness":
                        closeness = cric.read_closeness(content)
                        document.entries = len(closeness)
                        cric.tell_distances(closeness, _sites(world, made.get("storages")), document)
                    else:
                        cric.read_queues(content, document)
                except (CricFailed, cric.Wrong) as error:
                    document.problem = str(error)
        return list(made.values())

    @property
    def _names(self) -> list[str]:
        return [name for name in KINDS if getattr(self._config, name)]

    def _where(self, name: str) -> str:
        """Where a document is, for people."""
        source: str = getattr(self._config, name)
        return without_user(source) if "://" in source else source

    def _content(self, name: str) -> Any:
        """A document, read anew only if it is another than before. Raises CricFailed."""
        source: str = getattr(self._config, name)
        try:
            content = self._fetched(name, source) if source.startswith("http") else self._read(name, source)
        except (requests.RequestException, OSError) as error:
            raise CricFailed(f"{self._where(name)}: {type(error).__name__}: {error}"[:1000]) from error
        if content is None:
            return self._contents[name]
        try:
            self._contents[name] = msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError) as error:
            self._marks.pop(name, None)
            raise CricFailed(f"{self._where(name)}: this is no whole JSON document: {error}"[:1000]) from error
        return self._contents[name]

    def _read(self, name: str, source: str) -> bytes | None:
        path = Path(source.removeprefix("file://"))
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_size > MAX_BYTES:
                raise CricFailed(f"{path}: it is larger than {MAX_BYTES} bytes")
            mark = {"file": f"{about.st_ino} {about.st_size} {about.st_mtime_ns}"}
            if self._marks.get(name) == mark:
                return None
            content = file.read(MAX_BYTES + 1)
        self._marks[name] = mark
        return content

    def _fetched(self, name: str, source: str) -> bytes | None:
        config = self._config
        pair = (config.client_cert, config.client_key) if config.client_cert and config.client_key else None
        headers = {"Accept": "application/json", "User-Agent": "pilotage", **self._marks.get(name, {})}
        with requests.Session() as session:
            session.trust_env = False  # no .netrc; proxies are given
            with session.get(
                source, headers=headers, timeout=(min(10.0, config.timeout_s), config.timeout_s), stream=True,
                verify=config.ca_file or True, cert=pair or config.client_cert, allow_redirects=False, proxies=get_environ_proxies(source),
            ) as reply:  # fmt: skip
                if reply.status_code == 304 and name in self._contents:
                    return None
                if reply.status_code != 200:
                    raise CricFailed(
                        f"{self._where(name)}: the server there answers {reply.status_code} {reply.reason}"
                    )
                body = bytearray()
                for block in reply.iter_content(_BLOCK):
                    body += block
                    if len(body) > MAX_BYTES:
                        raise CricFailed(f"{self._where(name)}: it is larger than {MAX_BYTES} bytes")
                told = {"If-None-Match": "ETag", "If-Modified-Since": "Last-Modified"}
                self._marks[name] = {ask: reply.headers[has] for ask, has in told.items() if has in reply.headers}
        return bytes(body)


def _sites(world: World, storages: Document | None) -> dict[str, str]:
    """The site of each storage that there is, or is about to be."""
    found = {spec.name: spec.site for spec in world.storages.values()}
    if storages is not None and not storages.problem:
        found.update({name: fields["site"] for (_, name), fields in storages.found.items()})
    return found
