"""The line of one transfer to its storage: every request shows the credential of the moment and follows redirects."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sized
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, Optional
from urllib.parse import urljoin

import certifi
import requests
import urllib3.exceptions
from cryptography import x509
from requests.utils import get_environ_proxies

from common.endpoint import certificate_authorities
from common.errors import ErrorCode, PilotageError
from common.plugins import version
from common.tokens import check_bearer
from pilot.copytool.base import Direction
from pilot.copytool.credentials import Credential, CredentialSource
from pilot.copytool.http_connection import Adapter, Sockets
from pilot.copytool.http_errors import network_error, status_error
from pilot.copytool.http_place import Place

log = logging.getLogger(__name__)

#: How long connecting may take, in seconds.
CONNECT_S = 15.0
#: How many times a server may point to another place.
MOST_REDIRECTS = 5
#: Bodies from this size on are not sent before the server wants them: smaller ones fit into the sockets' buffers.
ASK_FROM_BYTES = 64 * 1024
#: Bytes of an answer that nobody wanted that are read, so that its connection can be used again.
MOST_REST_BYTES = 64 * 1024
#: Adapters kept for the next transfers.
MOST_IDLE = 8

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _Key(NamedTuple):
    """What makes a TLS context: the proxy that it shows, as it was at some moment."""

    proxy_file: Optional[Path]
    modified_ns: int


class _Wire(NamedTuple):
    """An adapter and its sockets."""

    key: _Key
    adapter: Adapter
    sockets: Sockets


class Wires:
    """Adapters with open connections, for one transfer at a time each; kept when that went well.

    ``authorities`` is a file or a folder of hashed certificates that replaces all others; ``grid_authorities`` such a
    folder beside those of the system. ``stall_s`` is how long a server may be silent, in seconds.
    """

    def __init__(self, authorities: Optional[str], grid_authorities: Optional[str], stall_s: float) -> None:
        self._authorities = certificate_authorities(authorities) if authorities else None
        self._common = certificate_authorities(None)
        self._grid_authorities = grid_authorities
        self.stall_s = stall_s
        self.agent = f"pilotage/{version()}"
        self._idle: list[_Wire] = []
        self._contexts: dict[_Key, ssl.SSLContext] = {}
        self._lock = threading.Lock()

    @staticmethod
    def key(proxy_file: Optional[Path]) -> _Key:
        """Say what tells a proxy, as it is now, from others; :class:`PilotageError` ``NO_PROXY`` where there is none."""
        try:
            return _Key(proxy_file, proxy_file.stat().st_mtime_ns if proxy_file else 0)
        except OSError as error:
            raise PilotageError(ErrorCode.NO_PROXY, f"{proxy_file}: {error.strerror}") from error

    def take(self, key: _Key) -> _Wire:
        """Give a wire that shows a proxy, or none; :class:`PilotageError` ``NO_PROXY`` for one that cannot be used."""
        with self._lock:
            for wire in self._idle:
                if wire.key == key:
                    self._idle.remove(wire)
                    return wire
            context = self._contexts.get(key)
        if context is None:
            context = self._context(key.proxy_file)
            with self._lock:
                for old in [each for each in self._contexts if each.proxy_file == key.proxy_file]:
                    del self._contexts[old]
                self._contexts[key] = context
        sockets = Sockets(self.stall_s)
        return _Wire(key, Adapter(sockets, context), sockets)

    def keep(self, wire: _Wire) -> None:
        """Take back a wire that is in order."""
        with self._lock:
            self._idle.append(wire)
            surplus = self._idle.pop(0) if len(self._idle) > MOST_IDLE else None
        if surplus is not None:
            surplus.adapter.close()

    def _context(self, proxy_file: Optional[Path]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._authorities is None and self._common is None:
            context.load_default_certs()
            context.load_verify_locations(cafile=certifi.where())
        for place in (self._authorities,) if self._authorities else (self._common, self._grid_authorities):
            if place is not None:
                is_folder = Path(place).is_dir()
                context.load_verify_locations(**({"capath": place} if is_folder else {"cafile": place}))
        if proxy_file is not None:
            try:
                context.load_cert_chain(proxy_file)
            except (OSError, ssl.SSLError) as error:
                raise PilotageError(ErrorCode.NO_PROXY, f"{proxy_file} is no usable proxy: {error}") from error
        return context


class Line:
    """One transfer's requests, in one thread; :meth:`cut` from another ends them.

    ``write`` says what for a credential is asked, ``deadline`` is monotonic seconds.
    """

    def __init__(
        self, wires: Wires, source: CredentialSource, url: str, direction: Direction, write: bool, deadline: float
    ) -> None:
        self.direction = direction
        self.deadline = deadline
        self._wires = wires
        self._source = source
        self._url = url
        self._write = write
        self._token_refused = False
        self._wire: Optional[_Wire] = None
        self._cut = threading.Event()

    def cut(self) -> None:
        """End what is under way, from any thread; whatever is asked later fails."""
        self._cut.set()
        wire = self._wire
        if wire is not None:
            wire.sockets.cut()

    def check(self) -> None:
        """Raise the direction's error when the line was cut or the deadline is over."""
        if self._cut.is_set():
            raise PilotageError(self.direction.failed, "cancelled")
        if time.monotonic() >= self.deadline:
            raise PilotageError(self.direction.timeout, "not done in time")

    def close(self, *, clean: bool) -> None:
        """Give the connections back, or close them when they may be amid something."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        if clean and not self._cut.is_set():
            self._wires.keep(wire)
        else:
            wire.adapter.close()

    @contextlib.contextmanager
    def ask(
        self,
        method: str,
        place: Place,
        headers: Optional[Mapping[str, str]] = None,
        body: Optional[Sized] = None,
        *,
        accept: tuple[int, ...] = (),
        patient: bool = False,
    ) -> Iterator[requests.Response]:
        """Make one request and give the answer with its body unread: a success, or a status in ``accept``.

        ``body`` must give its bytes anew each time it is iterated. ``patient``: the server may be silent until the
        deadline, because it reads the whole file first. Raises :class:`PilotageError`.
        """
        response, end = self._follow(method, place, dict(headers or {}), body, patient)
        try:
            if not 200 <= response.status_code < 300 and response.status_code not in accept:
                error = status_error(response, self.direction, end.shown, end.query)
                raise error if error.code is not self.direction.authentication else self._explained(error)
            yield response
        except BaseException:
            response.close()
            raise
        self._finish(response)

    @staticmethod
    def _finish(response: requests.Response) -> None:
        """Leave the connection usable where that costs little: read a short rest, else close it."""
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            response.raw.read(MOST_REST_BYTES)
        response.close()

    def _follow(
        self, method: str, place: Place, headers: dict[str, str], body: Optional[Sized], patient: bool
    ) -> tuple[requests.Response, Place]:
        """Send a request to wherever the servers point; give the last answer and whose it is."""
        for _ in range(MOST_REDIRECTS + 1):
            response = self._send(method, place, headers, body, patient)
            if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                return response, place
            target = Place.parse(urljoin(place.url, response.headers["Location"]), self.direction)
            if place.encrypted and not target.encrypted:
                detail = f"redirects to {target.shown}, which is not encrypted: the storage must redirect to https"
                raise PilotageError(self.direction.failed, f"{place.shown} {detail}")
            log.debug("%s %s goes to %s", method, place.shown, target.endpoint)
            if target.path == place.path and "Destination" in headers:  # of a MOVE: it must stay on the same server
                headers["Destination"] = headers["Destination"].replace(place.endpoint, target.endpoint, 1)
            self._finish(response)
            place = target
        raise PilotageError(self.direction.failed, f"{place.shown}: redirected more than {MOST_REDIRECTS} times")

    def _send(
        self, method: str, place: Place, headers: dict[str, str], body: Optional[Sized], patient: bool
    ) -> requests.Response:
        """Send one request to one server; once more with the proxy when it does not want the token."""
        credential = self._credential(place)
        response = self._exchange(method, place, headers, body, patient, credential)
        refused = response.status_code in (401, 403) and credential.token and credential.proxy_file
        if not refused or not place.encrypted:
            return response
        self._finish(response)
        self._token_refused = True
        return self._exchange(method, place, headers, body, patient, credential)

    def _credential(self, place: Place) -> Credential:
        """Ask for what this server is shown: nothing where the URL itself is the permission."""
        return Credential() if place.signed else self._source.for_url(self._url, write=self._write)

    def _exchange(
        self,
        method: str,
        place: Place,
        headers: dict[str, str],
        body: Optional[Sized],
        patient: bool,
        credential: Credential,
    ) -> requests.Response:
        shown = {"User-Agent": self._wires.agent, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        use_token = credential.token is not None and not self._token_refused and place.private
        if use_token and credential.token is not None:
            shown["Authorization"] = f"Bearer {check_bearer(credential.token)}"
        size = len(body) if body is not None else 0
        if size >= ASK_FROM_BYTES:
            shown["Expect"] = "100-continue"
        wire = self._connected(None if use_token or not place.encrypted else credential.proxy_file)
        self.check()
        left = max(self.deadline - time.monotonic(), 0.001)
        silence = left if patient else min(self._wires.stall_s, left)
        try:
            return wire.adapter.exchange(
                method,
                place.url,
                shown,
                body if size else None,
                (min(CONNECT_S, left), silence),
                get_environ_proxies(place.url),
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            self.check()
            if wire.key.proxy_file is not None:
                self._blame_proxy(wire.key.proxy_file, place)
            raise network_error(error, self.direction, place.shown, place.query) from error

    def _blame_proxy(self, proxy_file: Path, place: Place) -> None:
        """Raise the better error for a server that hung up on a proxy that has expired: not all say why."""
        try:
            ends = x509.load_pem_x509_certificate(proxy_file.read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
            return  # replaced or removed this moment: what the network said stands
        if ends < datetime.now(timezone.utc):
            detail = f"{place.shown}: the proxy {proxy_file} ended {ends:%Y-%m-%d %H:%M} UTC"
            raise PilotageError(self.direction.authentication, detail)

    def _connected(self, proxy_file: Optional[Path]) -> _Wire:
        """Give the wire that shows a proxy as it is now: one that was renewed opens new connections."""
        key = self._wires.key(proxy_file)
        if self._wire is not None:
            if self._wire.key == key:
                return self._wire
            self._wires.keep(self._wire)
        wire = self._wires.take(key)
        self._wire = wire
        if self._cut.is_set():
            wire.sockets.cut()
        return wire

    def _explained(self, error: PilotageError) -> PilotageError:
        """Say what was shown, when nothing was."""
        credential = self._source.for_url(self._url, write=self._write)
        if credential.token is None and credential.proxy_file is None:
            return PilotageError(error.code, f"{error.detail}; there was neither a token nor a proxy to show")
        if not Place.parse(self._url, self.direction).private:
            return PilotageError(error.code, f"{error.detail}; credentials are not shown without TLS")
        return error
