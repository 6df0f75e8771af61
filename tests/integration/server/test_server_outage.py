"""The database is down at any step: 503 with Retry-After, nothing half done, and on without a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from falcon.testing import Result

from common.states import JobState, TaskState, WorkerState
from common.tokens import hash_secret, new_secret
from common.wire import (
    AcquireRequest,
    FinishRequest,
    HeartbeatRequest,
    JobReport,
    OutputRecord,
    PilotEnd,
    PilotRegistration,
    RecordRequest,
    Shape,
    TaskCommand,
    UnitOutcome,
    UnitResult,
    UnitsAcquireRequest,
    UploadedOutput,
    WorkerReport,
    WorkersReportRequest,
    WorkflowRequest,
)
from server.agents.duties import DUTIES
from server.agents.runner import Runner
from server.api.routes import ROUTES
from tests.integration.server.harness import CHECKSUM, Site, stage

if TYPE_CHECKING:
    from tests.services.postgres import PostgresServer


@pytest.fixture
def pg(make_url_of: Callable[[str], str]) -> Iterator[Site]:
    made = Site(make_url_of("real_postgres"))
    made.say_up()
    yield made.world()
    made.database.close()


def refuse(result: Result) -> None:
    assert result.status_code == 503, result.text
    assert int(result.headers["retry-after"]) >= 1
    assert result.headers["content-type"] == "application/problem+json"
    assert result.json["type"] == "pilotage:unavailable"


def test_real_postgres_down_at_every_step_of_a_job(postgres: PostgresServer, pg: Site) -> None:
    """Each call of a job's life is made while the database is down, then again when it is back."""
    user, harvester = pg.token("user", "u"), pg.token("harvester", "h")
    secret = new_secret()

    def step(path: str, body: object, token: str, status: int = 200) -> Result:
        with postgres.outage():
            refuse(pg.raw("POST", path, body, token))
            refuse(pg.raw("GET", "/healthz"))
        result = pg.raw("POST", path, body, token)
        assert result.status_code == status, result.text
        return result

    request = WorkflowRequest(name="w", stages=[stage(count=3, files_per_job=2)])
    task = step("/v1/workflows", request, user, 201).json["tasks"][0]["id"]
    with postgres.outage():
        for duty in DUTIES:
            assert Runner(pg.dispatcher, []).once(duty) == 0
    pg.agents()
    report = WorkerReport("mark-0000", "q", WorkerState.PLANNED, Shape(), secret_hash=hash_secret(secret), valid_s=1e6)
    step("/v1/workers:report", WorkersReportRequest("h", [report]), harvester)
    pilot = pg.pilot()
    grant = step("/v1/pilots", PilotRegistration("mark-0000", "nonce-00"), secret, 201).json
    assert grant["pilot_id"] != pilot.id
    pilot.grant.pilot_id, token = grant["pilot_id"], grant["token"]
    pg.tick()
    job = step("/v1/jobs:acquire", AcquireRequest("request-1", pilot.offer), token).json["jobs"][0]
    place = f"/v1/jobs/{job['job_id']}"
    step("/v1/jobs:heartbeat", HeartbeatRequest([JobReport(job["job_id"], JobState.RUNNING)]), token)
    more = step(f"{place}/units:acquire", UnitsAcquireRequest("request-2"), token).json["units"]
    records = RecordRequest([OutputRecord("a", 1, CHECKSUM, pattern="*")])
    destination = step(f"{place}/outputs", records, token).json["destinations"][0]
    units = [UnitResult(each["unit_id"], UnitOutcome.PROCESSED) for each in [*job["units"], *more]]
    done = FinishRequest(JobState.FINISHED, units, [UploadedOutput(destination["did"], destination["urls"][0])])
    step(f"{place}:finish", done, token)
    step(f"/v1/pilots/{grant['pilot_id']}:end", PilotEnd(), token, 204)
    pg.agents()
    view = pg.task(task)
    assert (view.state, view.units, view.jobs) == (TaskState.DONE, {"done": 3}, {"finished": 1})
    assert len(pg.outputs(task)) == 1
    pg.check_counts()
    other = pg.counter(1)
    step(f"/v1/tasks/{other}:command", TaskCommand("kill"), user)
    assert pg.task(other).state == TaskState.ABORTED


def test_real_postgres_down_no_route_answers_otherwise(postgres: PostgresServer, pg: Site) -> None:
    tokens = {role: pg.token(role) for role in ("user", "admin", "harvester")}
    bodies = {
        "/v1/sites/{name}": b'{"name": "x"}',
        "/v1/queues/{name}": b'{"name": "x", "site": "s"}',
        "/v1/storages/{name}": b'{"name": "x", "site": "s", "endpoints": [{"url": "file:///x"}]}',
        "/v1/shares/{name}": b'{"name": "x"}',
        "/v1/settings/{key}": b'{"value": 1}',
        "/v1/workflows": b'{"name": "w", "stages": [{"name": "a", "input": {"kind": "single"}, "command": ["x"]}]}',
        "/v1/tasks/{task_id}:command": b'{"command": "kill"}',
        "/v1/workers:report": b'{"harvester": "harvester", "workers": []}',
        "/v1/bans": b'{"kind": "user", "name": "x", "reason": "x"}',
        "/v1/revocations": b'{"kind": "pilot", "value": "1", "reason": "x"}',
    }
    # What is answered without the database, or refused before it is asked.
    without = {("GET", "/v1/whoami"), ("DELETE", "/v1/bans")}
    pg.dispatcher.changed()
    seen = 0
    with postgres.outage():
        for route in ROUTES:
            role = next((each.value for each in route.access if each.value in tokens), None)
            if role is None or (route.method, route.path) in without:
                continue
            path = route.path.replace("{name}", "x").replace("{key}", "heartbeat_s")
            for name in ("{task_id}", "{job_id}", "{workflow_id}", "{pilot_id}", "{project_id}"):
                path = path.replace(name, "1")
            result = pg.raw(route.method, path, bodies.get(route.path) if route.request else None, tokens[role])
            # What is wrong in itself may be refused before the database is asked.
            if 400 <= result.status_code < 500:
                continue
            assert result.status_code == 503, (route, result.text)
            refuse(result)
            seen += 1
    assert seen > 25
    assert pg.raw("GET", "/healthz").status_code == 200


def test_real_postgres_connections_that_broke_in_the_pool_once_used_are_replaced(
    postgres: PostgresServer, pg: Site
) -> None:
    for _ in range(3):
        with pg.database.read(), pg.database.read(), pg.database.read():
            pass  # three connections in the pool
        with postgres.outage():
            pass
        answers = [pg.raw("GET", "/healthz").status_code for _ in range(4)]
        assert answers[-3:] == [200, 200, 200]
        assert answers[0] in (200, 503)
