"""PanDA's Harvester fetches jobs, reports them and its workers, and does what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import ErrorCode
from common.states import JobState, WorkerState
from common.tokens import hash_secret, new_secret
from common.wire import (
    DemandReply,
    EventPage,
    HarvesterCommandKind,
    HarvesterCommandPage,
    HarvesterCommandRequest,
    HarvesterCommandView,
    OutputPattern,
    PilotView,
    Requirements,
    WorkerPage,
    WorkerReport,
)
from tests.integration.server.harness import Site, states
from tests.integration.server.panda_tools import made, pilot, send_to
from tests.panda_harvester import TIME, PandaHarvester, said

OUT = [OutputPattern("out.root")]
SMALL = Requirements(memory_mb=100, disk_mb=10)
ONE = pytest.mark.parametrize("kind", ["sqlite"])
"""For what does not depend on the kind of database."""


@pytest.fixture
def site(url: str) -> Iterator[Site]:
    found = made(url)
    yield found
    found.database.close()


@pytest.fixture
def one(site: Site) -> PandaHarvester:
    return harvester(site)


def harvester(site: Site, name: str = "cern-cloud", role: str = "harvester", **more: Any) -> PandaHarvester:
    return PandaHarvester(send_to(site), site.token(role, name), name, **more)


def task(site: Site, count: int = 1, **more: Any) -> int:
    return site.counter(count, **{"outputs": OUT, "requirements": SMALL, "command": ["run", "{counter}"], **more})


def workers_of(site: Site) -> dict[str, Any]:
    return {each.batch_id: each for each in site.user_page("/v1/workers", WorkerPage).items}


# ---------------------------------------------------------------- jobs


def test_jobs_are_fetched_and_reported_in_bulk(site: Site, one: PandaHarvester) -> None:
    of = task(site, 3)
    jobs = one.jobs(5)
    assert len(jobs) == 3 and all(isinstance(each["PandaID"], int) and each["coreCount"] == 1 for each in jobs)
    assert [each["jobPars"] for each in jobs] == ["run 0", "run 1", "run 2"]
    found = one.call("pilot/acquire_jobs", {"site_name": "PANDA_Q", "n_jobs": 1})
    assert found["success"] is False and found["message"] == "No jobs in PanDA"
    first, second, third = jobs
    good = {"success": True, "message": "", "data": {"StatusCode": 0, "command": None}}
    assert one.report(*(said(each, "running") for each in jobs)) == [good] * 3
    failure = {"pilot_error_code": 1305, "pilot_error_diag": "it broke", "trans_exit_code": 7}
    outcomes = one.report(
        said(first, "finished"), {"job_id": "x"}, said(second, "failed", **failure), "nonsense", said(third, "dancing")
    )
    assert [each["success"] for each in outcomes] == [True, False, True, False, False]
    assert "no state 'dancing'" in outcomes[4]["message"]
    assert states(site.units(of)) == {"done": 1, "ready": 1, "reserved": 1}
    view = site.job(second["PandaID"])
    assert (view.error_code, view.exit_code) == (ErrorCode.PAYLOAD_FAILED, 7) and "it broke" in view.error_detail
    assert one.well("pilot/update_job", said(third, "finished")) == {"StatusCode": 0, "command": None}
    assert one.report(said(first, "finished")) == [good]
    asked = ",".join(str(each["PandaID"]) for each in jobs)
    for path in ("pilot/get_job_status", "job/get_status"):
        told = one.well(path, method="GET", job_ids=asked)
        assert [each["status"] for each in told] == ["finished", "failed", "finished"]
    assert states(site.units(of)) == {"done": 2, "ready": 1}
    site.check_counts()


def test_a_job_is_bound_to_its_worker_which_ends_it(site: Site, one: PandaHarvester) -> None:
    of = task(site, 2)
    assert one.well("harvester/update_workers", {"workers": [one.worker(7, "running")]}) == [True]
    jobs = one.jobs(2, worker_id=7)
    view = site.job(jobs[0]["PandaID"])
    mark = next(iter(workers_of(site).values())).mark
    assert site.user("GET", f"/v1/pilots/{view.pilot_id}", reply=PilotView).worker == mark
    one.report(said(jobs[0], "finished"))
    assert one.well("harvester/update_workers", {"workers": [one.worker(7, "failed")]}) == [True]
    site.tick(200)
    site.agents()
    assert site.job(jobs[1]["PandaID"]).error_code == ErrorCode.WORKER_LOST
    assert states(site.units(of)) == {"done": 1, "ready": 1}
    assert one.report(said(jobs[1], "running"))[0]["data"]["command"] == "tobekilled"


@ONE
def test_a_pilot_of_the_same_identity_may_report_what_its_harvester_fetched(site: Site, one: PandaHarvester) -> None:
    of = task(site)
    job = {name: str(value) for name, value in one.jobs()[0].items()}
    stranger = pilot(site, "somebody else")
    assert stranger.update(job, "running")["StatusCode"] == 70
    its_own = pilot(site, "cern-cloud")
    assert its_own.update(job, "running")["StatusCode"] == 0
    assert its_own.finish(job)["StatusCode"] == 0
    assert states(site.units(of)) == {"done": 1}


# ---------------------------------------------------------------- workers


def test_workers_become_workers_of_ours(site: Site, one: PandaHarvester) -> None:
    told = [
        one.worker(1), one.worker(2, "running"), one.worker(3, "failed", diagMessage="no disk"), one.worker(4, "odd"),
        one.worker(5, computingSite="NOWHERE"), "nonsense", one.worker(6, "missing"), one.worker("a b"),
    ]  # fmt: skip
    outcomes = one.well("harvester/update_workers", {"workers": told})
    assert outcomes == [True, True, True, False, False, False, True, False]
    found = workers_of(site)
    assert {each.batch_id: each.state.value for each in found.values()} == {
        "1.0#schedd": "submitted", "2.0#schedd": "running", "3.0#schedd": "failed", "6.0#schedd": "missing",
    }  # fmt: skip
    failed = found["3.0#schedd"]
    assert (failed.queue, failed.harvester, failed.reason) == ("q", "cern-cloud", "no disk")
    assert one.well("harvester/update_workers", {"workers": [one.worker(1, "running"), one.worker(3, "running")]}) == [
        True, False,
    ]  # fmt: skip
    assert workers_of(site)["1.0#schedd"].log_url == "https://logs.example.org/1.out"
    assert one.well("harvester/get_worker_statistics", method="GET") == {
        "PANDA_Q": {"cern-cloud": {"managed": {"SCORE": {"running": 2}}}}
    }
    assert one.well("harvester/get_current_worker_id", method="GET") == 6
    assert harvester(site, "other").well("harvester/get_current_worker_id", method="GET") == 0


@ONE
def test_the_same_number_of_another_harvester_is_another_worker(site: Site, one: PandaHarvester) -> None:
    other = harvester(site, "other")
    assert one.well("harvester/update_workers", {"workers": [one.worker(1)]}) == [True]
    assert other.well("harvester/update_workers", {"workers": [one.worker(1, "failed")]}) == [True]
    assert sorted((each.harvester, each.state.value) for each in site.user_page("/v1/workers", WorkerPage).items) == [
        ("cern-cloud", "submitted"), ("other", "failed"),
    ]  # fmt: skip


@ONE
def test_our_own_harvesters_workers_are_none_of_theirs(site: Site, one: PandaHarvester) -> None:
    mark = site.worker()[0]
    assert one.well("harvester/update_workers", {"workers": [one.worker(mark, "failed")]}) == [True]
    found = {each.mark: each.state for each in site.user_page("/v1/workers", WorkerPage).items}
    assert found[mark] is WorkerState.PLANNED and len(found) == 2
    their_mark = next(each for each in found if each != mark)
    stolen = WorkerReport(their_mark, "q", WorkerState.RUNNING, secret_hash=hash_secret(new_secret()))
    assert not site.report(stolen, harvester="h").workers[0].accepted


# ---------------------------------------------------------------- commands, statistics and the rest


def tell(site: Site, kind: HarvesterCommandKind, **more: Any) -> HarvesterCommandView:
    request = HarvesterCommandRequest(kind=kind, request_id=f"request-{site.number()}", **more)
    return site.admin("POST", "/v1/harvesters/cern-cloud/commands", request, HarvesterCommandView)


def test_commands_are_handed_out_until_they_are_acknowledged(site: Site, one: PandaHarvester) -> None:
    workers = [one.worker(1), one.worker(2, "running"), one.worker(3, "finished")]
    one.well("harvester/update_workers", {"workers": workers})
    mark = workers_of(site)["2.0#schedd"].mark
    submit = tell(site, HarvesterCommandKind.SUBMIT, queue="q", workers=3)
    kill_all = tell(site, HarvesterCommandKind.CANCEL, queue="q")
    kill_waiting = tell(site, HarvesterCommandKind.CANCEL, queue="q", waiting_only=True)
    kill_one = tell(site, HarvesterCommandKind.CANCEL, marks=[mark, "mark-of-others"])
    drain = tell(site, HarvesterCommandKind.DRAIN, queue="q")
    found = one.well("harvester/acquire_commands", n_commands=10)
    assert [(each["command_id"], each["command"], each["params"]) for each in found] == [
        (submit.command_id, "SET_N_WORKERS_JOBTYPE:PANDA_Q", {"managed": {"SCORE": 3}}),
        (kill_all.command_id, "SYNC_WORKERS_KILL:PANDA_Q", [1, 2]),
        (kill_waiting.command_id, "SYNC_WORKERS_KILL:PANDA_Q", [1]),
        (kill_one.command_id, "SYNC_WORKERS_KILL", [2]),
    ]
    assert found[0]["creation_date"].startswith("datetime/")
    assert one.well("harvester/acquire_commands", n_commands=10) == found
    assert len(one.well("harvester/acquire_commands", method="GET", n_commands=1)) == 1
    ids = [each["command_id"] for each in found]
    assert one.well("harvester/acknowledge_commands", {"command_ids": ids}) is None
    assert one.well("harvester/acknowledge_commands", {"command_ids": json.dumps(ids)}) is None
    assert one.well("harvester/acquire_commands", n_commands=10) == []
    page = site.admin("GET", "/v1/harvesters/cern-cloud/commands", reply=HarvesterCommandPage)
    assert [each.state.value for each in page.items] == ["done"] * 4 + ["failed"]
    assert page.items[-1].command_id == drain.command_id
    assert page.items[-1].detail == "a Harvester of PanDA cannot be told to drain"


@ONE
def test_only_its_own_commands_are_acknowledged_and_the_others_named(site: Site, one: PandaHarvester) -> None:
    mine = tell(site, HarvesterCommandKind.SUBMIT, queue="q")
    other = harvester(site, "other")
    before = site.row_counts()
    assert other.call("harvester/acknowledge_commands", {"command_ids": [mine.command_id]})["success"] is False
    assert other.well("harvester/acquire_commands", n_commands=5) == []
    assert site.row_counts() == before
    found = one.call("harvester/acknowledge_commands", {"command_ids": [999, mine.command_id, "x"]})
    assert found["success"] is False and found["message"] == "no commands of this harvester: 999, x"
    assert one.well("harvester/acquire_commands", n_commands=5) == []


def test_statistics_tell_what_waits_and_what_runs(site: Site, one: PandaHarvester) -> None:
    site.put_queue("q", cores=8, memory_mb=16_000)
    task(site, 5)
    first, _ = one.jobs(2)
    one.report(said(first, "running"))
    site.agents()
    found = one.well("statistics/active_job_stats_by_site", method="GET")
    assert found["PANDA_Q"] == {"activated": 3, "running": 1, "sent": 1}
    told = one.well("statistics/active_job_detailed_stats_by_site", method="GET")
    assert told == {"PANDA_Q": {"SCORE": {"managed": {"activated": 3}}}}


def test_the_rest_of_the_verbs(site: Site, one: PandaHarvester) -> None:
    beat = {"data": {"startTime": TIME, "sw_version": "0.7.0", "commit_stamp": TIME}}
    assert one.well("harvester/heartbeat", beat) is None
    one.compress = False
    assert one.well("harvester/heartbeat", beat) is None
    kinds = one.well("metaconfig/get_resource_types", method="GET")
    assert kinds[0] == {
        "resource_name": "SCORE", "mincore": 1, "maxcore": 1, "minrampercore": 0, "maxrampercore": 2000,
    }  # fmt: skip
    assert one.well("harvester/update_service_metrics", {"service_metrics": [[TIME, "cpu", 1]]}) is None
    statistics = json.dumps({"managed": {"SCORE": {"running": 1}}})
    assert one.well("harvester/report_worker_statistics", panda_queue="PANDA_Q", statistics=statistics) is None
    dialog = {
        "diagID": 1, "identifier": "worker 7", "creationTime": TIME, "messageLevel": "ERROR",
        "dialogMessage": "no proxy", "moduleName": "submitter",
    }  # fmt: skip
    assert one.well("harvester/add_dialogs", {"dialogs": [dialog, "nonsense"]}) is None
    (event,) = [e for e in site.user_page("/v1/events?limit=100", EventPage).items if e.kind == "HARVESTER_DIALOG"]
    assert event.subject_id == "cern-cloud"
    assert event.detail == {"level": "ERROR", "message": "no proxy", "module": "submitter", "about": "worker 7"}


@pytest.fixture
def before(site: Site) -> dict[str, int]:
    task(site)
    return site.row_counts()


@ONE
@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("pilot/acquire_jobs", {"site_name": "NOWHERE"}, "no queue 'NOWHERE'"),
        ("pilot/update_jobs_bulk", {}, "job_list is no list"),
        ("pilot/update_jobs_bulk", {"job_list": "[1"}, "no JSON"),
        ("pilot/update_jobs_bulk", {"job_list": [{}] * 1001}, "1001 items"),
        ("pilot/update_job", {"job_id": 1, "job_status": "running"}, "no job 1"),
        ("pilot/get_job_status", {"job_ids": None}, "no list"),
        ("harvester/update_workers", {"workers": {"a": 1}}, "no list"),
        ("harvester/report_worker_statistics", {"panda_queue": "PANDA_Q", "statistics": "{"}, "no JSON"),
        ("harvester/acquire_commands", {"harvester_id": "another"}, "this token is harvester 'cern-cloud'"),
        ("creds/get_access_token", {"client_name": "x"}, "no creds/get_access_token"),
        ("creds/get_proxy", {}, "no creds/get_proxy"),
        ("no/such", {}, "no no/such"),
    ],
)
def test_bad_input_is_refused_in_its_words_and_changes_nothing(
    site: Site, one: PandaHarvester, before: dict[str, int], path: str, data: dict[str, Any], words: str
) -> None:
    found = one.call(path, data)
    assert found["success"] is False and found["data"] is None and words in found["message"], found
    assert site.row_counts() == before


@ONE
@pytest.mark.parametrize("role", ["user", "foreign_pilot", "outside_worker"])
def test_strangers_are_refused_in_its_words(site: Site, before: dict[str, int], role: str) -> None:
    stranger = harvester(site, "cern-cloud", role)
    for path in ("pilot/acquire_jobs", "harvester/update_workers", "creds/get_proxy"):
        found = stranger.call(path, {"site_name": "PANDA_Q"})
        assert found["success"] is False and "harvester" in found["message"]
    stranger.token = "nonsense"
    assert stranger.call("harvester/heartbeat")["success"] is False
    assert site.row_counts() == before


def test_jobs_of_another_harvester_are_not_its_own(site: Site, one: PandaHarvester) -> None:
    task(site)
    (job,) = one.jobs()
    before, other = site.row_counts(), harvester(site, "other")
    (outcome,) = other.report(said(job, "finished"))
    assert outcome["success"] is False and "another than other" in outcome["message"]
    assert other.well("pilot/get_job_status", {"job_ids": [job["PandaID"]]})[0]["status"] == "notfound"
    assert site.row_counts() == before and site.job(job["PandaID"]).state is JobState.SENT


@ONE
def test_without_the_pilots_face_there_are_no_jobs(url: str) -> None:
    site = made(url, on=False)
    try:
        found = harvester(site).call("pilot/acquire_jobs", {"site_name": "PANDA_Q"})
        assert found["success"] is False and "[server.compat.panda]: turn it on" in found["message"]
    finally:
        site.database.close()


@ONE
def test_demand_is_what_statistics_say(site: Site, one: PandaHarvester) -> None:
    task(site, 4)
    reply = site.call("GET", "/v1/queues/q/demand", None, DemandReply, site.token("harvester", "h"))
    found = one.well("statistics/active_job_stats_by_site", method="GET")
    assert found["PANDA_Q"]["activated"] == sum(each.ready_jobs for each in reply.shapes) == 4
