"""A worker that no harvester submitted: for tests that start its pilot themselves."""

from __future__ import annotations

from pathlib import Path

from common.http import HttpClient
from common.states import WorkerState
from common.tokens import hash_secret, new_secret, write_secret_file
from common.wire import Shape, WorkerReport, WorkersReportReply, WorkersReportRequest
from tests.e2e.system import QUEUE_NAME, System


def register_worker(system: System, mark: str, secret_file: Path) -> None:
    """Tell the server of a worker, as harvester does before it submits one, and write its secret."""
    done = system.cli("server", "token", "--role", "harvester", "--subject", "test", "--ttl", "1h")
    assert done.returncode == 0, done.stderr
    secret = new_secret()
    report = WorkerReport(mark, QUEUE_NAME, WorkerState.PLANNED, Shape(), secret_hash=hash_secret(secret), valid_s=1e5)
    client = HttpClient(system.url, token=lambda: done.stdout.strip())
    try:
        body = WorkersReportRequest("test", [report])
        reply = client.call("POST", "/v1/workers:report", body, WorkersReportReply)
    finally:
        client.close()
    assert reply.workers[0].accepted, reply
    write_secret_file(secret_file, secret)
