"""What harvester asks of the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.http import BadReply, HttpClient, quoted
from common.tokens import read_secret_file
from common.wire import DemandReply, WorkerOutcome, WorkerReport, WorkersReportReply, WorkersReportRequest
from harvester.config import HarvesterConfig

CALL_S = 30.0
"""The most that one call may take with its retries: the next cycle is a retry too."""
REPORTS_PER_CALL = 1000


class ServerApi(Protocol):
    """The calls of harvester. All may be repeated. Each raises common.http.HttpError."""

    def demand(self, queue: str) -> DemandReply:
        """How many pilots a queue should have."""

    def report(self, workers: Sequence[WorkerReport]) -> list[WorkerOutcome]:
        """Tell the states of workers; an outcome for each, in order."""


class HttpServerApi:
    """The server over HTTP."""

    def __init__(self, config: HarvesterConfig) -> None:
        token_file = Path(config.token_file).expanduser().absolute()
        self._name = config.name
        self._http = HttpClient(
            config.server_url,
            # Read at each call: whoever renews the token only has to replace the file.
            token=lambda: read_secret_file(token_file),
            ca_file=Path(config.ca_file).expanduser() if config.ca_file else None,
            retries=2,
        )

    def demand(self, queue: str) -> DemandReply:
        """``GET /v1/queues/{queue}/demand``."""
        return self._http.call("GET", f"/v1/queues/{quoted(queue)}/demand", None, DemandReply, total_s=CALL_S)

    def report(self, workers: Sequence[WorkerReport]) -> list[WorkerOutcome]:
        """``POST /v1/workers:report``, in parts of at most REPORTS_PER_CALL."""
        outcomes: list[WorkerOutcome] = []
        for begin in range(0, len(workers), REPORTS_PER_CALL):
            part = list(workers[begin : begin + REPORTS_PER_CALL])
            body = WorkersReportRequest(harvester=self._name, workers=part)
            reply = self._http.call("POST", "/v1/workers:report", body, WorkersReportReply, total_s=CALL_S)
            if [outcome.mark for outcome in reply.workers] != [worker.mark for worker in part]:
                raise BadReply("POST /v1/workers:report: the outcomes are not those of the workers that were reported")
            outcomes += reply.workers
        return outcomes

    def close(self) -> None:
        """End all calls, those that wait to be repeated too."""
        self._http.close()
