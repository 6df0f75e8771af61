"""What harvester asks of the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.http import BadReply, HttpClient, quoted
from common.tokens import read_secret_file
from common.wire import (
    DemandReply,
    HarvesterCommandPage,
    HarvesterCommandResult,
    HarvesterCommandView,
    WorkerJobs,
    WorkerOutcome,
    WorkerReport,
    WorkersAcquireReply,
    WorkersAcquireRequest,
    WorkersReportReply,
    WorkersReportRequest,
)
from common.wire.direct import (
    DirectAcquireReply,
    DirectAcquireRequest,
    DirectOrder,
    DirectOutcome,
    DirectPlace,
    DirectProxiesReply,
    DirectProxiesRequest,
    DirectReport,
    DirectReportReply,
    DirectReportRequest,
    ProxySigned,
    ProxyWanted,
)
from harvester.config import HarvesterConfig

CALL_S = 30.0
"""The most that one call may take with its retries: the next cycle is a retry too."""
FILE_S = 300.0
"""How long the server may be silent while a file goes there or comes from there."""
REPORTS_PER_CALL = 1000
"""Most workers that are told in one call: what is told is noted after each."""


class ServerApi(Protocol):
    """The calls of harvester. All may be repeated. Each raises common.http.HttpError."""

    def demand(self, queue: str) -> DemandReply:
        """How many pilots a queue should have."""

    def report(self, workers: Sequence[WorkerReport]) -> list[WorkerOutcome]:
        """Tell the states of at most REPORTS_PER_CALL workers; an outcome for each, in order."""

    def acquire(self, marks: Sequence[str]) -> list[WorkerJobs]:
        """Claim jobs for planned workers of queues in push mode; what each got, in order."""

    def commands(self) -> list[HarvesterCommandView]:
        """What this harvester is to do, oldest first."""

    def command_done(self, command_id: int, result: HarvesterCommandResult) -> None:
        """Say what came of a command."""


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
        """``POST /v1/workers:report``."""
        body = WorkersReportRequest(harvester=self._name, workers=list(workers))
        reply = self._http.call("POST", "/v1/workers:report", body, WorkersReportReply, total_s=CALL_S)
        if [outcome.mark for outcome in reply.workers] != [worker.mark for worker in workers]:
            raise BadReply("POST /v1/workers:report: the outcomes are not those of the workers that were reported")
        return reply.workers

    def commands(self) -> list[HarvesterCommandView]:
        """``GET /v1/harvesters/{name}/commands``: those that wait."""
        path = f"/v1/harvesters/{quoted(self._name)}/commands"
        page = self._http.call("GET", path, None, HarvesterCommandPage, params={"open": "true"}, total_s=CALL_S)
        return page.items

    def command_done(self, command_id: int, result: HarvesterCommandResult) -> None:
        """``POST /v1/harvesters/{name}/commands/{id}:done``."""
        path = f"/v1/harvesters/{quoted(self._name)}/commands/{command_id}:done"
        self._http.call("POST", path, result, type(None), total_s=CALL_S)

    def acquire(self, marks: Sequence[str]) -> list[WorkerJobs]:
        """``POST /v1/workers:acquire``."""
        body = WorkersAcquireRequest(harvester=self._name, marks=list(marks))
        reply = self._http.call("POST", "/v1/workers:acquire", body, WorkersAcquireReply, total_s=CALL_S)
        if [worker.mark for worker in reply.workers] != list(marks):
            raise BadReply("POST /v1/workers:acquire: the answers are not those of the workers that were asked for")
        return reply.workers

    # ------------------------------------------------------------ direct jobs

    def direct_acquire(self, places: Sequence[DirectPlace], most: int) -> list[DirectOrder]:
        """``POST /v1/direct:acquire``: the direct jobs that are not submitted yet, with up to ``most`` new ones."""
        body = DirectAcquireRequest(self._name, list(places), most)
        return self._http.call("POST", "/v1/direct:acquire", body, DirectAcquireReply, total_s=CALL_S).jobs

    def direct_report(self, reports: Sequence[DirectReport]) -> list[DirectOutcome]:
        """``POST /v1/direct:report``: at most MOST_DIRECT; an outcome for each, in order."""
        body = DirectReportRequest(self._name, list(reports))
        reply = self._http.call("POST", "/v1/direct:report", body, DirectReportReply, total_s=CALL_S)
        if [outcome.mark for outcome in reply.jobs] != [report.mark for report in reports]:
            raise BadReply("POST /v1/direct:report: the outcomes are not those of the jobs that were reported")
        return reply.jobs

    def direct_proxy(self, proxy_id: int, csr: str) -> ProxySigned:
        """``POST /v1/direct/proxies:sign``, for one person."""
        body = DirectProxiesRequest(self._name, [ProxyWanted(proxy_id, csr)])
        reply = self._http.call("POST", "/v1/direct/proxies:sign", body, DirectProxiesReply, total_s=CALL_S)
        if [each.proxy_id for each in reply.proxies] != [proxy_id]:
            raise BadReply("POST /v1/direct/proxies:sign: the answer is for another proxy")
        return reply.proxies[0]

    def direct_input(self, mark: str, path: str, target: Path) -> None:
        """``GET /v1/direct/{mark}/inputs``, into a file."""
        self._http.fetch_file(f"/v1/direct/{quoted(mark)}/inputs", target, params={"path": path}, timeout=FILE_S)

    def direct_result(self, mark: str, path: str, source: Path) -> None:
        """``PUT /v1/direct/{mark}/results``, from a file."""
        self._http.send_file("PUT", f"/v1/direct/{quoted(mark)}/results", source, params={"path": path}, timeout=FILE_S)

    def close(self) -> None:
        """End all calls, those that wait to be repeated too."""
        self._http.close()
