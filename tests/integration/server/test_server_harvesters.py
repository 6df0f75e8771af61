"""What admins have harvesters do, the workers that people look at, and what harvesters learn of one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from common.states import WorkerState
from common.wire import (
    DemandReply,
    EventPage,
    HarvesterCommandPage,
    HarvesterCommandResult,
    HarvesterCommandState,
    HarvesterCommandView,
    Shape,
    WorkerCount,
    WorkerPage,
    WorkerReport,
)
from server.dispatch.harvesters import KEPT_S, drop_old
from tests.integration.server.harness import Refused, Site

S = HarvesterCommandState
OK = HarvesterCommandResult(ok=True, detail="q: no new workers")


@pytest.fixture(autouse=True)
def world(site: Site) -> None:
    site.world(queues=("q", "other"))


def tell(site: Site, harvester: str = "h", **fields: Any) -> HarvesterCommandView:
    body = {"kind": "drain", "request_id": f"request-{site.number()}", **fields}
    return site.admin("POST", f"/v1/harvesters/{harvester}/commands", body, HarvesterCommandView)


def listed(site: Site, harvester: str = "h", token: str | None = None, query: str = "") -> list[HarvesterCommandView]:
    path = f"/v1/harvesters/{harvester}/commands"
    result = site.raw("GET", path, token=token or site.token("harvester", harvester), query_string=query)
    assert result.status_code == 200, result.text
    return msgspec.json.decode(result.content, type=HarvesterCommandPage).items


def answer(
    site: Site, command_id: int, result: HarvesterCommandResult = OK, harvester: str = "h", who: str = ""
) -> None:
    token = site.token("harvester", who or harvester)
    site.call("POST", f"/v1/harvesters/{harvester}/commands/{command_id}:done", result, None, token)


def refusal(call: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value


def test_a_command_is_handed_out_until_it_is_answered(site: Site) -> None:
    first, second = tell(site, queue="q"), tell(site, kind="submit", queue="q", workers=3)
    assert (first.state, first.who, first.expires - first.asked) == (S.WAITING, "admin", 3600.0)
    for _ in range(2):  # its answer may have been lost
        assert [one.command_id for one in listed(site, query="open=true")] == [first.command_id, second.command_id]
    site.tick(5)
    for _ in range(2):
        answer(site, first.command_id)
    answer(site, second.command_id, HarvesterCommandResult(ok=False, detail="queue 'q' is not configured here"))
    assert listed(site, query="open=true") == []
    found = listed(site, token=site.token("admin"))
    assert [(one.state, one.detail) for one in found] == [
        (S.DONE, "q: no new workers"),
        (S.FAILED, "queue 'q' is not configured here"),
    ]
    assert found[0].ended == pytest.approx(first.asked + 5)
    assert (found[1].kind, found[1].workers, found[1].queue) == ("submit", 3, "q")


def test_the_first_answer_counts(site: Site) -> None:
    command = tell(site)
    answer(site, command.command_id)
    answer(site, command.command_id, HarvesterCommandResult(ok=False, detail="again"))
    assert [one.state for one in listed(site)] == [S.DONE]


def test_a_harvester_that_does_not_ask_in_time_is_never_told(site: Site) -> None:
    command = tell(site, valid_s=60)
    site.tick(61)
    assert listed(site, query="open=true") == []
    assert [one.state for one in listed(site)] == [S.EXPIRED]
    answer(site, command.command_id)
    assert [one.state for one in listed(site)] == [S.DONE], "it had asked before, and done it"


def test_harvesters_see_their_own_commands_only(site: Site) -> None:
    command = tell(site, "h")
    assert listed(site, "g") == []
    foreign = site.raw("GET", "/v1/harvesters/h/commands", token=site.token("harvester", "g"))
    assert foreign.status_code == 404
    assert refusal(lambda: answer(site, command.command_id, who="g")).status == 404
    assert refusal(lambda: answer(site, command.command_id, harvester="g")).status == 404
    assert refusal(lambda: answer(site, 99)).status == 404
    assert [one.state for one in listed(site)] == [S.WAITING]


def test_the_same_request_is_the_same_command(site: Site) -> None:
    first = tell(site, request_id="request-x", queue="q")
    assert tell(site, request_id="request-x", queue="q") == first
    assert refusal(lambda: tell(site, request_id="request-x", queue="other")).status == 409
    assert tell(site, "g", request_id="request-x", queue="other").command_id != first.command_id
    assert len(listed(site)) == 1


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"kind": "submit"}, "$.queue"),
        ({"kind": "submit", "queue": "unheard-of"}, "$.queue"),
        ({"kind": "submit", "queue": "q", "workers": 101}, "$.workers"),
        ({"kind": "drain", "workers": 2}, "$.workers"),
        ({"kind": "drain", "marks": ["mark-000001"]}, "$.marks"),
        ({"kind": "cancel"}, "$.queue"),
        ({"kind": "cancel", "queue": "q", "marks": ["mark-000001"]}, "$.queue"),
        ({"kind": "cancel", "marks": ["../../etc"]}, "$.marks"),
        ({"kind": "fetch_logs"}, "$.marks"),
        ({"kind": "fetch_logs", "marks": ["mark-000001"], "queue": "q"}, "$.queue"),
        ({"kind": "reload", "waiting_only": True}, "$.waiting_only"),
        ({"kind": "explode"}, "$.kind"),
        ({"kind": "drain", "valid_s": 0}, "$.valid_s"),
        ({"kind": "drain", "force": True}, "$"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_with_its_field(site: Site, fields: dict[str, Any], path: str) -> None:
    refused = refusal(lambda: tell(site, **fields))
    assert refused.status in (400, 422)
    assert any(found.startswith(path) for found in refused.paths), refused.paths
    assert listed(site) == []


def test_a_name_that_no_harvester_can_have(site: Site) -> None:
    assert refusal(lambda: tell(site, "x" * 300)).status == 404


def test_what_an_admin_commands_is_audited(site: Site) -> None:
    tell(site, kind="cancel", queue="q")
    events = site.admin("GET", "/v1/events", reply=EventPage).items
    (event,) = [one for one in events if "harvesters" in str(one.detail)]
    assert (event.detail["kind"], event.detail["queue"]) == ("cancel", "q")


def test_commands_that_are_over_are_dropped_in_time(site: Site) -> None:
    over, waiting = tell(site), tell(site, valid_s=2 * KEPT_S)
    answer(site, over.command_id)
    site.clock.advance(KEPT_S - 10)  # type: ignore[attr-defined]
    assert drop_old(site.dispatcher) == 0
    site.clock.advance(20)  # type: ignore[attr-defined]
    assert drop_old(site.dispatcher) == 1
    assert [one.command_id for one in listed(site)] == [waiting.command_id]


# ---------------------------------------------------------------- workers


def workers(site: Site, query: str = "") -> WorkerPage:
    result = site.raw("GET", "/v1/workers", token=site.token("user"), query_string=query)
    assert result.status_code == 200, result.text
    return msgspec.json.decode(result.content, type=WorkerPage)


def moved(site: Site, mark: str, state: WorkerState, harvester: str = "h", **more: Any) -> Any:
    (outcome,) = site.report(WorkerReport(mark, "q", state, **more), harvester=harvester).workers
    assert outcome.accepted, outcome.reason
    return outcome


def test_people_look_at_workers(site: Site) -> None:
    (first, secret), (second, _), (third, _) = site.worker(), site.worker(), site.worker("other")
    site.register(first, secret)
    moved(site, first, WorkerState.SUBMITTED, batch_id="17.0")
    moved(site, first, WorkerState.RUNNING, host="node7")
    moved(site, second, WorkerState.FAILED, reason="refused: too large")
    page = workers(site)
    assert [one.mark for one in page.items] == [first, second, third]
    found = page.items[0]
    assert (found.queue, found.harvester, found.state) == ("q", "h", WorkerState.RUNNING)
    assert (found.batch_id, found.host, found.pilots) == ("17.0", "node7", 1)
    assert (page.items[1].reason, page.items[1].pilots) == ("refused: too large", 0)
    assert [one.mark for one in workers(site, "queue=other").items] == [third]
    assert [one.mark for one in workers(site, "state=failed").items] == [second]
    assert workers(site, "harvester=g").items == []
    assert site.raw("GET", "/v1/workers", token=site.token("user"), query_string="state=gone").status_code == 400


def test_how_a_worker_ended_is_told(site: Site) -> None:
    mark, _ = site.worker()
    moved(site, mark, WorkerState.FAILED, reason="F", exit_code=-9)
    assert workers(site).items[0].reason == "F (exit code -9)"
    events = site.admin("GET", "/v1/events", reply=EventPage).items
    (event,) = [one for one in events if one.kind == "WORKER_FAILED"]
    assert event.detail["exit_code"] == -9


def test_workers_come_in_pages(site: Site) -> None:
    marks = [site.worker()[0] for _ in range(5)]
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = workers(site, f"limit=2&after={after}")
        assert len(page.items) <= 2
        found += [one.mark for one in page.items]
        after = page.next
    assert found == marks


def test_harvester_learns_whether_a_pilot_ever_came(site: Site) -> None:
    mark, secret = site.worker()
    assert moved(site, mark, WorkerState.SUBMITTED).pilots_seen == 0
    grant = site.register(mark, secret)
    assert moved(site, mark, WorkerState.RUNNING).pilots_seen == 1
    site.call("POST", f"/v1/pilots/{grant.pilot_id}:end", {}, None, grant.token)
    outcome = moved(site, mark, WorkerState.FINISHED, host="node7")
    assert (outcome.pilots_seen, outcome.pilots_alive) == (1, 0)
    events = site.admin("GET", "/v1/events", reply=EventPage).items
    (event,) = [one for one in events if one.kind == "WORKER_FINISHED"]
    assert event.detail["host"] == "node7"


def demand(site: Site, harvester: str, queue: str = "q") -> DemandReply:
    token = site.token("harvester", harvester)
    return site.call("GET", f"/v1/queues/{queue}/demand", None, DemandReply, token)


def test_harvesters_of_one_queue_learn_of_each_others_workers(site: Site) -> None:
    large = Shape(cores=8)
    mine = site.worker()[0]
    runs, waits = site.worker(shape=large)[0], site.worker(shape=large)[0]
    over = site.worker(shape=large)[0]
    for mark in (runs, waits):
        moved(site, mark, WorkerState.SUBMITTED)
    moved(site, runs, WorkerState.RUNNING)
    moved(site, over, WorkerState.CANCELLED)
    moved(site, mine, WorkerState.SUBMITTED)
    assert demand(site, "h").others == []
    others = sorted(demand(site, "g").others, key=lambda one: one.shape.cores)
    assert others == [WorkerCount(Shape(), queued=1, running=0), WorkerCount(large, queued=1, running=1)]
    assert demand(site, "g", "other").others == []
    assert site.admin("GET", "/v1/queues/q/demand", reply=DemandReply).others == []
    site.clock.advance(1e6 + 1)  # type: ignore[attr-defined]
    assert demand(site, "g").others == [], "a harvester that is gone for good leaves nothing to count for ever"
