"""CRIC's documents: fetched from an address or a file, and only when they have changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import requests
from requests.utils import get_environ_proxies

from common.endpoint import certificate_authorities, without_user

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


NAMES = ("sites", "storages", "blacklist", "closeness", "queues")


class CricFailed(Exception):
    """A document that cannot be had, or is none; the words are for the admin."""


class CricFeed:
    """The documents as they were read last, and what is needed to ask whether they have changed."""

    def __init__(self, config: CricConfig) -> None:
        self.config = config
        self.due = 0.0
        self._marks: dict[str, dict[str, str]] = {}
        self._documents: dict[str, Any] = {}
        if config.ca_file is not None:
            certificate_authorities(config.ca_file)  # one that is no good is told at the start

    @property
    def names(self) -> list[str]:
        """The documents that there are."""
        return [name for name in NAMES if getattr(self.config, name)]

    def where(self, name: str) -> str:
        """Where a document is, for people."""
        source: str = getattr(self.config, name)
        return without_user(source) if "://" in source else source

    def document(self, name: str) -> Any:
        """A document, read anew only if it is another than before. Raises CricFailed."""
        source: str = getattr(self.config, name)
        try:
            content = self._fetched(name, source) if source.startswith("http") else self._read(name, source)
        except (requests.RequestException, OSError) as error:
            raise CricFailed(f"{self.where(name)}: {type(error).__name__}: {error}"[:1000]) from error
        if content is None:
            return self._documents[name]
        try:
            document = msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError) as error:
            self._marks.pop(name, None)
            raise CricFailed(f"{self.where(name)}: this is no whole JSON document: {error}"[:1000]) from error
        self._documents[name] = document
        return document

    def forget(self, name: str) -> None:
        """Have a document read again next time, whether it has changed or not."""
        self._marks.pop(name, None)

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
        config = self.config
        pair = (config.client_cert, config.client_key) if config.client_cert and config.client_key else None
        headers = {"Accept": "application/json", "User-Agent": "pilotage", **self._marks.get(name, {})}
        with requests.Session() as session:
            session.trust_env = False  # no .netrc; proxies are given
            with session.get(
                source, headers=headers, timeout=(min(10.0, config.timeout_s), config.timeout_s), stream=True,
                verify=config.ca_file or True, cert=pair or config.client_cert, allow_redirects=False, proxies=get_environ_proxies(source),
            ) as reply:  # fmt: skip
                if reply.status_code == 304 and name in self._documents:
                    return None
                if reply.status_code != 200:
                    raise CricFailed(f"{self.where(name)}: the server there answers {reply.status_code} {reply.reason}")
                body = bytearray()
                for block in reply.iter_content(_BLOCK):
                    body += block
                    if len(body) > MAX_BYTES:
                        raise CricFailed(f"{self.where(name)}: it is larger than {MAX_BYTES} bytes")
                told = {"If-None-Match": "ETag", "If-Modified-Since": "Last-Modified"}
                self._marks[name] = {ask: reply.headers[has] for ask, has in told.items() if has in reply.headers}
        return bytes(body)
