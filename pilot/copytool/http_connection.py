"""Connections that can be cut from another thread, and that ask before they send a large body.

``requests`` and ``urllib3`` can do neither. Both are added where they open connections: each connection notes its
socket, so that a transfer that is cancelled or late ends although its thread waits in a read; and a request with
``Expect: 100-continue`` waits for the server's word (RFC 9110, 10.1.1), so that a file that is to go to another host,
or not at all, is not sent here first.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Optional

import requests
import urllib3.connection
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

#: How long a server may take to say whether it wants the body, in seconds: one that does not know the question is silent.
GO_AHEAD_S = 2.0
#: Bytes of the head of an answer that is read while waiting for it.
MOST_HEAD_BYTES = 64 * 1024


class Sockets:
    """The open sockets of one adapter; :meth:`cut` ends whatever is going on in them, and refuses new ones."""

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._cut = False

    def add(self, opened: socket.socket) -> None:
        """Note an open socket; :class:`ConnectionAbortedError` when all were cut meanwhile."""
        with self._lock:
            if not self._cut:
                self._open.add(opened)
                return
        raise ConnectionAbortedError("the transfer was given up")

    def cut(self) -> None:
        """Cut all, from any thread; theirs get an error or the end of the stream."""
        with self._lock:
            self._cut = True
            left = list(self._open)
        for each in left:
            with contextlib.suppress(OSError):  # closed already
                # Not the method of ssl.SSLSocket, after which its reader would take what is encrypted for the data.
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class _Asking:
    """What our two kinds of connection have in common, as a mix-in of :class:`urllib3.connection.HTTPConnection`."""

    sock: Optional[socket.socket]

    def __init__(self, *args: Any, sockets: Sockets, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sockets = sockets
        self._asks = False
        self._answered = False

    def connect(self) -> None:
        """Connect, and note the socket."""
        super().connect()  # type: ignore[misc]  # the class that this is mixed into
        if self.sock is not None:
            self._sockets.add(self.sock)

    def putrequest(self, *args: Any, **options: Any) -> None:
        """Begin a request."""
        self._asks = self._answered = False
        self.response_class = http.client.HTTPResponse
        super().putrequest(*args, **options)  # type: ignore[misc]

    def putheader(self, header: str, *values: Any) -> None:
        """Add a header."""
        self._asks = self._asks or header.lower() == "expect"
        super().putheader(header, *values)  # type: ignore[misc]

    def endheaders(self, *args: Any, **options: Any) -> None:
        """Send the headers; wait for the server's word where the request asks for it."""
        super().endheaders(*args, **options)  # type: ignore[misc]
        if self.sock is not None:
            if self._asks:
                self._await_word(self.sock)
            self.sock.settimeout(self._sockets.stall_s)  # urllib3 would give each send as long as a connect

    def _await_word(self, sock: socket.socket) -> None:
        sock.settimeout(GO_AHEAD_S)
        while True:
            try:
                head = _read_head(sock)
            except socket.timeout:
                return
            status = head.split(b" ", 2)[1:2]
            if status == [b"100"]:
                return
            if not status or not status[0].startswith(b"1"):
                self._answered = True
                self.response_class = functools.partial(_replayed, head)  # type: ignore[assignment]
                return

    def send(self, data: Any) -> None:
        """Send bytes, unless the server has answered already."""
        if self._answered:
            raise BrokenPipeError("the server has answered")  # urllib3 then reads the answer
        super().send(data)  # type: ignore[misc]

    def getresponse(self) -> Any:
        """Read the answer; a connection that owes a body is of no further use."""
        response = super().getresponse()  # type: ignore[misc]
        if self._answered:
            self.close()  # type: ignore[attr-defined]  # the answer keeps its socket until it is read
        return response


class _Plain(_Asking, urllib3.connection.HTTPConnection):  # type: ignore[misc]  # urllib3 names its parameters
    pass


class _Encrypted(_Asking, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
    pass


def _read_head(sock: socket.socket) -> bytes:
    """Read the head of an answer and not a byte more, which nobody could put back.

    Raises :class:`socket.timeout` when nothing comes, :class:`ConnectionResetError` when the server hangs up.
    """
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte or len(head) >= MOST_HEAD_BYTES:
            raise ConnectionResetError("no answer")
        head += byte
    return bytes(head)


class _Replay(io.RawIOBase):
    """A stream that begins with bytes read before."""

    def __init__(self, head: bytes, sock: socket.socket) -> None:
        self._head = memoryview(head)
        self._rest = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        """Read what was read before, then the rest."""
        if not self._head:
            return self._rest.readinto(buffer)
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count

    def close(self) -> None:
        """Let go of the socket."""
        self._rest.close()
        super().close()


class _Replaying:
    """What :class:`http.client.HTTPResponse` needs of a socket."""

    def __init__(self, head: bytes, sock: socket.socket) -> None:
        self._stream = _Replay(head, sock)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Its stream."""
        return io.BufferedReader(self._stream)


def _replayed(head: bytes, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
    """Make an answer whose head was read before."""
    return http.client.HTTPResponse(_Replaying(head, sock), **options)  # type: ignore[arg-type]


class Adapter(HTTPAdapter):
    """A ``requests`` adapter with connections of the kinds above, and one TLS context for all of them."""

    def __init__(self, sockets: Sockets, context: ssl.SSLContext) -> None:
        self._context = context
        self._kinds = {
            "http": _pool(HTTPConnectionPool, functools.partial(_Plain, sockets=sockets)),
            "https": _pool(HTTPSConnectionPool, functools.partial(_Encrypted, sockets=sockets)),
        }
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        """Make the pools."""
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **options)
        self.poolmanager.pool_classes_by_scheme = self._kinds

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pools behind a proxy."""
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, **options)
        manager.pool_classes_by_scheme = self._kinds
        return manager

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        """Say which pool a request needs: all about TLS is in the context."""
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """All is in the context, which always verifies."""

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any,
        timeout: tuple[float, float],
        proxies: Mapping[str, str],
    ) -> requests.Response:
        """Send one request, its URL exactly as given, and give the answer with its body unread."""
        prepared = requests.Request(method, url, dict(headers), data=body).prepare()
        prepared.url = url
        return self.send(prepared, stream=True, timeout=timeout, proxies=dict(proxies))


def _pool(kind: type[HTTPConnectionPool], connection: Callable[..., Any]) -> type[HTTPConnectionPool]:
    return type(kind.__name__, (kind,), {"ConnectionCls": staticmethod(connection)})
