"""The relay as an HTTP server on a login node: pilots there reach it, and it reaches the server."""

from __future__ import annotations

import logging
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from common.errors import ErrorCode, PilotageError
from common.relay import MAX_BODY_BYTES
from harvester.relay.forward import THREADS, Call, Forwarder, Reply, problem

log = logging.getLogger(__name__)

IDLE_S = 30.0
"""A connection on which nothing comes for so long is closed: a pilot opens another."""
WAIT_S = 120.0
"""How long the server may take to answer: no pilot waits longer for a call, and this one cannot tell how long it does."""


class Listener(ThreadingHTTPServer):
    """Serves HTTP at ``host``:``port``; HTTPS with the PEM files ``certificate`` and ``key``.

    Raises PilotageError (BAD_CONFIGURATION) when it cannot.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str, port: int, forward: Forwarder, certificate: str | None, key: str | None) -> None:
        self.forward = forward
        self.places = threading.BoundedSemaphore(THREADS)
        self._context = _context(certificate, key)
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"relay listen {host}:{port}: {error.strerror}") from error
        self._thread = threading.Thread(target=self.serve_forever, name="relay-http", daemon=True)

    @property
    def url(self) -> str:
        """The address for pilots."""
        return f"{'https' if self._context else 'http'}://{self.server_address[0]!s}:{self.server_address[1]}"

    def start(self) -> None:
        """Begin to serve, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a slow handshake holds nobody else."""
        request.settimeout(IDLE_S)
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with self._context.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is its pilot's to repeat."""
        log.debug("the connection from %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Listener
    protocol_version = "HTTP/1.1"
    server_version = "pilotage-relay"
    sys_version = ""

    def do_GET(self) -> None:
        self._relay()

    def do_POST(self) -> None:
        self._relay()

    def do_PUT(self) -> None:
        self._relay()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.client_address[0], format % args)

    def _relay(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") or not length.isdigit():
            self._refuse(problem(411, "Length required", "give Content-Length"))
        elif int(length) > MAX_BODY_BYTES:
            self._refuse(problem(413, "Too large", f"{length} bytes are more than the limit of {MAX_BODY_BYTES}"))
        else:
            if not self.server.places.acquire(timeout=IDLE_S):
                self._refuse(problem(503, "The relay is busy", f"{THREADS} calls are under way"))
                return
            try:
                body = self.rfile.read(int(length))
                reply = self.server.forward(Call(self.command, self.path, dict(self.headers), body, WAIT_S))
            finally:
                self.server.places.release()
            self._answer(reply)

    def _refuse(self, reply: Reply) -> None:
        self.close_connection = True  # the body has not been read
        self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)


def _context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(Path(certificate).expanduser(), Path(key).expanduser() if key else None)
    except (OSError, ssl.SSLError) as error:
        raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"relay certificate {certificate}: {error}") from error
    return context
