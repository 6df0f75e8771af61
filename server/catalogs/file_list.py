"""The plainest catalogue: lists of files that lie on the server's disk, or behind an address that an admin allows.

A query is the name of a list: a path below the configured folder, such as ``2026/muons.txt``, or a URL that begins with
one of the allowed ones. The lists are those of ``files_from`` in a workflow file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

import msgspec
import requests

from common.cli.file_list import parse_file_list
from common.cli.strict import InputError
from common.endpoint import certificate_authorities
from common.wire import FileSpec
from server.catalogs.base import Catalog, CatalogUnavailable, Page, UnknownDataset

PAGE = 2000
MAX_BYTES = 512 * 1024 * 1024
"""A list of a million files fits."""
_BLOCK = 1024 * 1024
_GONE = (400, 401, 403, 404, 405, 410, 414)
"""Answers that stay the same however often one asks."""


class FileListOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``folder`` holds the lists; ``index`` is the one in which single files are looked up; ``urls`` are beginnings of addresses that may be fetched (https, or http within a
    site), each ending in a slash. ``ca_file`` replaces the system's certificate authorities."""

    folder: str = ""
    index: str = ""
    urls: list[Annotated[str, msgspec.Meta(pattern=r"^https?://[^/?#\s]+/([^?#\s]*/)?$")]] = []
    ca_file: str | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class FileListCatalog(Catalog):
    """Keeps the list that was asked for last, so that its pages cost one reading."""

    Options = FileListOptions

    def __init__(self, options: FileListOptions) -> None:
        self._options = options
        self._last: tuple[str, list[FileSpec]] = ("", [])
        self._index: tuple[float, dict[str, FileSpec]] = (0.0, {})
        if options.ca_file is not None:
            certificate_authorities(options.ca_file)  # one that is no good is told at the start

    def files(self, query: str, after: str) -> Page:
        """See :class:`Catalog`."""
        first = int(after or 0)
        if first == 0 or self._last[0] != query:
            self._last = (query, self._read(query))
        files = self._last[1]
        last = first + PAGE
        if last < len(files):
            return Page(files[first:last], str(last))
        self._last = ("", [])
        return Page(files[first:])

    def locate(self, dids: Sequence[str]) -> list[FileSpec]:
        """See :class:`Catalog`: those in the list ``index``, which is read again when it has changed."""
        if not self._options.index:
            raise UnknownDataset("this catalogue finds files by their names only where its option index names a list")
        try:
            changed = self._path(self._options.index).stat().st_mtime
        except OSError as error:
            raise CatalogUnavailable(f"{self._options.index}: cannot be read: {error.strerror}") from error
        if self._index[0] != changed:
            self._index = (changed, {file.did: file for file in self._read(self._options.index)})
        known = self._index[1]
        return [known[did] for did in dids if did in known]

    def _read(self, query: str) -> list[FileSpec]:
        is_url = query.startswith(("http://", "https://"))
        text = self._fetched(query) if is_url else self._from_folder(query)
        name = urlsplit(query).path if is_url else query
        try:
            return parse_file_list(text, name, query)
        except InputError as error:
            raise UnknownDataset(error.message[:2000]) from error

    def _path(self, query: str) -> Path:
        if not self._options.folder:
            raise UnknownDataset(f"{query}: this catalogue has no folder; give a URL that its configuration allows")
        name = PurePosixPath(query)
        if name.is_absolute() or ".." in name.parts or "\0" in query:
            raise UnknownDataset(f"{query}: give a path below the catalogue's folder")
        root = Path(self._options.folder).resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise UnknownDataset(f"{query}: there is no such list")
        return path

    def _from_folder(self, query: str) -> str:
        path = self._path(query)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise UnknownDataset(f"{query}: the list is larger than {MAX_BYTES} bytes")
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UnknownDataset(f"{query}: this is no UTF-8 text") from error
        except OSError as error:
            raise CatalogUnavailable(f"{query}: cannot be read: {error.strerror}") from error

    def _fetched(self, query: str) -> str:
        if not self._may_fetch(query):
            allowed = ", ".join(self._options.urls) or "none"
            raise UnknownDataset(
                f"{query}: the server fetches lists only below the addresses of its configuration: {allowed}"
            )
        verify = self._options.ca_file or True
        try:
            with requests.get(
                query, timeout=self._options.timeout_s, stream=True, allow_redirects=False, verify=verify
            ) as reply:
                return _text(query, reply)
        except requests.RequestException as error:
            raise CatalogUnavailable(f"{query}: {type(error).__name__}: {error}"[:2000]) from error

    def _may_fetch(self, query: str) -> bool:
        parts = urlsplit(query)
        if parts.username is not None or ".." in unquote(parts.path).split("/") or "\\" in query:
            return False
        return any(query.startswith(allowed) for allowed in self._options.urls)


def _text(query: str, reply: requests.Response) -> str:
    if reply.status_code in _GONE or 300 <= reply.status_code < 400:
        raise UnknownDataset(f"{query}: the server there answers {reply.status_code} {reply.reason}")
    if reply.status_code != 200:
        raise CatalogUnavailable(f"{query}: the server there answers {reply.status_code} {reply.reason}")
    body = bytearray()
    for block in reply.iter_content(_BLOCK):
        body += block
        if len(body) > MAX_BYTES:
            raise UnknownDataset(f"{query}: the list is larger than {MAX_BYTES} bytes")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnknownDataset(f"{query}: this is no UTF-8 text") from error
