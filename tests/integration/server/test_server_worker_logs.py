"""Where the output of workers is, and the last of it, as harvester tells and people see it."""

from __future__ import annotations

import msgspec
import pytest

from common.states import WorkerState
from common.wire import Shape, WorkerPage, WorkerReport, WorkersReportReply, WorkersReportRequest, WorkerView
from tests.integration.server.harness import Refused, Site

MARK = "m" * 32
URL = "https://h.example.org/logs/q/2026-01-01/m/"


@pytest.fixture(autouse=True)
def world(site: Site) -> None:
    site.world(queues=("q",))


def report(site: Site, state: WorkerState, **fields: object) -> WorkersReportReply:
    told = WorkerReport(MARK, "q", state, Shape(), **fields)  # type: ignore[arg-type]
    body = WorkersReportRequest("h", [told])
    return site.call("POST", "/v1/workers:report", body, WorkersReportReply, site.token("harvester", "h"))


def seen(site: Site) -> WorkerView:
    reply = site.raw("GET", "/v1/workers", token=site.token("user", "u"))
    (found,) = msgspec.json.decode(reply.content, type=WorkerPage).items
    return found


def test_the_output_of_a_worker_that_has_ended_is_seen_where_harvester_says(site: Site) -> None:
    report(site, WorkerState.PLANNED, secret_hash="0" * 64, valid_s=1000.0)
    assert (seen(site).log_url, seen(site).log_tail) == (None, "")
    report(site, WorkerState.FAILED, reason="exit code 7")
    for _ in range(2):
        report(site, WorkerState.FAILED, reason="exit code 7", log_url=URL, log_tail="stderr:\nno python\n")
        assert (seen(site).log_url, seen(site).log_tail) == (URL, "stderr:\nno python\n")
    report(site, WorkerState.FAILED, reason="exit code 7")
    assert seen(site).log_url == URL, "a report that doesn't say leaves it as it is"


@pytest.mark.parametrize(
    "fields",
    [
        {"log_url": "javascript:alert(1)"},
        {"log_url": "https://x/ y"},
        {"log_url": URL, "log_tail": "a\0b"},
        {"log_url": URL, "log_tail": "x" * 4097},
    ],
)
def test_what_a_browser_or_the_database_must_not_get_is_refused(site: Site, fields: dict[str, str]) -> None:
    report(site, WorkerState.PLANNED, secret_hash="0" * 64, valid_s=1000.0)
    with pytest.raises(Refused) as refused:
        report(site, WorkerState.FAILED, **fields)
    assert refused.value.status in (400, 422)
    assert seen(site).state is WorkerState.PLANNED
