"""Every route says who may call it; every rule has a request that is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from common.states import WorkerState
from common.tokens import TokenIssuer
from common.wire import AcquireRequest, Offer, Shape, TaskCommand, TaskView, WorkerReport
from server.api.application import create_application
from server.api.openapi import document
from server.api.routes import ROUTES
from server.api.routing import Role, Route, allow
from server.store.migrate import upgrade
from server.store.schema import worker
from tests.integration.server.harness import Refused, Site, stage

NAMED = ("user", "production", "admin", "harvester", "outside_worker", "foreign_pilot")
CREDENTIALS = ("none", *NAMED, "pilot", "worker")
IDS = [f"{route.method} {route.path}" for route in ROUTES]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(f"sqlite:///{tmp_path_factory.mktemp('access') / 'pilotage.db'}")
    upgrade(made.database)
    made.world()
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def tokens(site: Site) -> dict[str, str | None]:
    """A credential of each kind."""
    found: dict[str, str | None] = {role: site.token(role) for role in NAMED}
    return found | {"none": None, "pilot": site.pilot().grant.token, "worker": site.worker()[1]}


def path_of(route: Route) -> str:
    return re.sub(r"{(\w+)}", lambda place: "1" if place[1].endswith("_id") else "x", route.path)


def may(route: Route, credential: str) -> bool:
    if Role.ANYBODY in route.access:
        return True
    return credential != "none" and Role(credential) in route.access


@pytest.mark.parametrize("credential", CREDENTIALS)
@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_a_route_is_open_to_whom_it_says_and_to_nobody_else(
    site: Site, tokens: dict[str, str | None], route: Route, credential: str
) -> None:
    before = site.row_counts()
    body = b"{}" if route.request is not None else None
    result = site.raw(route.method, path_of(route), body, tokens[credential])
    if may(route, credential):
        # The right credential gets as far as the request itself (an empty one, for things that are not there).
        assert result.status_code not in (401, 403), result.text
        assert result.status_code < 500, result.text
        return
    assert result.status_code == (401 if credential == "none" else 403), result.text
    assert result.headers["content-type"] == "application/problem+json"
    assert site.row_counts() == before


# What DESIGN section 6 says, beside the routes' own words: a route that opens itself to others changes this table.
PEOPLE = ("user", "production", "admin")
WHO = {
    ("GET", "/healthz"): {"anybody"},
    ("GET", "/v1/openapi.json"): {"anybody"},
    ("GET", "/.well-known/openid-configuration"): {"anybody"},
    ("GET", "/v1/jwks"): {"anybody"},
    ("GET", "/v1/login"): {"anybody"},
    ("POST", "/v1/login"): {"anybody"},
    ("POST", "/v1/login:renew"): {"anybody"},
    ("POST", "/v1/logout"): {"anybody"},
    ("GET", "/v1/whoami"): {*NAMED},
    ("GET", "/metrics"): {"anybody"},
    ("GET", "/"): {"anybody"},
    ("GET", "/v1/trace"): {"admin"},
    ("GET", "/v1/accounting/apel"): {"admin"},
    ("GET", "/v1/sandboxes/{sha256}"): {"pilot"},
    ("POST", "/v1/projects/{project_id}/files:reserve"): {*PEOPLE, "outside_worker"},
    ("POST", "/v1/projects/{project_id}/files:release"): {*PEOPLE, "outside_worker"},
    ("GET", "/v1/jobs/{job_id}/log"): {"user", "production", "admin"},
    ("POST", "/v1/jobs/{job_id}/peeks"): {"user", "production", "admin"},
    ("GET", "/v1/jobs/{job_id}/peeks/{peek_id}"): {"user", "production", "admin"},
    ("GET", "/v1/bans"): {"admin"},
    ("GET", "/v1/revocations"): {"admin"},
    ("GET", "/v1/imports"): {"admin"},
    ("POST", "/v1/imports/{source}"): {"admin"},
    ("POST", "/v1/pilots"): {"worker"},
    ("GET", "/v1/pilots/{pilot_id}"): {"user", "production", "admin"},
    ("GET", "/v1/pilots/{pilot_id}/why"): {"user", "production", "admin"},
    ("POST", "/v1/workers:report"): {"harvester"},
    ("POST", "/v1/workers:acquire"): {"harvester"},
    ("POST", "/v1/direct:acquire"): {"harvester"},
    ("POST", "/v1/direct:report"): {"harvester"},
    ("POST", "/v1/direct/proxies:sign"): {"harvester"},
    ("GET", "/v1/direct/{mark}/inputs"): {"harvester"},
    ("PUT", "/v1/direct/{mark}/results"): {"harvester"},
    ("GET", "/v1/queues/{name}/demand"): {"harvester", "admin"},
    ("POST", "/v1/probes"): {"admin"},
    ("POST", "/v1/harvesters/{name}/commands"): {"admin"},
    ("GET", "/v1/harvesters/{name}/commands"): {"harvester", "admin"},
    ("POST", "/v1/harvesters/{name}/commands/{command_id}:done"): {"harvester"},
}


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_a_route_opens_itself_to_those_of_the_design(route: Route) -> None:
    found = {role.value for role in route.access}
    pilots = re.match(r"/v1/(jobs:|jobs/\{job_id\}[:/]|pilots/)", route.path)
    world = re.match(
        r"/v1/(sites|queues|storages|shares|settings|bans|revocations|retry-rules|tagging-rules|blocked-hosts|agents)\b",
        route.path,
    )
    if (route.method, route.path) in WHO:
        assert found == WHO[route.method, route.path]
    elif pilots:
        assert found == {"pilot"}
    elif world and route.method != "GET":
        assert found == {"admin"}
    else:
        assert found == {"user", "production", "admin"}


def test_a_route_without_a_rule_makes_no_application(site: Site) -> None:
    silent = Route("GET", "/v1/open", frozenset(), lambda *_: None, "Forgot its rule")
    with pytest.raises(ValueError, match="GET /v1/open says not who may call it"):
        create_application(site.dispatcher, [*ROUTES, silent])


def test_admins_and_production_managers_may_what_users_may() -> None:
    assert allow(Role.USER) == {Role.USER, Role.PRODUCTION, Role.ADMIN}
    assert allow(Role.HARVESTER) == {Role.HARVESTER}


# ---------------------------------------------------------------- tokens


def refused(site: Site, token: str, path: str = "/v1/tasks") -> int:
    result = site.raw("GET", path, token=token)
    if result.status_code == 401:
        assert result.headers["www-authenticate"] == "Bearer"
        assert token not in result.text
    return result.status_code


def test_tokens_that_are_not_ours(site: Site) -> None:
    good = site.token("user")
    assert refused(site, good) == 200
    head, claims, signature = good.split(".")
    stranger = TokenIssuer(b"x" * 32, "pilotage", site.clock).mint("u", ["user", "admin"], 1e6)
    elsewhere = TokenIssuer(b"k" * 32, "other", site.clock).mint("u", ["user", "admin"], 1e6)
    for bad in (
        stranger,
        elsewhere,
        f"{head}.{claims}.",
        f"{head}.{claims}",
        good[:-4] + "AAAA",
        "x",
        "pls_" + "a" * 43,
    ):
        assert refused(site, bad) in (401, 403)
        assert refused(site, bad) == (403 if bad.startswith("pls_") else 401)


def test_a_token_of_no_role_or_of_one_that_nobody_knows(site: Site) -> None:
    for roles in ([], ["root"], ["worker"], ["anybody"], ["pilot"]):
        assert refused(site, site.issuer.mint("u", roles, 1e6)) == 403


def test_an_expired_token_of_a_person(site: Site) -> None:
    token = site.issuer.mint("u", ["user", "admin", "harvester"], 10)
    site.tick(3000)
    assert refused(site, token) == 401
    for path in ("/v1/jobs:heartbeat", "/v1/jobs/1:finish"):  # where pilots may be late
        assert site.raw("POST", path, b"{}", token).status_code in (401, 403)


def test_a_token_of_a_pilot_that_nobody_knows(site: Site) -> None:
    token, _ = site.issuer.mint_pilot(999999, 1e6)
    assert site.raw("POST", "/v1/jobs:heartbeat", b"{}", token).status_code == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dTpw", "bearer\tx", "Bearer \xff\xfe"])
def test_headers_that_hold_no_token(site: Site, header: str) -> None:
    result = site.client.simulate_get("/v1/tasks", headers={"Authorization": header})
    assert result.status_code == 401


def test_a_workers_secret_opens_its_own_registration_only(site: Site) -> None:
    mark, secret = site.worker()
    other, _ = site.worker()
    with pytest.raises(Refused) as error:
        site.register(other, secret)
    assert error.value.status == 401
    with pytest.raises(Refused) as error:
        site.register(mark, secret + "x")
    assert error.value.status == 401
    assert site.register(mark, secret).queue.name == "q"


@pytest.mark.parametrize("end", ["finished", "failed", "cancelled"])
def test_a_secret_ends_with_its_worker(site: Site, end: str) -> None:
    mark, secret = site.worker()
    site.report(WorkerReport(mark, "q", WorkerState(end)))
    with pytest.raises(Refused) as error:
        site.register(mark, secret)
    assert error.value.status == 401


def test_a_secret_expires(site: Site) -> None:
    mark, secret = site.worker()
    site.tick(10)
    with site.database.write() as connection:
        connection.execute(update(worker).where(worker.c.mark == mark).values(expires=site.clock.now() - 1))
    with pytest.raises(Refused) as error:
        site.register(mark, secret)
    assert (error.value.status, error.value.problem.type) == (403, "pilotage:worker-used-up")


# ---------------------------------------------------------------- other people's things


@pytest.mark.parametrize("word", ["pause", "resume", "kill", "retry"])
def test_other_peoples_tasks_cannot_be_commanded(site: Site, word: str) -> None:
    task = site.submit(stage(count=3), name="alice")[0]
    before = site.task(task)
    with pytest.raises(Refused) as error:
        site.command(task, word, name="bob")
    assert error.value.status == 403
    assert site.task(task) == before
    assert site.admin("POST", f"/v1/tasks/{task}:command", TaskCommand("kill"), TaskView).state.value == "aborted"


def test_a_pilot_cannot_touch_another_pilots_job(site: Site) -> None:
    site.submit(stage(count=3))
    mine, other = site.pilot(), site.pilot()
    job = mine.acquire()
    request = mine.success(job, "a")
    calls: list[tuple[str, Any]] = [
        (f"/v1/jobs/{job.job_id}:finish", request),
        (f"/v1/jobs/{job.job_id}/units:acquire", {"request_id": "request-1"}),
        (f"/v1/jobs/{job.job_id}/units:release", {"units": [{"unit_id": job.units[0].unit_id, "outcome": "failed"}]}),
        (f"/v1/jobs/{job.job_id}/outputs", {"outputs": [{"name": "a", "size": 1, "checksum": "adler32:00000001"}]}),
    ]
    for path, body in calls:
        result = site.raw("POST", path, body, other.grant.token)
        assert (result.status_code, result.json["type"]) == (404, "pilotage:not-found"), path
    result = site.raw("POST", f"/v1/pilots/{mine.id}:end", {}, other.grant.token)
    assert result.status_code == 403
    assert mine.finish(job, request).state.value == "finished"
    for path, body in calls:  # nor when it is over
        assert site.raw("POST", path, body, other.grant.token).status_code == 404


def test_a_harvester_cannot_report_another_harvesters_worker(site: Site) -> None:
    mark, _ = site.worker()
    outcome = site.report(WorkerReport(mark, "q", WorkerState.FAILED), harvester="intruder").workers[0]
    assert (outcome.accepted, outcome.reason) == (False, "this worker belongs to harvester 'h'")


def test_a_pilot_gets_no_more_than_its_workers_record_says(site: Site) -> None:
    site.submit(stage(count=3))
    mark, secret = site.worker(shape=Shape(cores=1, memory_mb=10))
    token = site.register(mark, secret).token
    body = AcquireRequest("request-1", Offer(cores=64, memory_mb=10**6), max_jobs=64)
    result = site.raw("POST", "/v1/jobs:acquire", body, token)
    assert "jobs" not in result.json
    assert {each["filter"] for each in result.json["refusals"]} == {"memory"}


# ---------------------------------------------------------------- the page that tells it


def test_the_openapi_page_tells_every_route_and_its_roles(site: Site) -> None:
    page = msgspec.json.decode(site.raw("GET", "/v1/openapi.json").content)
    assert page == json.loads(json.dumps(document(ROUTES)))
    for route in ROUTES:
        operation = page["paths"][route.path][route.method.lower()]
        assert operation["x-roles"] == sorted(role.value for role in route.access)
        assert ("security" in operation) == (Role.ANYBODY not in route.access)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(page)))
    assert references <= set(page["components"]["schemas"])


def test_no_route_names_a_path_of_this_machine(site: Site) -> None:
    assert str(Path.cwd()) not in site.raw("GET", "/v1/openapi.json").text
