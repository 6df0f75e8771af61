"""What the XRootD copytool needs of the bindings: their import, their time limits, and calls that can be left behind."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import importlib
import logging
import math
import posixpath
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from common.errors import ErrorCode, PilotageError
from pilot.copytool.background import CANCEL_SLICE_S
from pilot.copytool.base import Direction, part_name, raise_if_cancelled, refuse_climbing, safe_url
from pilot.copytool.credentials import Credential

log = logging.getLogger(__name__)

#: The client's time limits, in seconds (its own defaults add up to half an hour). An ``XRD_…`` variable that the site's
#: admin has set wins over ours.
CLIENT_SETTINGS: dict[str, int] = {
    "ConnectionWindow": 15,
    "ConnectionRetry": 1,
    "RequestTimeout": 120,
    "StreamTimeout": 30,
    "TimeoutResolution": 1,
    "StreamErrorWindow": 0,  # a server that came back is used at once
}

#: Checksums that this process asks one server for at a time. A server with more of them to compute than its limit
#: (``xrootd.chksum max``, 2 to 4 as a rule) doesn't queue them but sends the client away for 30 seconds.
CHECKSUMS_AT_A_TIME = 2

#: The schemes of which every byte is encrypted.
TLS_SCHEMES = ("roots://", "xroots://")


class Bindings(NamedTuple):
    """The two modules of the XRootD bindings; untyped."""

    client: Any
    flags: Any


@functools.lru_cache(maxsize=1)
def bindings() -> Bindings:
    """Import the bindings and set the client's time limits, once.

    Raises :class:`PilotageError` ``MIDDLEWARE_IMPORT_FAILED``.
    """
    try:
        found = Bindings(importlib.import_module("XRootD.client"), importlib.import_module("XRootD.client.flags"))
    except ImportError as error:
        raise PilotageError(
            ErrorCode.MIDDLEWARE_IMPORT_FAILED, f"the XRootD bindings cannot be imported: {error}"
        ) from error
    for key, seconds in CLIENT_SETTINGS.items():
        if not found.client.EnvPutInt(key, seconds):
            log.info("XRootD's %s stays as the environment sets it", key)
    return found


class Place(NamedTuple):
    """A file at a server: ``endpoint`` with its trailing slash, ``path`` (decoded), ``query`` (may hold a token).

    ``asked`` is the URL as it was given, without its query. ``connection`` says with what to connect, ``login`` is the
    connection's own name: both come with a credential.
    """

    endpoint: str
    path: str
    query: str
    asked: str = ""
    connection: str = ""
    login: str = ""

    @classmethod
    def parse(cls, url: str, direction: Direction) -> Place:
        """Read a URL; the direction's error for one that is none, or whose path cannot be asked for.

        URLs are percent-encoded, but neither client nor server of XRootD decodes a path: it is sent as it is.
        """
        parsed = bindings().client.URL(url)
        if not parsed.is_valid() or not parsed.hostname or not parsed.path.strip("/"):
            raise PilotageError(direction.failed, f"{safe_url(url)}: is no URL like root://host:1094//folder/file")
        path = unquote(parsed.path)
        refuse_climbing(path, safe_url(url), direction)
        if "?" in path or not path.isprintable():
            detail = "XRootD takes no '?' and no unprintable character in a file's name: rename the file"
            raise PilotageError(direction.failed, f"{safe_url(url)}: {detail}")
        asked, _, query = url.partition("?")
        return cls(f"{parsed.protocol}://{parsed.hostid}/", path, query, asked)

    def showing(self, credential: Credential) -> Place:
        """The same place, and what is shown there.

        The library takes the file of a token, or of a proxy, from the URL with which it connects (``xrd.ztn``,
        ``xrd.gsiusrpxy``), and then serves every URL of the same server and user by that connection, whatever they
        name. So each credential has a user of its own here (a name that servers only log). A server may want no token
        from those who connect, but one with each request (``authz``): that goes over TLS only, and into no log.
        """
        of_url, of_connection, mark = [self.query], [], ""
        if credential.token_file is not None:
            of_connection.append(f"xrd.ztn={_plain(credential.token_file)}")
            mark += credential.token or ""
        if credential.proxy_file is not None:
            changed = _changed(credential.proxy_file)
            _refuse_other_than_rsa(credential.proxy_file, changed)
            of_connection.append(f"xrd.gsiusrpxy={_plain(credential.proxy_file)}")
            mark += f"{credential.proxy_file} {changed}"
        if credential.token is not None and self.endpoint.startswith(TLS_SCHEMES):
            of_url.append(f"authz=Bearer%20{credential.token}")
        return self._replace(
            query="&".join(item for item in of_url if item), connection="&".join(of_connection), login=_login(mark)
        )

    @property
    def server(self) -> str:
        """The URL to connect with."""
        scheme, _, host = self.endpoint.partition("://")
        if self.login:
            host = f"{self.login}@{host.rpartition('@')[2]}"
        return f"{scheme}://{host}" + (f"?{self.connection}" if self.connection else "")

    @property
    def url(self) -> str:
        """The whole URL."""
        address, _, _ = self.server.partition("?")
        return address + self.with_query(self.connection)

    @property
    def shown(self) -> str:
        """The URL as it may be logged."""
        return self.endpoint + self.path

    def with_query(self, *more: str) -> str:
        """The path with the query, and more items of it."""
        items = [item for item in (self.query, *more) if item]
        return f"{self.path}?{'&'.join(items)}" if items else self.path

    def part(self) -> Place:
        """A temporary place beside this one."""
        return self.beside(part_name(posixpath.basename(self.path)))

    def beside(self, name: str) -> Place:
        """The file of that name in the same folder."""
        asked = f"{self.asked.rpartition('/')[0]}/{quote(name)}"
        return self._replace(path=posixpath.join(posixpath.dirname(self.path), name), asked=asked)


def _login(mark: str) -> str:
    """A user's name of eight characters, which is what the protocol has room for; none for an empty ``mark``."""
    return base64.b32encode(hashlib.sha256(mark.encode()).digest())[:8].decode().lower() if mark else ""


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0  # the library says what is wrong with it


