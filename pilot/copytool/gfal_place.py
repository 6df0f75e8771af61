"""Where a file is, in the words of gfal2: each scheme has its own idea of what is encoded in a URL."""

from __future__ import annotations

import posixpath
from typing import NamedTuple
from urllib.parse import quote, unquote

from common.errors import PilotageError
from pilot.copytool.base import Direction, part_name, refuse_climbing, safe_url, url_scheme

#: Schemes whose paths gfal2 takes as they are; what it takes encoded for XRootD, it decodes, as those servers do not.
RAW_SCHEMES = frozenset({"file", "gsiftp", "srm"})
#: Schemes over HTTP.
WEB_SCHEMES = frozenset({"davs", "https"})
#: Characters that stay as they are in the path of a URL (RFC 3986: pchar and "/").
_SAFE = "/!$&'()*+,;=:@-._~"


class Place(NamedTuple):
    """A file: ``head`` is all of its URL before the path (``root://host:1094/``), ``path`` decoded, ``query`` as it is
    (may hold a token)."""

    scheme: str
    head: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str, direction: Direction) -> Place:
        """Read a URL; the direction's error for one that is none, or whose path cannot be asked for."""
        shown, scheme = safe_url(url), url_scheme(url)
        start, mark, rest = url.partition("?SFN=") if scheme == "srm" else ("", "", "")
        if mark:  # srm://host:8443/srm/managerv2?SFN=/folder/file
            head, encoded, query = start + mark, rest, ""
        else:
            before, _, rest = url.partition("://")
            host, slash, encoded = rest.partition("/")
            encoded, _, query = (slash + encoded).partition("?")
            head = f"{before}://{host}"
            if scheme == "file" and host not in ("", "localhost"):
                raise PilotageError(direction.failed, f"{shown}: file URLs name no host: write file:///absolute/path")
            if scheme == "file":
                head = "file://"
            elif not host:
                encoded = ""
        path = unquote(encoded)
        if not path.strip("/"):
            raise PilotageError(direction.failed, f"{shown}: is no URL like {scheme}://host/folder/file")
        refuse_climbing(path, shown, direction)
        if not path.isprintable() or ("?" in path and scheme not in WEB_SCHEMES | {"file"}):
            detail = "gfal2 takes no '?' and no unprintable character in a file's name: rename the file"
            raise PilotageError(direction.failed, f"{shown}: {detail}")
        return cls(scheme, head, path, query)

    @property
    def url(self) -> str:
        """The whole URL as gfal2 wants it."""
        path = self.path if self.scheme in RAW_SCHEMES else quote(self.path, safe=_SAFE)
        return f"{self.head}{path}{'?' if self.query else ''}{self.query}"

    @property
    def shown(self) -> str:
        """The URL as it may be logged."""
        return self.head + self.path

    @property
    def endpoint(self) -> str:
        """The beginning of the URLs that one token is for; empty where the token goes another way."""
        return f"{self.head}/" if self.scheme in WEB_SCHEMES else ""

    @property
    def folder(self) -> Place:
        """The folder that it is in."""
        return self._replace(path=posixpath.dirname(self.path) + "/")

    def part(self) -> Place:
        """A temporary place beside this one."""
        return self.beside(part_name(posixpath.basename(self.path)))

    def beside(self, name: str) -> Place:
        """The file of that name in the same folder."""
        return self._replace(path=posixpath.join(posixpath.dirname(self.path), name))

    @property
    def takes_rename(self) -> bool:
        """Whether a file can get this name by a rename.

        WebDAV hands the new name over as a URL in a header, which XRootD's servers do not decode.
        """
        return self.scheme not in WEB_SCHEMES or self.url == self.shown
