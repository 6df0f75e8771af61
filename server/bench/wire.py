"""HTTP/1.1 on a raw socket, as little of it as a load generator needs: one request at a time, rendered beforehand."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Annotated, Any

import msgspec

from server.bench.messages import Target

RECEIVE_BYTES = 262_144
CONNECT_S = 30.0


class Broken(Exception):
    """The connection ended, or what came over it is no answer that we can read."""


class Connection:
    """A keep-alive connection with at most one request under way. ``work`` is whatever its user puts there."""

    __slots__ = ("_buffer", "_expected", "_receive", "_send", "fd", "sock", "work")

    def __init__(self, target: Target, context: ssl.SSLContext | None) -> None:
        plain = socket.create_connection((target.host, target.port), timeout=CONNECT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.adopt(context.wrap_socket(plain, server_hostname=target.host) if context else plain)

    def adopt(self, sock: socket.socket) -> None:
        """Use a socket that is connected."""
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        self.work: Any = None
        self._send = sock.send
        self._receive = sock.recv
        self._buffer = b""
        self._expected = 0

    def send(self, request: bytes) -> None:
        """Send a request.

        Raises:
            Broken: the server has closed the connection.
        """
        try:
            sent = self._send(request)
            if sent < len(request):
                self._send_rest(request[sent:])
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._send_rest(request)
        except OSError as error:
            raise Broken(f"{error}") from error

    def _send_rest(self, rest: bytes) -> None:
        """The socket's buffer is full, which with one small request at a time is rare: wait."""
        self.sock.settimeout(CONNECT_S)
        self.sock.sendall(rest)
        self.sock.setblocking(False)

    def receive(self) -> tuple[int, bytes] | None:
        """Status and body of the answer, when all of it is there; else None, and ask again when more can be read.

        Raises:
            Broken: see there.
        """
        try:
            data = self._receive(RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            raise Broken(f"{error}") from error
        if not data:
            raise Broken("the server closed the connection")
        if self._buffer:
            data = self._buffer + data
            if len(data) < self._expected:
                self._buffer = data
                return None
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return None
        head = data[:end].lower()
        status = int(data[9:12])
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            if status != 204:
                raise Broken("an answer without Content-Length")
            length = 0
        else:
            length = int(head[at + 17 : at + 32].partition(b"\r\n")[0])
        if len(data) < end + 4 + length:
            self._buffer, self._expected = data, end + 4 + length
            return None
        self._buffer, self._expected = b"", 0
        return status, data[end + 4 :]

    def close(self) -> None:
        """Close it."""
        self.sock.close()


def wait_until(moment: float) -> None:
    """Until the monotonic clock shows ``moment``."""
    threading.Event().wait(max(0.0, moment - time.monotonic()))


def context_of(target: Target) -> ssl.SSLContext | None:
    """What TLS needs, or None without it."""
    return ssl.create_default_context(cafile=target.ca_file) if target.ca_file else None


def head(target: Target, path: str, token: str, length: int) -> bytes:
    """The head of a POST with a body of ``length`` bytes."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


class GivenUnit(msgspec.Struct):
    """A unit in a claim's answer."""

    unit_id: int


class GivenJob(msgspec.Struct):
    """A job in a claim's answer."""

    job_id: int
    units: Annotated[list[GivenUnit], msgspec.Meta(min_length=1)]


class ClaimAnswer(msgspec.Struct):
    """What the load needs of :class:`common.wire.AcquireReply`."""

    jobs: list[GivenJob] = []


class WhyNot(msgspec.Struct):
    """Why a task gave nothing."""

    filter: str = ""
    detail: str = ""


class IdleAnswer(ClaimAnswer):
    """And what an idle pilot needs of it."""

    refusals: list[WhyNot] = []
    retry_after_s: float = 0.0
    drain: bool = False


class Destination(msgspec.Struct):
    """Where one output goes."""

    did: str
    urls: Annotated[list[str], msgspec.Meta(min_length=1)]


class RecordAnswer(msgspec.Struct):
    """What the load needs of :class:`common.wire.RecordReply`."""

    destinations: Annotated[list[Destination], msgspec.Meta(min_length=1)]
