"""schemathesis over the OpenAPI page: whatever is sent, by whomever, the server answers as the page says, and never 5xx.

Each route is asked in a world of its own with a few things in it, by callers of every role, with valid and with invalid
data; the paths name things that are there as often as things that are not.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from falcon.testing import Result
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from common.wire import Registration
from server.api.routes import ROUTES
from server.api.routing import Route
from tests.integration.server.harness import Site, files, stage

pytest.importorskip("schemathesis")
import schemathesis
from schemathesis.specs.openapi import checks

EXAMPLES = int(os.environ.get("PILOTAGE_FUZZ_EXAMPLES", "10"))
"""Requests to each route and of each kind; set the variable for a longer search."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get")
TYPES = (
    None,
    "application/json",
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-16",
    ";",
)
ACCEPTED = (None, "text/html", "image/png;q=0", "application/xml", "*/*;q=x", ",,")
BODIES = (
    None, b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"a":' * 5000, b"[" * 100_000, b'"' + b"x" * 70_000 + b'"', b"1e400",
    b'{"name": "\\u0000"}', b'{"name": "\\ud800"}', b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--", b"NaN",
    b'{"value": 1e999}', b'{"value": -1}', b'{"value": "\\u0000"}', b'{"value": [[[]]]}',
)  # fmt: skip
QUERIES = (
    "", "limit=0", "limit=99999999999999999999", "after=-1", "state=x", "a=1&a=2", "%ff=%00", "task=%F0%9F", "after=1e9",
    "limit=1&limit=2", "from=nan&to=inf", "month=2026-13", "since=-inf", "subject=%00", "role=%00", "owner=%00", "where=((",
)  # fmt: skip
VALUES = (
    "",
    "-1",
    "1e400",
    "nan",
    "9" * 18,
    "9" * 40,
    "%00",
    "%FF",
    "x" * 5000,
    "%C2%B2",
    "a,b",
    "%F0%9F%98%80",
    "1",
    "true",
)
ODD = ("1", "0", "-1", "9" * 18, "9" * 40, "x", "..", "%00", "%2F", "%C3%A9", "a b", "*", "1;x", "x" * 300, "%FF")
THERE = ("s", "q", "disk", "default", "heartbeat_s", "reap-silent", "rule", "KEY", "1", "2", "h")
"""Names and numbers of things that are there."""
RESPONSES = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
IDS = [f"{route.method} {route.path}" for route in ROUTES]
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 10,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def world(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a little of everything."""
    path = tmp_path_factory.mktemp("fuzz") / "pilotage.db"
    shutil.copy(sqlite_template, path)
    site = Site(f"sqlite:///{path}")
    site.say_up()
    site.world(storages=("disk", "tape"))
    site.submit(stage(count=5, files_per_job=2), stage("next", count=2))
    site.submit(stage(given=files("a", "b", storages=("disk", "tape"))), labels={"a": "b"})
    pilot = site.pilot(cores=4)
    pilot.succeed(pilot.acquire(), "o")
    pilot.record(pilot.acquire(), "p")
    site.put_storage("booked", registration=Registration.SERVER)
    site.agents()
    site.database.close()
    return path


@pytest.fixture
def fuzzed(world: Path, tmp_path: Path) -> Iterator[Site]:
    """A copy of that world, whose requests never wait."""
    shutil.copy(world, tmp_path / "fuzzed.db")
    site = Site(f"sqlite:///{tmp_path / 'fuzzed.db'}")
    site.say_up()
    site.dispatcher.stopping.set()
    yield site
    site.database.close()


def tokens_of(site: Site) -> list[str | None]:
    """A credential of each kind, good ones and bad ones."""
    people = [site.token(role) for role in ("user", "production", "admin", "harvester", "outside_worker")]
    pilot, _ = site.issuer.mint_pilot(1, 1e6)
    nobody, _ = site.issuer.mint_pilot(99, 1e6)
    return [*people, site.token("user", "u"), pilot, site.worker()[1], nobody, "x", None]


def fitting(site: Site, route: Route) -> list[str | None]:
    """Those that get through the door."""
    roles = {role.value for role in route.access}
    found: list[str | None] = [site.token(role) for role in sorted(roles - {"anybody", "pilot", "worker"})]
    if "pilot" in roles:
        found.append(site.issuer.mint_pilot(1, 1e6)[0])
    if "worker" in roles:
        found.append(site.worker()[1])
    return found or [None]


def can_be_wrong(route: Route) -> bool:
    """Whether there is anything in a request to it."""
    return bool(route.request or route.stream or route.query or "{" in route.path)


CASES = [
    pytest.param(route, valid, id=f"{'valid' if valid else 'invalid'}-{name}")
    for valid in (True, False)
    for route, name in zip(ROUTES, IDS, strict=True)
    if valid or can_be_wrong(route)
]


@pytest.mark.parametrize(("route", "valid"), CASES)
def test_every_route_answers_as_its_page_says(fuzzed: Site, route: Route, valid: bool) -> None:
    schema = schemathesis.openapi.from_wsgi("/v1/openapi.json", fuzzed.client.app)
    mode = schemathesis.GenerationMode.POSITIVE if valid else schemathesis.GenerationMode.NEGATIVE
    operation = schema[route.path][route.method]
    good, anybody = fitting(fuzzed, route), tokens_of(fuzzed)

    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def ask(case: Any, data: st.DataObject) -> None:
        if data.draw(st.booleans(), "something that is there"):
            for name in case.path_parameters or ():
                case.path_parameters[name] = data.draw(st.sampled_from(THERE))
        token = data.draw(st.sampled_from(good * 3 + anybody))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = case.call(headers=headers)
        case.validate_response(response, checks=RESPONSES)

    ask()


def check(result: Result) -> None:
    """No 5xx, and every refusal is a problem document."""
    assert result.status_code < 500, result.text
    if result.status_code >= 400 and result.content:
        assert result.headers["content-type"] == "application/problem+json"
        assert result.json["status"] == result.status_code


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_every_odd_query_name_and_body_is_refused_or_understood(fuzzed: Site, route: Route) -> None:
    """By those who get through the door: each of what has broken servers before."""
    names = [(ODD[turn % len(ODD)] if turn % 2 else THERE[turn % len(THERE)]) for turn in range(max(len(ODD), 20))]
    queries = [*QUERIES, *(f"{name}={value}" for name in route.query for value in VALUES)]
    for token in fitting(fuzzed, route):
        for turn in range(max(len(queries), len(BODIES), len(names))):
            result = fuzzed.client.simulate_request(
                route.method,
                re.sub(r"{\w+}", names[turn % len(names)], route.path),
                body=BODIES[turn % len(BODIES)] if route.method != "GET" else None,
                query_string=queries[turn % len(queries)],
                headers={"Authorization": f"Bearer {token}"} if token else {},
            )
            check(result)


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize("path", sorted({route.path for route in ROUTES}))
def test_no_odd_request_breaks_the_server(fuzzed: Site, path: str) -> None:
    """Methods, headers, bodies and queries that no client of ours sends."""
    credentials = tokens_of(fuzzed)

    @SETTINGS
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        where = path
        while "{" in where:
            start, end = where.index("{"), where.index("}")
            where = where[:start] + data.draw(st.sampled_from(THERE + ODD)) + where[end + 1 :]
        headers = {"Content-Type": data.draw(st.sampled_from(TYPES)), "Accept": data.draw(st.sampled_from(ACCEPTED))}
        token = data.draw(st.sampled_from(credentials))
        if token:
            headers["Authorization"] = f"Bearer {token}"
        result = fuzzed.client.simulate_request(
            data.draw(st.sampled_from(METHODS)).upper(),
            where,
            body=data.draw(st.sampled_from(BODIES)),
            query_string=data.draw(st.sampled_from(QUERIES)),
            headers={name: value for name, value in headers.items() if value is not None},
        )
        check(result)

    ask()