@functools.lru_cache(maxsize=64)
def _refuse_other_than_rsa(file: Path, _changed: int) -> None:
    """A proxy with a key on an elliptic curve is the end of the whole process: the library crashes with it (6.2.1).

    Raises PilotageError (MISSING_CREDENTIALS).
    """
    try:
        proxy = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        return  # the library says what is wrong with it
    if not isinstance(proxy.public_key(), rsa.RSAPublicKey):
        detail = f"{file}: XRootD's client takes proxies with an RSA key only: make it with one"
        raise PilotageError(ErrorCode.MISSING_CREDENTIALS, detail)


def _plain(file: Path) -> str:
    """A file's path as it may stand in a URL, where nothing is decoded. Raises PilotageError (MISSING_CREDENTIALS)."""
    if not re.fullmatch(r"[A-Za-z0-9/._~+,:@-]+", str(file)):
        detail = (
            f"XRootD takes no such path of a credential: {str(file)!r}; choose a work_dir without special characters"
        )
        raise PilotageError(ErrorCode.MISSING_CREDENTIALS, detail)
    return str(file)


class Handler:
    """The library's progress handler: says whether to stop."""

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel
        self.stopped = threading.Event()

    def begin(self, job: int, total: int, source: object, target: object) -> None:
        """A job begins."""

    def end(self, job: int, results: object) -> None:
        """A job ended."""

    def update(self, job: int, processed: int, total: int) -> None:
        """Some bytes were moved."""

    def should_cancel(self, job: int) -> bool:
        """Say whether to stop."""
        return self.stopped.is_set() or self._cancel.is_set()


@functools.lru_cache(maxsize=1024)
def _checksum_places(endpoint: str) -> threading.Semaphore:
    return threading.Semaphore(CHECKSUMS_AT_A_TIME)


@contextlib.contextmanager
def checksum_turn(place: Place, direction: Direction, cancel: threading.Event, deadline: float) -> Iterator[None]:
    """Wait for one's turn to ask a server for a checksum; the direction's error on ``cancel`` or past the deadline."""
    free = _checksum_places(place.endpoint)
    while not free.acquire(timeout=CANCEL_SLICE_S):
        raise_if_cancelled(cancel, direction)
        if time.monotonic() >= deadline:
            raise PilotageError(direction.timeout, f"{place.shown}: other checksums at the server took too long")
    try:
        yield
    finally:
        free.release()


def run_copy(
    url: str, local: str, direction: Direction, algorithm: str, handler: Handler, deadline: float
) -> tuple[Any, str]:
    """Run the library's copy engine; give its status and the checksum of the local side."""
    source, target = (url, local) if direction is Direction.IN else (local, url)
    seconds = whole_seconds(deadline)
    process = bindings().client.CopyProcess()
    process.add_job(
        source,
        target,
        force=True,  # the part file is ours
        posc=direction is Direction.OUT,  # a server drops an upload that is never closed
        mkdir=True,
        checksummode="target" if direction is Direction.IN else "source",
        checksumtype=algorithm,
        inittimeout=min(seconds, 600),
        cptimeout=seconds,
        retry=0,  # retries are the staging client's
        rtrplc="force",
    )
    status = process.prepare()
    if not status.ok:
        return status, ""
    _, results = process.run(handler)
    result = results[0]
    return result["status"], result.get("targetCheckSum" if direction is Direction.IN else "sourceCheckSum", "")


def whole_seconds(deadline: float) -> int:
    """Give the time left until a monotonic deadline as the library wants it: whole seconds, one at least."""
    return min(max(math.ceil(deadline - time.monotonic()), 1), 65_535)


def descriptor_path(descriptor: int) -> str:
    """Give a path to an open file that has no character that a URL could misread, and that nobody can swap."""
    return f"/proc/self/fd/{descriptor}"
