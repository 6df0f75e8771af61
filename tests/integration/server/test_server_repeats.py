"""Every route that changes something, called again as after a lost reply: the same answer, and nothing doubled.

A route that is not in :data:`CALLS` fails the last test here: whoever adds one says how its repeat is told.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from common.states import JobState, WorkerState
from common.tokens import hash_secret
from common.wire import (
    AcquireRequest,
    CloneRequest,
    FinishRequest,
    HeartbeatRequest,
    InputsRequest,
    JobReport,
    OutputRecord,
    PilotEnd,
    PilotRegistration,
    RecordRequest,
    TaskChange,
    TaskCommand,
    UnitOutcome,
    UnitResult,
    UnitsAcquireRequest,
    UnitsReleaseRequest,
    WorkerReport,
    WorkersAcquireRequest,
    WorkersReportRequest,
    WorkflowRequest,
)
from common.wire.direct import DirectAcquireRequest, DirectReport, DirectReportRequest
from common.wire.projects import FileOutcome, FileRelease, ReleaseRequest, ReserveRequest
from server.access import logins
from server.api.routes import ROUTES
from server.engine.access import Role
from server.store.schema import unit, unit_detail
from tests.integration.server import project_tools
from tests.integration.server.act_tools import HARVESTER, PLACE, direct_order
from tests.integration.server.described import Described
from tests.integration.server.harness import CHECKSUM, Pilot, Site, file, files, stage


@dataclass
class Asked:
    """A request; ``body`` is a message or bytes."""

    path: str
    body: Any
    token: str | None
    query: str = ""


Prepare = Callable[[Site], Asked]
LEFT_OUT = {"event", "pilot_beat", "pilot_report", "task_touched", "revision", "unit_delta", "job_delta", "task_input"}
"""Tables in which a repeat may leave a row: what was asked is told each time; deltas that sum up to nothing; file lists
whose known files are left out when they become units."""
FRESH = {
    "token", "token_expires", "updated", "access_token", "refresh_token", "expires", "used", "refresh_expires", "changed",
    "time", "active", "uploaded",
}  # fmt: skip
"""What an answer says of the moment of the call."""


def user(site: Site) -> str:
    return site.token("user", "u")


def admin(path: str, body: Any, query: str = "") -> Prepare:
    return lambda site: Asked(path, body, site.token("admin"), query)


def imported(site: Site) -> Asked:
    """A look at a description of the world."""
    site.dispatcher.plugins.world_sources["other"] = Described()
    return Asked("/v1/imports/other", {}, site.token("admin"))


def mine(path: str, body: Any = None) -> Prepare:
    return lambda site: Asked(path, body, user(site))


def after(first: Prepare, method: str, then: Prepare) -> Prepare:
    """A request that needs another one before."""

    def prepare(site: Site) -> Asked:
        asked = first(site)
        assert site.raw(method, asked.path, asked.body, asked.token).status_code < 300
        return then(site)

    return prepare


def of_task(word: str, body: Any, *, ended: bool = False, count: int = 4, **more: Any) -> Prepare:
    """A request of the owner of a task (``{}`` in the path is its id), whose jobs are over or not."""

    def prepare(site: Site) -> Asked:
        task = site.counter(count, **more)
        if ended:
            site.pilot().run_all("o")
            site.agents()
        return Asked(word.format(task), body, user(site))

    return prepare


def of_workflow(word: str, body: Any, *, ended: bool = False, query: str = "") -> Prepare:
    def prepare(site: Site) -> Asked:
        task = site.counter(3)
        if ended:
            site.command(task, "kill")
            site.agents()
        return Asked(word.format(site.task(task).workflow_id), body, user(site), query)

    return prepare


def of_input(word: str, body: Any) -> Prepare:
    def prepare(site: Site) -> Asked:
        given = files("a", "b")
        given.open = True
        return Asked(word.format(site.submit(stage(given=given))[0]), body, user(site))

    return prepare


def of_job(make: Callable[[Pilot, Any], tuple[str, Any]]) -> Prepare:
    """A request of a pilot about its job of two units."""

    def prepare(site: Site) -> Asked:
        site.counter(6, files_per_job=2)
        pilot = site.pilot()
        job = pilot.acquire()
        path, body = make(pilot, job)
        return Asked(path.format(job.job_id), body, pilot.grant.token)

    return prepare


def of_project(word: str, make: Callable[[Site, int], Any], state: str = "") -> Prepare:
    def prepare(site: Site) -> Asked:
        project = project_tools.make(site, "a", "b", "c", open="files" in word and "serve" not in word)
        if state == "cancelled":
            site.raw("POST", f"/v1/projects/{project}:cancel", None, user(site))
        return Asked(word.format(project), make(site, project), user(site))

    return prepare


def failed(pilot: Pilot, job: Any) -> tuple[str, Any]:
    pilot.fail(job, 1305)
    return "/v1/jobs/{}/log", gzip.compress(b"a log", mtime=0)


def login(site: Site, renew: bool) -> Asked:
    code, _ = logins.invite(site.dispatcher, "p", [Role.USER], [])
    body = {"code": code, "nonce": "n" * 16}
    if not renew:
        return Asked("/v1/login", body, None)
    grant = site.raw("POST", "/v1/login", body).json
    return Asked("/v1/login:renew", {"refresh_token": grant["refresh_token"]}, None)


def logout(site: Site) -> Asked:
    asked = login(site, renew=True)
    return Asked("/v1/logout", asked.body, None)


def registration(site: Site) -> Asked:
    mark, secret = site.worker()
    return Asked("/v1/pilots", PilotRegistration(mark, "nonce-00"), secret)


def report(site: Site) -> Asked:
    known, _ = site.worker()
    new = WorkerReport("mark-new", "q", WorkerState.PLANNED, secret_hash=hash_secret("x" * 20), valid_s=1e6)
    reports = [WorkerReport(known, "q", WorkerState.SUBMITTED, batch_id="1"), new]
    return Asked("/v1/workers:report", WorkersReportRequest("h", reports), site.token("harvester", "h"))


def acquire_for_workers(site: Site) -> Asked:
    site.put_queue("q", mode="push")
    site.counter(6)
    marks = [site.worker()[0] for _ in range(2)]
    return Asked("/v1/workers:acquire", WorkersAcquireRequest("h", marks), site.token("harvester", "h"))


def direct_acquired(site: Site) -> Asked:
    direct_order(site, claimed=False)
    return Asked("/v1/direct:acquire", DirectAcquireRequest(HARVESTER, [PLACE], 5), site.token("harvester", HARVESTER))


def direct_reported(*said: dict[str, Any]) -> Prepare:
    """The last of some reports of a run, after the others."""

    def prepare(site: Site) -> Asked:
        order = direct_order(site)
        assert order is not None
        token = site.token("harvester", HARVESTER)
        asked = [
            Asked("/v1/direct:report", DirectReportRequest(HARVESTER, [DirectReport(order.mark, **each)]), token)
            for each in said
        ]
        for each in asked[:-1]:
            assert site.raw("POST", each.path, each.body, token).status_code == 200
        return asked[-1]

    return prepare


def direct_result(site: Site) -> Asked:
    order = direct_order(site)
    assert order is not None
    return Asked(f"/v1/direct/{order.mark}/results", b"content", site.token("harvester", HARVESTER), "path=sub/out.txt")


def acquire(site: Site) -> Asked:
    site.counter(6, files_per_job=2)
    pilot = site.pilot(cores=2)
    return Asked("/v1/jobs:acquire", AcquireRequest("request-1", pilot.offer, 2), pilot.grant.token)


def end(site: Site) -> Asked:
    site.counter(2)
    pilot = site.pilot()
    pilot.acquire()
    return Asked(f"/v1/pilots/{pilot.id}:end", PilotEnd(), pilot.grant.token)


def processed(job: Any) -> list[UnitResult]:
    return [UnitResult(each.unit_id, UnitOutcome.PROCESSED) for each in job.units]


COMMAND = {"kind": "submit", "queue": "q", "workers": 2, "request_id": "request-6"}


def commanded(site: Site) -> Asked:
    site.admin("POST", "/v1/harvesters/h/commands", COMMAND)
    return Asked("/v1/harvesters/h/commands/1:done", {"ok": True, "detail": "done"}, site.token("harvester", "h"))


RECORDS = RecordRequest([OutputRecord("o", 1, CHECKSUM, pattern="*")])
SITE, RULE = {"name": "x"}, {"name": "x", "action": {"kind": "no_retry"}}
TAGGING = {"name": "x", "set": {"priority": 3}}
STORAGE = {"name": "x", "site": "s", "endpoints": [{"url": "file:///x"}]}
QUEUE = {"name": "x", "site": "s"}
BAN = {"kind": "user", "name": "x", "reason": "x"}
SANDBOX = gzip.compress(b"a sandbox", mtime=0)

CALLS: dict[str, Prepare] = {
    "POST /v1/pilots": registration,
    "POST /v1/pilots/{pilot_id}:end": end,
    "POST /v1/workers:report": report,
    "POST /v1/workers:acquire": acquire_for_workers,
    "POST /v1/direct:acquire": direct_acquired,
    "POST /v1/direct:report": direct_reported({"state": WorkerState.RUNNING, "batch_id": "b"}),
    "POST /v1/direct:report (finished)": direct_reported(
        {"state": WorkerState.RUNNING}, {"state": WorkerState.FINISHED, "results": True}
    ),
    "POST /v1/direct:report (failed)": direct_reported({"state": WorkerState.FAILED, "exit_code": 3}),
    "PUT /v1/direct/{mark}/results": direct_result,
    "POST /v1/jobs:acquire": acquire,
    "POST /v1/jobs:heartbeat": of_job(
        lambda _, job: ("/v1/jobs:heartbeat", HeartbeatRequest([JobReport(job.job_id, JobState.RUNNING)]))
    ),
    "POST /v1/jobs/{job_id}/units:acquire": of_job(
        lambda *_: ("/v1/jobs/{}/units:acquire", UnitsAcquireRequest("request-9", 2))
    ),
    "POST /v1/jobs/{job_id}/units:release": of_job(
        lambda _, job: ("/v1/jobs/{}/units:release", UnitsReleaseRequest(processed(job)[:1]))
    ),
    "POST /v1/jobs/{job_id}/outputs": of_job(lambda *_: ("/v1/jobs/{}/outputs", RECORDS)),
    "POST /v1/jobs/{job_id}:finish": of_job(lambda pilot, job: ("/v1/jobs/{}:finish", pilot.success(job, "o"))),
    "POST /v1/jobs/{job_id}:finish (failed)": of_job(
        lambda *_: ("/v1/jobs/{}:finish", FinishRequest(JobState.FAILED, error_code=1305))
    ),
    "PUT /v1/jobs/{job_id}/log": of_job(failed),
    "POST /v1/workflows": mine("/v1/workflows", WorkflowRequest("w", [stage(count=3)], request_id="request-1")),
    "POST /v1/workflows/{workflow_id}:command": of_workflow("/v1/workflows/{}:command", TaskCommand("kill")),
    "POST /v1/workflows/{workflow_id}:clone": of_workflow("/v1/workflows/{}:clone", CloneRequest(request_id="request-2")),
    "DELETE /v1/workflows/{workflow_id}": of_workflow("/v1/workflows/{}", None, ended=True, query="force=true"),
    **{
        f"POST /v1/tasks/{{task_id}}:command ({word})": of_task("/v1/tasks/{}:command", TaskCommand(word))
        for word in ("pause", "resume", "kill", "finish")
    },
    "POST /v1/tasks/{task_id}:command (hard)": of_task("/v1/tasks/{}:command", TaskCommand("finish", hard=True)),
    "POST /v1/tasks/{task_id}:command (restart)": of_task("/v1/tasks/{}:command", TaskCommand("restart"), ended=True),
    "POST /v1/tasks/{task_id}:command (avalanche)": of_task(
        "/v1/tasks/{}:command", TaskCommand("avalanche"), count=500, scouts=True
    ),
    "PATCH /v1/tasks/{task_id}": of_task("/v1/tasks/{}", TaskChange(priority=3)),
    "POST /v1/tasks/{task_id}/inputs": of_input("/v1/tasks/{}/inputs", InputsRequest([file("c", "disk")])),
    "POST /v1/tasks/{task_id}/inputs:close": of_input("/v1/tasks/{}/inputs:close", None),
    "POST /v1/sandboxes": mine("/v1/sandboxes", SANDBOX),
    "PUT /v1/secrets/{name}": mine("/v1/secrets/KEY", {"value": "x"}),
    "DELETE /v1/secrets/{name}": after(
        mine("/v1/secrets/KEY", {"value": "x"}), "PUT", mine("/v1/secrets/KEY")
    ),
    "POST /v1/projects": mine(
        "/v1/projects", {"files": [{"did": "data:a", "replicas": [{"storage": "disk", "path": "a"}]}], "request_id": "request-3"}
    ),
    "DELETE /v1/projects/{project_id}": of_project("/v1/projects/{}", lambda *_: None, state="cancelled"),
    "POST /v1/projects/{project_id}/files": of_project(
        "/v1/projects/{}/files", lambda *_: {"files": [{"did": "data:z", "replicas": [{"storage": "disk", "path": "z"}]}]}
    ),
    "POST /v1/projects/{project_id}/files:close": of_project("/v1/projects/{}/files:close", lambda *_: None),
    "POST /v1/projects/{project_id}/files:reserve": of_project(
        "/v1/projects/{}/files:reserve", lambda *_: ReserveRequest(request_id="request-4", worker="w", count=2)
    ),
    "POST /v1/projects/{project_id}/files:release": of_project(
        "/v1/projects/{}/files:re" + "lease",
        lambda site, project: ReleaseRequest(
            "w", [FileRelease(f"data:{project_tools.take(site, project)}", FileOutcome.DONE)]
        ),
    ),
    "POST /v1/projects/{project_id}:activate": of_project("/v1/projects/{}:activate", lambda *_: None),
    "POST /v1/projects/{project_id}:restart": of_project("/v1/projects/{}:restart", lambda *_: {"states": ["failed"]}),
    "POST /v1/projects/{project_id}:cancel": of_project("/v1/projects/{}:cancel", lambda *_: None),
    "POST /v1/projects/{project_id}:copy": of_project("/v1/projects/{}:copy", lambda *_: {"request_id": "request-5"}),
    "PUT /v1/sites/{name}": admin("/v1/sites/x", SITE),
    "DELETE /v1/sites/{name}": after(admin("/v1/sites/x", SITE), "PUT", admin("/v1/sites/x", None)),
    "PUT /v1/queues/{name}": admin("/v1/queues/x", QUEUE),
    "DELETE /v1/queues/{name}": after(admin("/v1/queues/x", QUEUE), "PUT", admin("/v1/queues/x", None)),
    "PUT /v1/storages/{name}": admin("/v1/storages/x", STORAGE),
    "DELETE /v1/storages/{name}": after(admin("/v1/storages/x", STORAGE), "PUT", admin("/v1/storages/x", None)),
    "PUT /v1/shares/{name}": admin("/v1/shares/x", SITE),
    "DELETE /v1/shares/{name}": after(admin("/v1/shares/x", SITE), "PUT", admin("/v1/shares/x", None)),
    "PUT /v1/settings/{key}": admin("/v1/settings/heartbeat_s", {"value": 33}),
    "DELETE /v1/settings/{key}": admin("/v1/settings/heartbeat_s", None),
    "PUT /v1/tagging-rules/{name}": admin("/v1/tagging-rules/x", TAGGING),
    "DELETE /v1/tagging-rules/{name}": after(
        admin("/v1/tagging-rules/x", TAGGING), "PUT", admin("/v1/tagging-rules/x", None)
    ),
    "PUT /v1/retry-rules/{name}": admin("/v1/retry-rules/x", RULE),
    "DELETE /v1/retry-rules/{name}": after(admin("/v1/retry-rules/x", RULE), "PUT", admin("/v1/retry-rules/x", None)),
    "DELETE /v1/blocked-hosts/{queue}/{host}": admin("/v1/blocked-hosts/q/node", None),
    "PUT /v1/agents/{name}": admin("/v1/agents/scout", {"enabled": False}),
    "POST /v1/bans": admin("/v1/bans", BAN),
    "DELETE /v1/bans": after(admin("/v1/bans", BAN), "POST", admin("/v1/bans", None, "kind=user&name=x")),
    "POST /v1/revocations": admin("/v1/revocations", {"kind": "token", "value": "x", "reason": "x"}),
    "POST /v1/harvesters/{name}/commands": admin("/v1/harvesters/h/commands", COMMAND),
    "POST /v1/harvesters/{name}/commands/{command_id}:done": commanded,
    "POST /v1/probes": admin("/v1/probes", {"site": "s"}),
    "POST /v1/imports/{source}": imported,
    "POST /v1/login": lambda site: login(site, renew=False),
    "POST /v1/login:renew": lambda site: login(site, renew=True),
    "POST /v1/logout": logout,
}  # fmt: skip


def told(content: bytes) -> Any:
    """An answer without what it says of the moment."""
    if not content:
        return None
    found = msgspec.json.decode(content)
    return {name: value for name, value in found.items() if name not in FRESH} if isinstance(found, dict) else found


def rows(site: Site) -> dict[str, int]:
    return {name: n for name, n in site.row_counts().items() if name not in LEFT_OUT}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_repeated_after_a_lost_reply_is_answered_alike_and_doubles_nothing(site: Site, call: str) -> None:
    site.world()
    method = call.split()[0]
    asked = CALLS[call](site)

    def ask() -> Any:
        return site.raw(method, asked.path, asked.body, asked.token, query_string=asked.query)

    first = ask()
    assert first.status_code < 300 or first.status_code == 404 == ask().status_code, first.text
    books = rows(site)
    counts = site.real_counts()
    for seconds in (0.5, 30):
        site.clock.advance(seconds)  # type: ignore[attr-defined]
        again = ask()
        if method == "DELETE" and again.status_code == 404:
            pass  # gone, as was wanted
        else:
            assert (again.status_code, told(again.content)) == (first.status_code, told(first.content))
        assert rows(site) == books
        assert site.real_counts() == counts
        site.check_counts()
    site.agents()
    with site.database.read() as connection:
        each_file = select(unit.c.task_id, unit_detail.c.did, func.count().label("n")).join(
            unit_detail, unit_detail.c.unit_id == unit.c.id
        )
        found = connection.execute(
            each_file.where(unit_detail.c.did.is_not(None)).group_by(unit.c.task_id, unit_detail.c.did)
        )
        assert all(row.n == 1 for row in found), "a file became a unit twice"


ELSEWHERE = {
    "POST /v1/direct/proxies:sign",  # changes nothing: each answer is a proxy of its own
    "POST /v1/pilots/{pilot_id}/credentials",  # changes nothing: each answer is a credential of its own
    "POST /v1/jobs/{job_id}/peeks",  # each is a look of its own; there is one open of a kind: test_server_peeks
    "POST /v1/jobs/{job_id}/peeks/{peek_id}:answer",  # likewise
}


def test_each_route_that_changes_something_has_its_repeat() -> None:
    tried = {call.partition(" (")[0] for call in CALLS} | ELSEWHERE
    assert tried == {f"{route.method} {route.path}" for route in ROUTES if route.method != "GET"}
