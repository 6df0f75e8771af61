"""A stand-in for the server, as a program: the two calls of harvester over HTTP, with the same demand for ever."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from common.states import WorkerState
from common.wire import (
    DemandReply,
    QueueSpec,
    Shape,
    ShapeDemand,
    WorkerOutcome,
    WorkersReportReply,
    WorkersReportRequest,
)

STARTED = frozenset({WorkerState.RUNNING, WorkerState.FINISHED})
SHAPE = Shape(cores=8, memory_mb=16_000, disk_mb=20_000, wall_s=86_400)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    pilots = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # so that connections are kept, as the server's are
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """``/v1/queues/{queue}/demand``."""
        pilots = self.server.pilots
        demand = ShapeDemand(shape=SHAPE, pilots=pilots, ready_units=pilots, ready_jobs=pilots)
        queue = QueueSpec(name=self.path.split("/")[3], site="bench")
        self._answer(DemandReply(queue=queue, shapes=[demand]))

    def do_POST(self) -> None:
        """``/v1/workers:report``: all are accepted, and those that have started have a pilot."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = msgspec.json.decode(body, type=WorkersReportRequest)
        outcomes = [
            WorkerOutcome(worker.mark, True, pilots_alive=seen, pilots_seen=seen)
            for worker in request.workers
            for seen in [int(worker.state in STARTED)]
        ]
        self._answer(WorkersReportReply(outcomes))

    def _answer(self, message: msgspec.Struct) -> None:
        content = msgspec.json.encode(message)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def main() -> None:
    """Serve until standard input ends, which it does with whoever started this. Writes its port first."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.pilots = int(sys.argv[1])
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
