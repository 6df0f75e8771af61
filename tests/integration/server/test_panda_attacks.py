"""What was found by attacking the faces of PanDA: each test is named after what went wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from common.wire import OutputPattern
from server.compat.settings import Compat
from server.config import ServerConfig
from tests.integration.server.harness import Site, files, stage, states
from tests.integration.server.panda_tools import QUEUE, pilot
from tests.integration.server.test_compat_panda_client import ARCHIVE, archive, form, parameters

OUT = [OutputPattern("out.root")]
PILOT, HARVESTER, USER = ("foreign_pilot", "p"), ("harvester", "h"), ("user", "ann")
FACES = {"panda": {"on": True, "queues": {QUEUE: "q"}}, "panda_harvester": {"on": True}, "panda_client": {"on": True}}


@pytest.fixture
def kind() -> str:
    return "sqlite"


@pytest.fixture
def site(url: str) -> Iterator[Site]:
    """A site with all three faces."""
    made = Site(url, config=ServerConfig(compat=msgspec.convert(FACES, Compat)))
    made.say_up()
    made.world()
    yield made
    made.database.close()


def ask(site: Site, who: tuple[str, str], method: str, path: str, body: bytes = b"", **more: Any) -> Any:
    """An answer that is no fault of ours."""
    headers = {"Authorization": f"Bearer {site.token(*who)}", **more.pop("headers", {})}
    answer = site.client.simulate_request(method, path, body=body, headers=headers, **more)
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text and "mistake inside" not in answer.text
    return answer


NOWHERE = [
    ("GET", "/server/panda/getJob", "StatusCode"),
    ("PUT", "/server/panda/updateJob", "StatusCode"),
    ("POST", "/server/panda", "StatusCode"),
    ("POST", "/server/panda/a/b", "StatusCode"),
    ("GET", "/cache/nothing", "message"),
    ("POST", "/cache/ddmendpoints.json", "message"),
    ("GET", "/api/v1", "success"),
    ("GET", "/api/v1/a/b/c", "success"),
    ("PUT", "/api/v1/pilot/acquire_jobs", "success"),
    ("DELETE", "/api/v1/task/kill", "success"),
    ("GET", "/auth/a/b", "success"),
]


@pytest.mark.parametrize(("method", "path", "word"), NOWHERE)
def test_pages_that_are_not_there_were_refused_in_our_own_words(site: Site, method: str, path: str, word: str) -> None:
    before = site.row_counts()
    answer = ask(site, PILOT, method, path)
    assert word in answer.json and answer.headers["Content-Type"] == "application/json"
    assert answer.json[word] in (30, False) or answer.status_code in (404, 405)
    assert site.row_counts() == before


def test_pages_of_our_own_are_refused_in_our_own_words(site: Site) -> None:
    for path in ("/v1/nothing", "/nothing", "/apiary"):
        answer = ask(site, USER, "GET", path)
        assert answer.status_code == 404 and answer.headers["Content-Type"] == "application/problem+json"


HALF = '"half a character: \\ud800"'


def written_out(name: str) -> bytes:
    """A task whose parameters are a text, one of them with half a character in it."""
    return json.dumps({"task_parameters": json.dumps({**parameters(), name: "X"}).replace('"X"', HALF)}).encode()


@pytest.mark.parametrize("name", ["taskName", "campaign", "vo"])
def test_half_a_character_in_written_out_parameters_was_a_mistake_of_ours(site: Site, name: str) -> None:
    """The name of a task could not be stored, and another parameter was, but never told again."""
    body, content = form(archive(), ARCHIVE)
    ask(site, USER, "POST", "/api/v1/file_server/upload_cache_file", body, headers={"Content-Type": content})
    before = site.row_counts()
    answer = ask(site, USER, "POST", "/api/v1/task/submit", written_out(name)).json
    assert (answer["success"], answer["data"]) == (False, 4) and "task_parameters is no JSON" in answer["message"]
    assert site.row_counts() == before


@pytest.mark.parametrize("name", ["taskName", "userName"])
def test_half_a_character_in_a_filter_was_a_mistake_of_ours(site: Site, name: str) -> None:
    filters = f'{{"{name}": {HALF}}}'
    path = "/api/v1/task/get_tasks_detailed_info_since"
    answer = ask(site, USER, "GET", path, params={"filters": filters}).json
    assert answer["success"] is False and "filters is no JSON" in answer["message"]


def test_a_job_that_could_not_be_told_kept_all_others_from_their_pilots(site: Site) -> None:
    """Each request claimed the same unit again, and every other task of the queue waited for ever."""
    odd = site.submit(stage(given=files("a b"), outputs=OUT))[0]
    site.tick(10)
    good = site.submit(stage(outputs=OUT, count=2))[0]
    assert [pilot(site).job()["taskID"] for _ in range(2)] == [str(good)] * 2
    assert pilot(site).get_job()["StatusCode"] == 20
    assert states(site.units(odd)) == {"ready": 1}
    jobs = site.row_counts()["job"]
    pilot(site).get_job()
    assert site.row_counts()["job"] == jobs, "it is claimed again and again"
    site.tick(61)
    assert "a b" in pilot(site).get_job()["errorDialog"]


def test_a_command_that_makes_no_sense_kept_no_pilot_from_the_next_task(site: Site) -> None:
    site.counter(1, outputs=OUT, command=["run", "{input}"])
    site.tick(10)
    good = site.submit(stage(outputs=OUT))[0]
    assert pilot(site).job()["taskID"] == str(good)


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b'{"siteName": "q"}') * 2, gzip.compress(b"a=b") + b"junk", b"[]", b'"x"', b"null", b"nothing"],
    ids=["twice", "junk", "list", "text", "null", "words"],
)
@pytest.mark.parametrize(
    ("who", "path"),
    [(PILOT, "/server/panda/getJob"), (HARVESTER, "/api/v1/harvester/heartbeat")],
    ids=["pilot", "harvester"],
)
def test_bodies_that_say_nothing_counted_as_empty_ones(
    site: Site, body: bytes, who: tuple[str, str], path: str
) -> None:
    before = site.row_counts()
    answer = ask(site, who, "POST", path, body).json
    assert answer.get("StatusCode") == 30 or answer.get("success") is False
    assert "gzip" in str(answer) or "neither JSON nor a form" in str(answer)
    assert site.row_counts() == before


CUT = [
    (PILOT, "/server/panda/updateJob", b"jobId=1&state=running&siteName=q"),
    (USER, "/v1/sandboxes", archive()),
    (USER, "/api/v1/task/kill", b'{"task_id": 1}'),
]


@pytest.mark.parametrize(("who", "path", "body"), CUT, ids=["pilot", "sandbox", "user"])
def test_the_first_part_of_a_body_whose_connection_broke_off_was_a_whole_request(
    site: Site, who: tuple[str, str], path: str, body: bytes
) -> None:
    """A form lost its last digits, and a sandbox its last bytes."""
    before = site.row_counts()
    answer = ask(site, who, "POST", path, body, headers={"Content-Length": str(len(body) + 10)})
    assert f"the body breaks off: {len(body)} of {len(body) + 10} bytes came" in answer.text
    assert site.row_counts() == before
