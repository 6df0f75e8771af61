"""Whatever is sent to the faces of PanDA: they answer in their own words, and never with a mistake of ours."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.wire import OutputPattern, Requirements
from server.compat.panda.face import FACE as PANDA
from server.compat.panda_harvester.face import FACE as HARVESTER
from tests.integration.server.harness import Site
from tests.integration.server.panda_tools import QUEUE, made, pilot

ROUTES = [(face, route) for face in (PANDA, HARVESTER) for route in face.routes]
NAMES = sorted(
    {
        "siteName", "mem", "cpu", "diskSpace", "node", "resourceType", "prodSourceLabel", "jobId", "state", "pilotID",
        "xml", "pilotErrorCode", "transExitCode", "jobMetrics", "pilotTiming", "startTime", "endTime", "stdout", "pilotLog",
        "ids", "pandaID", "modeOn", "harvester_id", "site_name", "n_jobs", "worker_id", "job_list", "job_id", "job_ids",
        "job_status", "pilot_id", "job_output_report", "workers", "n_commands", "command_ids", "dialogs", "statistics",
        "panda_queue", "remaining_time", "memory",
    }
)  # fmt: skip
OTHERS = [name for name in NAMES if name not in ("siteName", "jobId", "state")]
WORDS = st.sampled_from(
    [
        QUEUE,
        "q",
        "running",
        "finished",
        "failed",
        "holding",
        "SCORE",
        "MCORE",
        "1",
        "2",
        "3",
        "NULL",
        "true",
        "{}",
        "[]",
        "[1]",
        "",
    ]
)
ODD = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["\0", "\ud800", "a" * 70_000, "1e999", "9" * 400, "-0", "٣", '{"a": {"fsize": 1, "adler32": "1"}}']
    ),
)
VALUE = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUE, max_size=8)


def as_body(fields: dict[str, Any], how: str) -> bytes:
    text = json.dumps(fields).encode("utf-8", "surrogatepass")
    if how == "form":
        return urlencode({name: str(value) for name, value in fields.items()}, errors="surrogatepass").encode()
    if how == "gzip":
        return gzip.compress(text)
    if how == "cut":
        return gzip.compress(text)[:-3]
    return text


BODY = st.one_of(
    st.builds(as_body, FIELDS, st.sampled_from(["json", "gzip", "cut", "form"])),
    st.binary(max_size=50),
    VALUE.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Any) -> Iterator[Site]:
    import shutil

    path = tmp_path_factory.mktemp("fuzz") / "pilotage.db"
    shutil.copy(sqlite_template, path)
    found = made(f"sqlite:///{path}")
    found.counter(
        500, outputs=[OutputPattern("out.root")], requirements=Requirements(memory_mb=10, disk_mb=1), command=["run"]
    )
    pilot(found, "fuzzer").job()
    yield found
    found.database.close()


def ask(site: Site, face: Any, route: Any, place: Callable[[str], str], query: str, body: bytes) -> None:
    roles = sorted(role.value for role in route.access if role.value != "anybody")
    role = roles[0] if roles else "user"
    path = re.sub(r"{(\w+)}", lambda found: quote(place(found[1]), safe=""), route.path)
    headers = {"Authorization": f"Bearer {site.token(role, 'fuzzer')}"}
    answer = site.client.simulate_request(route.method, path, query_string=query, body=body, headers=headers)
    assert answer.status_code < 500, (path, answer.text)
    assert "mistake inside" not in answer.text and "Traceback" not in answer.text, (path, body, answer.text)
    if answer.status_code == 200 and face is PANDA and path.startswith("/server"):
        assert isinstance(answer.json["StatusCode"], int)
    if face is HARVESTER:
        assert answer.status_code == 200 and isinstance(answer.json["success"], bool)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    which=st.integers(0, len(ROUTES) - 1),
    places=st.lists(st.text(min_size=1, max_size=8) | st.sampled_from(["1", QUEUE, "x.y"]), min_size=2, max_size=2),
    query=FIELDS.map(lambda fields: as_body(fields, "form").decode()) | st.text(alphabet="a=&%20\x7f", max_size=20),
    body=BODY,
)
def test_nothing_that_is_sent_is_a_mistake_of_ours(
    site: Site, which: int, places: list[str], query: str, body: bytes
) -> None:
    face, route = ROUTES[which]
    left = iter(places * 2)
    ask(site, face, route, lambda _: next(left).replace("/", "_").encode("utf-8", "replace").decode(), query, body)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    verb=st.sampled_from(["getJob", "updateJob"]),
    fields=st.fixed_dictionaries(
        {"siteName": st.just(QUEUE), "jobId": st.sampled_from([1, "1", 2, 3]), "state": WORDS},
        optional=dict.fromkeys(OTHERS, VALUE),
    ),
)
def test_odd_fields_of_good_requests_are_no_mistake_of_ours(site: Site, verb: str, fields: dict[str, Any]) -> None:
    route = next(each for each in PANDA.routes if each.path.endswith(f"/{verb}"))
    ask(site, PANDA, route, lambda _: "x", "", as_body(fields, "gzip"))
