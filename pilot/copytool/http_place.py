"""Where a file is at an HTTP storage: its URL, taken apart without changing a byte of what goes over the wire."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from common.errors import PilotageError
from pilot.copytool.base import Direction, part_name, refuse_climbing, safe_url

#: The schemes of URLs to those of the wire.
SCHEMES: dict[str, str] = {"http": "http", "https": "https", "dav": "http", "davs": "https"}

#: What a query holds when the URL itself is the permission, in lower case: signatures of S3 (4 and 2), Google and
#: Azure, and the tokens that XRootD and dCache put into URLs.
_SIGNATURES = frozenset({"x-amz-signature", "signature", "x-goog-signature", "sig", "authz", "access_token"})
#: Those of them whose signature covers method and path, so that nothing else can be asked with it.
_BOUND = frozenset({"x-amz-signature", "signature", "x-goog-signature"})


class Place(NamedTuple):
    """A file at a server: ``endpoint`` (``https://host:2880``), ``path`` and ``query`` as they are sent (encoded)."""

    endpoint: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str, direction: Direction) -> Place:
        """Read a URL; the direction's error for one that is none, or that could leave the storage."""
        shown = safe_url(url)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise PilotageError(direction.failed, f"{shown}: is no URL ({error})") from error
        scheme = SCHEMES.get(parts.scheme.lower(), "")
        if not scheme or not host or not parts.path.strip("/"):
            raise PilotageError(direction.failed, f"{shown}: is no URL like https://host:443/folder/file")
        if parts.username is not None:
            detail = "names a user: credentials come from the copytool's source, not from URLs"
            raise PilotageError(direction.failed, f"{scheme}://{host}{parts.path}: {detail}")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise PilotageError(direction.failed, f"{shown}: write it percent-encoded")
        refuse_climbing(unquote(parts.path), shown, direction)
        name = f"[{host}]" if ":" in host else host
        return cls(f"{scheme}://{name}{'' if port is None else f':{port}'}", parts.path, parts.query)

    @property
    def url(self) -> str:
        """The whole URL, as it is sent."""
        return f"{self.endpoint}{self.path}{'?' if self.query else ''}{self.query}"

    @property
    def shown(self) -> str:
        """The URL as it may be logged."""
        return self.endpoint + self.path

    @property
    def name(self) -> str:
        """The file's name, decoded."""
        return unquote(self.path.rstrip("/").rsplit("/", 1)[1])

    @property
    def encrypted(self) -> bool:
        """Whether TLS protects what is sent there."""
        return self.endpoint.startswith("https:")

    @property
    def private(self) -> bool:
        """Whether nobody on the way can read along: TLS, or this machine itself."""
        host = urlsplit(self.endpoint).hostname or ""
        if self.encrypted or host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def signed(self) -> bool:
        """Whether the URL itself is the permission: then no other credential is shown."""
        return bool(_SIGNATURES & self._keys())

    @property
    def bound(self) -> bool:
        """Whether its signature is good for one method and this one path only."""
        return bool(_BOUND & self._keys())

    def _keys(self) -> set[str]:
        return {key.lower() for key, _ in parse_qsl(self.query, keep_blank_values=True)}

    def part(self) -> Place:
        """A temporary place beside this one."""
        return self.beside(part_name(self.name))

    def beside(self, name: str) -> Place:
        """The file of that (unreserved) name in the same folder."""
        return self._replace(path=f"{self.path.rstrip('/').rsplit('/', 1)[0]}/{name}")

    def folder(self) -> Place:
        """The folder that it lies in, with a slash at its end."""
        return self.beside("")
