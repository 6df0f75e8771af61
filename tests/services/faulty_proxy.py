"""A line to a server that can be slow, stall or be cut: a TCP proxy in the test's own process."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass

PIECE_BYTES = 64 * 1024


@dataclass
class Way:
    """What happens to the bytes that go one way.

    After ``cut_after`` bytes of one connection it is cut, both ways; after ``stall_after`` nothing more comes; ``rate``
    is in bytes a second. ``times`` bounds on how many connections that happens. ``passed`` counts the bytes of all.
    """

    cut_after: int | None = None
    stall_after: int | None = None
    rate: float | None = None
    times: int | None = None
    passed: int = 0


class FaultyProxy:
    """Listens on a port of its own and passes on to ``target_port``, both on loopback.

    Set what is to go wrong in ``down`` (from the server) and ``up`` (to it), also while it runs; TLS and all protocols
    pass as they are.
    """

    def __init__(self, target_port: int) -> None:
        self.down = Way()
        self.up = Way()
        self.connections = 0
        self._target_port = target_port
        self._stopped = threading.Event()
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Its address for plain HTTP."""
        return f"http://localhost:{self.port}"

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cut everything and listen no more."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            _cut(*self._open)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                _cut(client)
                continue
            with self._lock:
                self._open += [client, server]
            for source, target, way in ((client, server, self.up), (server, client, self.down)):
                threading.Thread(target=self._pump, args=(source, target, way), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        seen, struck = 0, False
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                limits = [limit for limit in (way.cut_after, way.stall_after) if limit is not None]
                if limits and seen + len(data) > min(limits) and (struck or self._strike(way)):
                    struck = True
                    rest = data[: max(min(limits) - seen, 0)]
                    target.sendall(rest)
                    way.passed += len(rest)
                    if way.stall_after is not None:
                        self._stopped.wait()
                    break
                if way.rate is not None:
                    self._stopped.wait(len(data) / way.rate)
                target.sendall(data)
                seen += len(data)
                way.passed += len(data)
        _cut(source, target)

    def _strike(self, way: Way) -> bool:
        """Whether this connection is hit."""
        with self._lock:
            if way.times is None:
                return True
            way.times -= 1
            return way.times >= 0


def _cut(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
