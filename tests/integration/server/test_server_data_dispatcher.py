"""The face of Data Dispatcher, request by request: what its client would never send included."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

import jwt
import msgspec
import pytest
from falcon.testing import Result, TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from common.states import TaskState, UnitState
from common.wire import SiteSpec
from common.wire.projects import ProjectRequest, ProjectState, ProjectView
from server.access.guesses import TRIES
from server.access.settings import RoleLimit
from server.agents.projects import time_out_workers
from server.api import application
from server.compat.data_dispatcher import digest
from server.compat.data_dispatcher.face import AUTH, DATA, FACE
from server.compat.data_dispatcher.files import WAIT_S
from server.compat.data_dispatcher.words import FILES, HANDLE_STATES, PROJECT_STATES, PROJECTS
from server.config import ServerConfig
from server.dispatch import reserve
from server.engine.projects import project_state
from server.store.database import DatabaseUnavailable
from tests.integration.server.conftest import KINDS
from tests.integration.server.harness import Site
from tests.integration.server.project_tools import agents, listed

REALM = "dune"
PASSWORD = "open sesame"
ALICE = hashlib.md5(f"alice:{REALM}:{PASSWORD}".encode()).hexdigest()
_NUMBERS = itertools.count()


@pytest.fixture
def kind() -> str:
    """SQLite, where a test does not ask for both kinds of database."""
    return "sqlite"


both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def make_site(url: str) -> Iterator[Callable[..., Site]]:
    """Makes a site over a migrated database."""
    made: list[Site] = []

    def make(config: ServerConfig) -> Site:
        made.append(Site(url, config=config))
        made[-1].say_up()
        return made[-1]

    yield make
    for each in made:
        each.database.close()


@pytest.fixture
def here(make_site: Callable[..., Site], tmp_path: Path) -> Site:
    """A site with the face, a catalogue ``fake`` of ten files on ``disk``, and passwords."""
    return dressed(make_site, tmp_path)


def dressed(make_site: Callable[..., Site], folder: Path, **more: Any) -> Site:
    passwords = folder / "passwords"
    passwords.touch(0o600)
    passwords.write_text(f"alice:{REALM}:{ALICE}\nbob:other:{ALICE}\n")
    face = {"on": True, "catalog": "fake", "password_file": str(passwords), "realm": REALM, "rse_site": "s", **more}
    config = {
        "state_dir": str(folder),
        "compat": {"data_dispatcher": face},
        "catalogs": {"fake": {"plugin": "fake", "datasets": {"set": 10}, "page": 4}},
        "long_polls": 1,
    }
    site = make_site(config=msgspec.convert(config, ServerConfig)).world(storages=("disk", "tape"))
    site.dispatcher.polls.acquire()  # nobody waits for a clock that stands still
    return site


def ask(
    site: Site,
    path: str,
    body: Any = None,
    *,
    user: str = "u",
    role: str = "user",
    token: Optional[str] = None,
    **query: Any,
) -> Result:
    """A request to the data server, as the client sends it."""
    text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    raw = body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
    given_ = site.token(role, user) if token is None else token
    headers = {"X-Authentication-Token": given_} if given_ else {}
    method = "GET" if raw is None else "POST"
    return site.client.simulate_request(method, f"{DATA}/{path}", body=raw, headers=headers, query_string=text)


def said(answer: Result) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/json", answer.headers
    return answer.json


def create(site: Site, *names: str, user: str = "u", **more: Any) -> int:
    files = [{"namespace": "fake", "name": name, "attributes": {}} for name in names or ("set.0", "set.1")]
    body = {"files": files, "project_attributes": {}, "worker_timeout": 3600, "idle_timeout": None, **more}
    project = said(ask(site, "create_project", body, user=user))["project_id"]
    site.agents()
    assert isinstance(project, int)
    return project


def take(site: Site, project: object, worker: str = "w", **more: Any) -> Any:
    return ask(site, "next_file", project_id=project, worker_id=worker, **more)


# ---------------------------------------------------------------- words


def test_every_state_of_ours_is_one_that_the_client_knows() -> None:
    assert set(FILES) == set(UnitState) and set(FILES.values()) == set(HANDLE_STATES)
    assert set(PROJECTS) == set(ProjectState)
    assert {PROJECTS[project_state(state)] for state in TaskState} == {*PROJECT_STATES} - {"held"}
    assert set(PROJECT_STATES) == {"active", "failed", "done", "cancelled", "held", "abandoned"}


def test_a_project_has_all_that_the_contract_names(here: Site) -> None:
    project = create(here, query="files from dune:all", users=["bob"], roles=["r"], project_attributes={"step": "x"})
    shown = said(ask(here, "project", project_id=project, with_files="yes", with_replicas="yes"))
    (first, second) = shown.pop("file_handles")
    assert shown == {
        "project_id": project,
        "owner": "u",
        "state": "active",
        "retry_count": None,
        "attributes": {"step": "x"},
        "created_timestamp": here.clock.now(),
        "ended_timestamp": None,
        "active": True,
        "query": "files from dune:all",
        "worker_timeout": 3600.0,
        "idle_timeout": None,
        "users": ["bob"],
        "roles": ["r"],
    }
    assert first == {
        "project_id": project,
        "namespace": "fake",
        "name": "set.0",
        "state": "initial",
        "worker_id": None,
        "attempts": 0,
        "attributes": {},
        "reserved_since": None,
        "replicas": {
            "disk": {
                "name": "set.0",
                "namespace": "fake",
                "path": "set/0",
                "rse": "disk",
                "url": "file:///disk/set/0",
                "urls": ["file:///disk/set/0"],
                "preference": 100,
                "available": True,
                "rse_available": True,
                "proximity": 100,
            }
        },
    }
    assert second["name"] == "set.1"
    assert "file_handles" not in said(ask(here, "project", project_id=project, with_files="no"))


def test_a_query_without_files_is_answered_by_the_catalogue(here: Site) -> None:
    body = {"files": [], "query": "set", "project_attributes": {}}
    project = said(ask(here, "create_project", body))["project_id"]
    here.agents()
    shown = said(ask(here, "project", project_id=project))
    assert len(shown["file_handles"]) == 10 and shown["query"] == "set"


def test_the_catalogue_answers_like_metacat(here: Site) -> None:
    found = said(ask(here, "data/query", b"set", with_meta="yes", with_provenance="no", trimquery="set"))
    assert (
        len(found) == 10
        and found[3]["name"] == "set.3"
        and found[3]["metadata"] == {}
        and found[3]["size"] == 1_000_000
    )
    assert "metadata" not in said(ask(here, "data/query", b"set"))[0]
    for body, query, words in (
        (b"nothing", {}, "there is no dataset 'nothing'"),
        (b"", {}, "1 to 10000"),
        (b"\xff", {}, "UTF-8"),
        (b"set", {"save_as": "a:b"}, "cannot be done here"),
    ):
        answer = ask(here, "data/query", body, **query)
        assert (answer.status_code, words in answer.text) == (400, True), answer.text


# ---------------------------------------------------------------- the next file


@both
def test_the_next_file_has_all_that_the_contract_names(here: Site) -> None:
    project = create(here, "set.3", project_attributes={"pi": 3.14}, query="hidden")
    answer = said(take(here, project, cpu_site="s"))
    assert (answer["reason"], answer["retry"]) == ("reserved", False)
    handle = answer["handle"]
    assert (handle["state"], handle["worker_id"], handle["attempts"]) == ("reserved", "w", 1)
    assert handle["reserved_since"] == here.clock.now() and handle["project_attributes"] == {"pi": 3.14}
    assert handle["replicas"]["disk"]["proximity"] == handle["replicas"]["disk"]["preference"] == 0
    assert said(take(here, project)) == {"handle": None, "reason": "retry", "retry": True}
    assert said(ask(here, "release", handle_id=f"{project}:fake:set.3", failed="no", worker_id="w"))["state"] == "done"
    agents(here)
    assert said(take(here, project)) == {"handle": None, "reason": "project inactive: done", "retry": False}


@pytest.mark.parametrize(
    ("project", "worker", "more", "words"),
    [
        ("{}", "w", {"user": "stranger"}, "stranger is none of its users"),
        ("{}", "w", {"token": "nonsense"}, "not valid"),
        ("{}", "w", {"token": ""}, "send a token"),
        ("{}", "w", {"role": "harvester"}, "needs the role"),
        ("{}", "", {}, "worker_id: it must be given"),
        ("{}", "\x01", {}, "$.worker"),
        ("{}", "w" * 256, {}, "$.worker"),
        ("999", "w", {}, "there is no project 999"),
        ("x", "w", {}, "give the number of a project"),
        ("", "w", {}, "project_id: it must be given"),
        ("9" * 30, "w", {}, "give the number of a project"),
    ],
)
def test_what_waiting_cannot_mend_ends_the_worker(
    here: Site, project: str, worker: str, more: dict[str, str], words: str
) -> None:
    number = project.format(create(here))
    before = here.row_counts()
    answer = said(take(here, number, worker, **more))
    assert (answer["handle"], answer["retry"]) == (None, False)
    assert words in answer["reason"]
    assert here.row_counts() == before


def test_a_cancelled_project_ends_the_worker(here: Site) -> None:
    project = create(here)
    said(ask(here, "cancel_project", project_id=project))
    assert said(take(here, project)) == {"handle": None, "reason": "project inactive: cancelled", "retry": False}


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), ValueError("a mistake of ours")])
def test_what_passes_makes_the_worker_ask_again(here: Site, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """With 503 the client gives up after five minutes, with any other status at once."""
    project = create(here)

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(reserve, "reserve", broken)
    answer = said(take(here, project))
    assert (answer["handle"], answer["retry"]) == (None, True) and "Traceback" not in answer["reason"]


def test_too_many_requests_make_the_worker_ask_again(here: Site) -> None:
    limited(here, per_s=0.01, burst=1)
    assert said(take(here, 999))["retry"] is False
    answer = said(take(here, 999))
    assert (answer["retry"], "too many requests" in answer["reason"]) == (True, True)
    assert ask(here, "projects").status_code == 503


def test_two_requests_in_each_others_way_are_asked_for_again(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import IntegrityError

    project = create(here)

    def collided(*_: object) -> None:
        raise IntegrityError("insert", {}, Exception("twice"))

    monkeypatch.setattr(reserve, "reserve", collided)
    answer = take(here, project)
    assert (answer.status_code, answer.json["retry"]) == (503, True)


@both
def test_an_abandoned_project_comes_back_with_the_next_worker(here: Site) -> None:
    project = create(here, idle_timeout=100)
    here.tick(200)
    agents(here)
    assert said(ask(here, "projects", state="abandoned", with_handles="no"))[0]["project_id"] == project
    assert said(take(here, project))["handle"]["name"] == "set.0"
    here.tick(200)
    agents(here)
    assert said(ask(here, "activate_project", project_id=project))["state"] == "active"


@both
def test_a_worker_that_is_silent_for_too_long_loses_its_file(here: Site) -> None:
    project = create(here, "set.0", worker_timeout=60)
    said(take(here, project))
    here.tick(120)
    time_out_workers(here.dispatcher)
    (handle,) = said(ask(here, "handles", project_id=project))
    assert (handle["state"], handle["worker_id"], handle["attempts"]) == ("initial", None, 1)
    assert handle["attributes"] == {"timeouts": 1}
    late = ask(here, "release", handle_id=f"{project}:fake:set.0", failed="no", worker_id="w")
    assert (late.status_code, "held it for too long" in late.text) == (409, True)


def test_a_file_that_times_out_fails_where_the_project_says_so(here: Site) -> None:
    project = create(here, "set.0", worker_timeout=60, project_attributes={"retry_on_timeout": "False"})
    said(take(here, project))
    here.tick(120)
    time_out_workers(here.dispatcher)
    assert said(ask(here, "file_handle", handle_id=f"{project}:fake:set.0"))["state"] == "failed"


# ---------------------------------------------------------------- giving back


@both
def test_releases_in_all_ways(here: Site) -> None:
    project = create(here, "set.0", "set.1", "set.2")
    for _ in range(3):
        said(take(here, project))
    handle = f"{project}:fake:set"
    assert said(ask(here, "release", handle_id=f"{handle}.0", failed="no", worker_id="w"))["state"] == "done"
    assert (
        said(ask(here, "release", handle_id=f"{handle}.1", failed="yes", retry="yes", worker_id="w"))["state"]
        == "initial"
    )
    assert (
        said(ask(here, "release", handle_id=f"{handle}.2", failed="yes", retry="no", worker_id="w"))["state"]
        == "failed"
    )
    assert said(ask(here, "release", handle_id=f"{handle}.0", failed="no", worker_id="w"))["state"] == "done"
    said(take(here, project, "another"))
    assert said(ask(here, "release", handle_id=f"{handle}.1"))["worker_id"] == "another"  # whoever holds it


@pytest.mark.parametrize(
    ("handle", "worker", "user", "status", "words"),
    [
        ("{}:fake:set.0", "another", "u", 403, "wrong worker_id"),
        ("{}:fake:set.0", "w", "stranger", 403, "stranger is none of its users"),
        ("{}:fake:set.1", "", "u", 404, "is not reserved"),
        ("{}:fake:nothing", "w", "u", 404, "has no file fake:nothing"),
        ("999:fake:set.0", "w", "u", 404, "there is no project 999"),
        ("{}", "w", "u", 400, "give PROJECT:NAMESPACE:NAME"),
        ("x:y:z", "w", "u", 400, "number of a project"),
        ("", "w", "u", 400, "handle_id"),
    ],
)
def test_releases_that_are_refused_change_nothing(
    here: Site, handle: str, worker: str, user: str, status: int, words: str
) -> None:
    project = create(here)
    said(take(here, project))
    before = (here.row_counts(), said(ask(here, "handles", project_id=project)))
    more = {"worker_id": worker} if worker else {}
    answer = ask(here, "release", handle_id=handle.format(project), failed="no", user=user, **more)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert (here.row_counts(), said(ask(here, "handles", project_id=project))) == before


def test_an_outside_worker_may_work_and_look_where_it_may_work(here: Site) -> None:
    project = create(here, roles=["outside_worker"])
    closed = create(here)
    who = {"role": "outside_worker", "user": "farm"}
    assert said(take(here, project, **who))["handle"]["name"] == "set.0"
    assert len(said(ask(here, "project", project_id=project, **who))["file_handles"]) == 2
    assert said(ask(here, "release", handle_id=f"{project}:fake:set.0", failed="no", worker_id="w", **who))
    for path in ("project", "handles", "project_files"):
        assert ask(here, path, project_id=closed, **who).status_code == 403
    assert ask(here, "projects", **who).status_code == 403


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": None}, "files: send a list"),
        ({"files": []}, "the list is empty"),
        ({"files": [1, {"name": "x"}, "a:b/c", "fake:set.1"]}, "files[0]: write namespace:name"),
        ({"files": [{"namespace": "fake", "name": "set.0", "attributes": []}]}, "attributes: send a JSON object"),
        ({"files": ["fake:set.0", "fake:set.0"]}, "is in the list already"),
        ({"files": ["fake:set.0", "fake:set.77", "other:file"]}, "no replicas of 2 of the files: fake:set.77, other:file"),
        ({"worker_timeout": 0}, "worker_timeout: give seconds"),
        ({"worker_timeout": "soon"}, "worker_timeout: give seconds"),
        ({"worker_timeout": True}, "worker_timeout: give seconds"),
        ({"idle_timeout": 10**400}, "idle_timeout"),
        ({"users": "bob"}, "users: send a list"),
        ({"roles": [""]}, "roles: send a list"),
        ({"project_attributes": 7}, "project_attributes: send a JSON object"),
        ({"project_attributes": {"virtual": "perhaps"}}, "virtual: say yes or no"),
        ({"project_attributes": {"n": 2**64}}, "64 bits"),
        ({"query": 7}, "query: send text"),
        ({"files": [], "query": "x" * 10_001}, "10000"),
    ],
)  # fmt: skip
def test_projects_that_cannot_be_made(here: Site, change: dict[str, Any], words: str) -> None:
    before = here.row_counts()
    answer = ask(here, "create_project", {"files": ["fake:set.0"], **change})
    assert (answer.status_code, words in answer.text) == (400, True), answer.text
    assert answer.headers["content-type"].startswith("text/plain") and here.row_counts() == before


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "send a JSON object"),
        (b"[]", 400, "send a JSON object"),
        (b"{", 400, "no JSON"),
        (b"{" * 100_000, 400, "no JSON"),
        (gzip.compress(b"{}")[:-9], 400, "breaks off"),
        (b'{"files": ["fake:\\ud800"]}', 400, ""),
    ],
)
def test_bodies_that_cannot_be_read(here: Site, body: bytes, status: int, words: str) -> None:
    before = here.row_counts()
    for path in ("create_project", "copy_project", "restart_handles", "search_projects"):
        answer = ask(here, path, body)
        assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert here.row_counts() == before


def limited(site: Site, **person: float) -> None:
    """Another limit for people."""
    config = site.dispatcher.config
    limits = msgspec.structs.replace(config.limits, person=msgspec.convert(person, RoleLimit))
    site.dispatcher.config = msgspec.structs.replace(config, limits=limits)
    site.client = TestClient(application.create_application(site.dispatcher))


def test_a_body_that_is_too_large(here: Site) -> None:
    limited(here, body_mb=1)
    large = b" " * (1024 * 1024 + 1)
    for body in (large, gzip.compress(large)):
        assert ask(here, "create_project", body).status_code == 413


def test_a_compressed_list_is_taken(here: Site) -> None:
    body = gzip.compress(msgspec.json.encode({"files": ["fake:set.0"]}))
    assert said(ask(here, "create_project", body))["file_handles"][0]["name"] == "set.0"


def test_without_a_catalogue_only_virtual_projects_are_made(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = dressed(make_site, tmp_path, catalog="")
    refused = ask(site, "create_project", {"files": ["a:b"]})
    assert (refused.status_code, "make the project virtual" in refused.text) == (400, True)
    assert ask(site, "create_project", {"files": [], "query": "set"}).status_code == 400
    assert said(ask(site, "create_project", {"files": ["a:b"], "project_attributes": {"virtual": True}}))


def test_a_catalogue_that_is_away_makes_the_client_ask_again(here: Site) -> None:
    options = here.dispatcher.plugins.catalogs["fake"]._options  # type: ignore[attr-defined]
    here.dispatcher.plugins.catalogs["fake"]._options = msgspec.structs.replace(options, down=True)  # type: ignore[attr-defined]
    before = here.row_counts()
    for path, body in (("create_project", {"files": ["fake:set.0"]}), ("data/query", b"set")):
        answer = ask(here, path, body)
        assert (answer.status_code, "was told to be down" in answer.text) == (503, True)
    assert here.row_counts() == before


@pytest.mark.parametrize(
    ("path", "query", "status", "words"),
    [
        ("project", {"project_id": 999}, 404, "there is no project 999"),
        ("project", {}, 400, "project_id"),
        ("project", {"project_id": 1, "with_files": "perhaps"}, 400, "say yes or no"),
        ("projects", {"state": "weird"}, 400, "give one of active"),
        ("projects", {"attributes": "[1]"}, 400, "send a JSON object"),
        ("projects", {"attributes": '{"a": [1]}'}, 400, "texts, numbers"),
        ("handles", {"project_id": 1, "state": "weird"}, 400, "give one of initial"),
        ("get_rse", {"name": "nowhere"}, 404, "RSE nowhere not found"),
        ("cancel_project", {"project_id": 999}, 404, "no project"),
        ("delete_project", {"project_id": 999}, 404, "no project"),
        ("activate_project", {"project_id": 999}, 404, "no project"),
        ("restart_project", {"project_id": 999}, 404, "no project"),
    ],
)
def test_questions_that_cannot_be_answered(
    here: Site, path: str, query: dict[str, Any], status: int, words: str
) -> None:
    create(here)
    answer = ask(here, path, **query)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{DATA}/file", 404),
        ("GET", DATA, 404),
        ("GET", f"{AUTH}/nothing", 404),
        ("GET", f"{DATA}/create_project", 400),
        ("DELETE", f"{DATA}/projects", 400),
    ],
)
def test_what_is_not_there_is_told_in_words(here: Site, method: str, path: str, status: int) -> None:
    """The client shows the text of a refusal; it was JSON of our own."""
    answer = here.client.simulate_request(method, path, headers={"X-Authentication-Token": here.token("user")})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert path in answer.text and "{" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD"])
def test_the_next_file_is_answered_with_200_whatever_the_method(here: Site, method: str) -> None:
    answer = here.client.simulate_request(method, f"{DATA}/next_file")
    assert answer.status_code == 200 and (method == "HEAD" or answer.json["retry"] is False)


@pytest.mark.parametrize("did", ["a:\0", "a\1b:c", "\0:b", "a:b\x1f"])
def test_names_with_control_characters_make_no_project(here: Site, did: str) -> None:
    """A file was taken whose name no worker can send back."""
    namespace, _, name = did.partition(":")
    body = {"files": [{"namespace": namespace, "name": name}], "project_attributes": {"virtual": True}}
    assert ask(here, "create_project", body).status_code == 400
    body = {"files": ["a:b"], "project_attributes": {"virtual": True}, "users": ["bob\0"]}
    assert ask(here, "create_project", body).status_code == 400


def test_without_a_good_token_a_person_is_told_what_gives_one(here: Site) -> None:
    assert "ddisp login" in ask(here, "projects", token="nonsense").text


def test_only_the_owner_commands(here: Site) -> None:
    project = create(here, users=["friend"])
    before = here.row_counts()
    for path in ("cancel_project", "delete_project", "restart_project"):
        assert ask(here, path, project_id=project, user="friend").status_code == 403
    body = {"project_id": project, "all": True}
    assert ask(here, "restart_handles", body, user="friend").status_code == 403
    assert here.row_counts() == before


def test_what_is_changed_by_a_get_is_told_to_the_audit(here: Site) -> None:
    project = create(here)
    said(ask(here, "cancel_project", project_id=project))
    events = here.admin("GET", "/v1/events?kind=AUDIT&limit=100", reply=dict)["items"]
    assert any(each["detail"].get("route") == f"{DATA}/cancel_project" for each in events)


def test_what_else_a_client_puts_into_a_query_is_not_told_to_the_audit(
    here: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever was asked became part of the event and of the log."""
    caplog.set_level("INFO")
    project = create(here)
    said(ask(here, "cancel_project", project_id=project, password="open-sesame"))
    events = here.admin("GET", "/v1/events?kind=AUDIT&limit=100", reply=dict)["items"]
    assert any(each["detail"].get("project_id") == str(project) for each in events)
    assert "open-sesame" not in repr(events) + caplog.text


def test_logins_are_told_to_the_audit(here: Site) -> None:
    log_in(here, "alice", PASSWORD)
    auth(here, "token", "POST", "carol", Authorization=f"bearer {here.token('user', 'carol')}")
    events = here.admin("GET", "/v1/events?kind=AUDIT&limit=100", reply=dict)["items"]
    found = {each["subject_id"]: each["detail"] for each in events}
    assert found["alice"] == {"did": "log in", "proof": "digest"} and found["carol"]["route"] == f"{AUTH}/auth"


# ---------------------------------------------------------------- commands


@both
def test_restarts_by_state_and_by_name(here: Site) -> None:
    project = create(here, "set.0", "set.1", "set.2")
    for number, outcome in enumerate(({"failed": "no"}, {"failed": "yes", "retry": "no"})):
        said(take(here, project))
        said(ask(here, "release", handle_id=f"{project}:fake:set.{number}", worker_id="w", **outcome))
    said(take(here, project))

    def states() -> list[str]:
        return [each["state"] for each in said(ask(here, "project_files", project_id=project))]

    assert states() == ["done", "failed", "reserved"]
    assert said(ask(here, "restart_project", project_id=project))["state"] == "active"
    assert states() == ["done", "initial", "reserved"]
    said(ask(here, "restart_project", project_id=project, failed_only="no", force="yes"))
    assert states() == ["initial", "initial", "initial"]
    said(take(here, project))
    said(ask(here, "restart_handles", {"project_id": project, "handles": ["fake:set.0"]}))
    assert states() == ["initial", "initial", "initial"]
    for wrong, words in (
        ({"handles": ["fake:no"]}, "has no file"),
        ({"handles": []}, "say which"),
        ({"handles": "x"}, "list of names"),
        ({"done": "perhaps"}, "yes or no"),
        ({}, "say which"),
    ):
        answer = ask(here, "restart_handles", {"project_id": project, **wrong})
        assert (answer.status_code, words in answer.text) == (400, True), answer.text


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({}, (3600.0, None)),
        ({"worker_timeout": "default", "idle_timeout": "default"}, (3600.0, None)),
        ({"worker_timeout": None}, (3600.0, None)),
        ({"worker_timeout": "no timeout", "idle_timeout": 60.0}, (None, 60.0)),
        ({"worker_timeout": 7}, (7.0, None)),
    ],
)
def test_time_outs_of_a_copy(here: Site, sent: dict[str, Any], expected: tuple[Any, Any]) -> None:
    project = create(here)
    made = said(ask(here, "copy_project", {"project_id": project, **sent}))
    assert (made["worker_timeout"], made["idle_timeout"]) == expected
    assert ask(here, "copy_project", {"project_id": project, "worker_timeout": "soon"}).status_code == 400
    virtual = {"project_id": project, "project_attributes": {"virtual": True}}
    assert ask(here, "copy_project", virtual).status_code == 400


@both
def test_projects_of_all_owners_states_and_attributes(here: Site) -> None:
    mine = create(here, project_attributes={"step": "a", "n": 3, "good": True})
    theirs = create(here, user="v", project_attributes={"step": "a, b"})
    said(ask(here, "cancel_project", project_id=mine))

    def found(**query: Any) -> list[int]:
        return [each["project_id"] for each in said(ask(here, "projects", with_handles="no", **query))]

    assert found() == [mine] and found(owner="all") == [mine, theirs] and found(owner="v") == [theirs]
    assert found(state="active") == [] and found(state="cancelled") == [mine] and found(state="held") == []
    assert found(owner="all", not_state="cancelled") == [theirs]
    assert found(owner="all", attributes='{"step": "a, b"}') == [theirs]
    assert found(attributes='{"n": 3, "good": true}') == [mine] and found(attributes='{"good": false}') == []
    listed_ = said(ask(here, "projects", owner="all", with_handles="yes", with_replicas="no"))
    assert [len(each["file_handles"]) for each in listed_] == [2, 2]
    assert "replicas" not in listed_[0]["file_handles"][0]


def test_isolated_groups_see_nothing_of_each_other(here: Site) -> None:
    project = create(here)
    here.turn("isolation", "group")
    for path in ("project", "handles", "cancel_project"):
        assert ask(here, path, project_id=project, user="stranger").status_code == 404
    assert said(ask(here, "projects", owner="all", user="stranger")) == []
    assert said(ask(here, "search_projects", {"query": f"id = {project}"}, user="stranger")) == []


def test_a_long_list_of_files_is_shown_whole(here: Site) -> None:
    names = listed(*(f"f{number:04d}" for number in range(2500)), storages=[])
    request = ProjectRequest(files=names, virtual=True)
    project = here.user("POST", "/v1/projects", request, ProjectView).id
    here.agents()
    shown = said(ask(here, "project", project_id=project))["file_handles"]
    assert [each["name"] for each in shown] == [f"f{number:04d}" for number in range(2500)]
    assert len(said(ask(here, "handles", project_id=project, state="done"))) == 0


# ---------------------------------------------------------------- RSEs


def test_rses_are_our_storages(here: Site) -> None:
    admin = {"role": "admin", "user": "boss"}
    assert [each["name"] for each in said(ask(here, "rses"))] == ["disk", "tape"]
    assert said(ask(here, "get_rse", name="disk")) == {
        "name": "disk", "description": "", "is_available": True, "is_enabled": True, "is_tape": False, "pin_url": None,
        "poll_url": None, "remove_prefix": "", "add_prefix": "file:///disk", "pin_prefix": "", "preference": 0, "type": None,
    }  # fmt: skip
    made = {"name": "new", "description": "a new one", "is_tape": "True", "is_available": "False", "is_enabled": True}
    made |= {"preference": None, "add_prefix": "root://new//", "remove_prefix": "", "interface": None, "pin_url": None}
    assert ask(here, "create_rse", made).status_code == 403
    found = said(ask(here, "create_rse", made, **admin))
    assert (found["is_tape"], found["is_available"], found["add_prefix"]) == (True, False, "root://new//")
    assert ask(here, "create_rse", made, **admin).status_code == 409
    changed = said(ask(here, "update_rse", name="new", is_available="True", description="better", **admin))
    assert (changed["is_available"], changed["is_tape"], changed["description"]) == (True, True, "better")
    assert (
        said(ask(here, "update_rse", {"name": "new", "add_prefix": "davs://new/"}, **admin))["add_prefix"]
        == "davs://new/"
    )
    assert said(ask(here, "set_rse_availability", name="new", available="no", **admin))["is_available"] is False
    here.admin("PUT", "/v1/sites/s", SiteSpec("s", status="offline"))
    assert said(ask(here, "set_rse_availability", name="new", available="yes", **admin))["is_available"] is False
    assert said(ask(here, "delete_rse", name="new", **admin)) is None
    assert ask(here, "delete_rse", name="new", **admin).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("create_rse", {"name": "x"}, 400, "give the address"),
        ("create_rse", {"name": "x", "add_prefix": "no address"}, 400, "url"),
        ("create_rse", {"name": "x y", "add_prefix": "root://x//"}, 400, "name"),
        ("create_rse", {"name": 7}, 400, "say which RSE"),
        ("create_rse", [], 400, "send a JSON object"),
        ("update_rse", {"name": "disk", "preference": 5}, 400, "the nearest replica comes first"),
        ("update_rse", {"name": "disk", "remove_prefix": "/pnfs"}, 400, "nothing to remove"),
        ("update_rse", {"name": "disk", "pin_url": "https://x/"}, 400, "stagers"),
        ("update_rse", {"name": "disk", "is_enabled": False}, 400, "every storage is"),
        ("update_rse", {"name": "disk", "description": 7}, 400, "send text"),
        ("update_rse", {"name": "nowhere"}, 404, "not found"),
        ("delete_rse", {}, 400, "say which RSE"),
    ],
)
def test_rses_that_cannot_be_changed(here: Site, path: str, body: Any, status: int, words: str) -> None:
    before = (here.row_counts(), said(ask(here, "rses")))
    answer = ask(here, path, body, role="admin", user="boss")
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert (here.row_counts(), said(ask(here, "rses"))) == before


# ---------------------------------------------------------------- logging in


def log_in(site: Site, user: str, password: str, *, nonce: str = "", uri: str = f"{AUTH}/auth?method=digest") -> Result:
    """As the client's library does it: asked without a password first."""
    if not nonce:
        first = site.client.simulate_get(f"{AUTH}/auth", query_string="method=digest")
        assert first.status_code == 401
        found = re.fullmatch(
            rf'Digest realm="{REALM}", nonce="([^"]+)", algorithm=MD5, qop="auth"', first.headers["www-authenticate"]
        )
        assert found
        nonce = found[1]
    ha1 = hashlib.md5(f"{user}:{REALM}:{password}".encode()).hexdigest()
    ha2 = hashlib.md5(f"GET:{uri}".encode()).hexdigest()
    response = hashlib.md5(f"{ha1}:{nonce}:00000001:abcd:auth:{ha2}".encode()).hexdigest()
    header = (
        f'Digest username="{user}", realm="{REALM}", nonce="{nonce}", uri="{uri}", response="{response}", '
        'algorithm="MD5", qop="auth", nc=00000001, cnonce="abcd"'
    )
    return site.client.simulate_get(f"{AUTH}/auth", query_string="method=digest", headers={"Authorization": header})


@both
def test_a_password_gets_a_token_with_all_its_claims(here: Site) -> None:
    answer = log_in(here, "alice", PASSWORD)
    assert answer.status_code == 200 and PASSWORD not in answer.text
    token = answer.headers["x-authentication-token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["iss"], claims["roles"]) == ("alice", "pilotage", ["user"])
    assert all(isinstance(claims[name], (int, float)) for name in ("exp", "iat", "nbf")) and claims["jti"]
    assert claims["exp"] - claims["iat"] == 86400
    assert said(ask(here, "projects", token=token)) == []
    verified = here.client.simulate_get(f"{AUTH}/verify", headers={"X-Authentication-Token": token})
    whoami = here.client.simulate_get(f"{AUTH}/whoami", headers={"X-Authentication-Token": token})
    assert verified.status_code == 200 and whoami.json["name"] == "alice"
    assert here.client.simulate_get(f"{AUTH}/verify", headers={"X-Authentication-Token": "x"}).status_code == 401


def test_whoever_is_known_here_has_their_own_roles(here: Site) -> None:
    from server.access import logins
    from server.engine.access import Role

    logins.invite(here.dispatcher, "alice", [Role.ADMIN], ["dune"])
    token = log_in(here, "alice", PASSWORD).headers["x-authentication-token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["roles"], claims["groups"]) == (["admin"], ["dune"])


@pytest.mark.parametrize(("user", "password"), [("alice", "wrong"), ("nobody", "x"), ("bob", PASSWORD), ("", "")])
def test_a_wrong_password_gets_nothing(here: Site, user: str, password: str) -> None:
    answer = log_in(here, user, password)
    assert (answer.status_code, answer.text) == (401, "the name or the password is wrong\n")
    assert "x-authentication-token" not in answer.headers


def test_a_nonce_is_ours_and_serves_for_a_minute(here: Site) -> None:
    key = here.issuer.derived_key("digest nonces of data dispatcher")
    nonce = digest.new_nonce(key, here.clock.now())
    assert log_in(here, "alice", PASSWORD, nonce=nonce).status_code == 200
    here.tick(digest.NONCE_S + 1)
    stale = log_in(here, "alice", PASSWORD, nonce=nonce)
    assert stale.status_code == 401 and "stale=true" in stale.headers["www-authenticate"]
    forged = digest.new_nonce(b"x" * 32, here.clock.now())
    assert log_in(here, "alice", PASSWORD, nonce=forged).status_code == 401
    assert log_in(here, "alice", PASSWORD, uri="/somewhere/else").status_code == 401


def test_passwords_cannot_be_guessed_quickly(here: Site) -> None:
    for _ in range(int(TRIES)):
        assert log_in(here, "alice", "wrong").status_code == 401
    refused = log_in(here, "alice", PASSWORD)
    assert (refused.status_code, "too many wrong passwords" in refused.text) == (503, True)
    here.tick(15)
    for _ in range(5):
        assert log_in(here, "alice", PASSWORD).status_code == 200  # a right one costs nothing


def test_a_banned_person_cannot_log_in(here: Site) -> None:
    here.admin("POST", "/v1/bans", {"kind": "user", "name": "alice", "reason": "x"}, dict)
    refused = log_in(here, "alice", PASSWORD)
    assert (refused.status_code, refused.text) == (403, "alice is banned\n")


@pytest.mark.parametrize(
    "spoil", [lambda p: p.chmod(0o644), lambda p: p.write_text("nonsense\n"), lambda p: p.unlink()]
)
def test_a_file_of_passwords_that_is_no_good_lets_nobody_in(
    here: Site, tmp_path: Path, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Strangers were told where it lies and what is wrong with it, and the admin was told nothing."""
    path = tmp_path / "passwords"
    spoil(path)
    answer = log_in(here, "alice", PASSWORD)
    assert answer.status_code == 503 and ALICE not in answer.text and "nonsense" not in answer.text
    assert str(path) not in answer.text and str(path) in caplog.text


def auth(site: Site, method: str, verb: str = "GET", username: str = "", **headers: str) -> Result:
    query = f"method={method}" + (f"&username={username}" if username else "")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return site.client.simulate_request(verb, f"{AUTH}/auth", query_string=query, headers=named, body=b"alice:secret")


def test_other_ways_to_log_in(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = dressed(make_site, tmp_path, password_file="")
    assert auth(site, "digest").status_code == 403
    ldap = auth(site, "ldap", "POST")
    assert (ldap.status_code, "secret" in ldap.text) == (401, False)
    assert auth(site, "x509").status_code == auth(site, "token").status_code == 401
    assert auth(site, "magic").status_code == auth(site, "").status_code == 400
    assert site.client.simulate_get(f"{AUTH}/mydn").status_code == 401


def test_a_token_is_not_traded_for_one_that_lives_longer(here: Site) -> None:
    short = here.issuer.mint("alice", ["user", "harvester"], 600.0)
    for verb in ("GET", "POST"):
        answer = auth(here, "token", verb, "alice", Authorization=f"bearer {short}")
        assert answer.status_code == 200
        claims = jwt.decode(answer.headers["x-authentication-token"], options={"verify_signature": False})
        assert claims["exp"] <= here.clock.now() + 601 and claims["roles"] == ["user"]
    assert auth(here, "token", "POST", "bob", Authorization=f"bearer {short}").status_code == 403
    assert auth(here, "token", "POST", Authorization=f"bearer {here.token('harvester')}").status_code == 403
    assert auth(here, "token", "POST", Authorization="bearer nonsense").status_code == 401
    assert auth(here, "token", "POST", Authorization="Basic YTpi").status_code == 401


# ---------------------------------------------------------------- anything at all

TEXTS = st.one_of(
    st.sampled_from(
        ["", "1", "2", "999", "9" * 40, "-1", "yes", "no", "active", "fake:set.0", "1:fake:set.0", "disk", "w", "%00", "é",
         "digest", "ldap", "x509", "token", '{"a": 1}', "{", "null", "set", "\ud800", "\x00", "a" * 3000, "True"]
    ),
    st.text(max_size=20),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(), st.sampled_from([2**63, 10**400, -1, 0]), st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
FIELDS = (
    "files", "project_attributes", "query", "worker_timeout", "idle_timeout", "users", "roles", "project_id",
    "file_attributes", "handles", "done", "failed", "reserved", "all", "owner", "state", "with_handles", "name",
    "description", "is_tape", "is_available", "add_prefix", "not_state", "attributes", "with_files", "with_replicas",
    "worker_id", "cpu_site", "handle_id", "retry", "available", "method", "username", "force", "failed_only", "with_meta",
)  # fmt: skip
OBJECTS = st.builds(
    lambda likely, odd: {**likely, **odd},
    st.sampled_from([{}, {"project_id": 3}, {"files": ["fake:set.0"]}, {"query": "step = x"}, {"name": "tape"}]),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5),
)


def _encoded(value: Any) -> bytes:
    import json

    return json.dumps(value).encode("utf-8", "surrogatepass")


BODIES = st.one_of(
    st.none(),
    OBJECTS.map(_encoded),
    JSON.map(_encoded),
    st.binary(max_size=30),
    OBJECTS.map(_encoded).map(gzip.compress),
    OBJECTS.map(_encoded).map(gzip.compress).map(lambda raw: raw[:-5]),
    st.sampled_from([b"{" * 50_000, b'{"files": ["\\ud800:x"]}', b'{"query": 1e400}', b"NaN", b"\xff\xfe"]),
)
CREDENTIALS = st.sampled_from(["admin", "user", "outside_worker", "harvester", "", "nonsense"])
HEADERS = st.sampled_from(
    ["", "Bearer x", "Digest", 'Digest username="a"', "Digest " + "x=1," * 500, "Basic YTpi", "é"]
)


@pytest.fixture(scope="module")
def fuzzed(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    import shutil

    folder = tmp_path_factory.mktemp("fuzzed")
    shutil.copy(sqlite_template, folder / "pilotage.db")
    site = dressed(lambda config: Site(f"sqlite:///{folder}/pilotage.db", config=config), folder)
    for _ in range(3):
        create(site, *(f"set.{number}" for number in range(10)), user="user", roles=["outside_worker"])
    return site


LIKELY: tuple[dict[str, str], ...] = (
    {},
    {"project_id": "1", "worker_id": "w"},
    {"project_id": "2", "with_files": "yes", "with_replicas": "yes"},
    {"handle_id": "1:fake:set.0", "worker_id": "w", "failed": "no"},
    {"name": "disk", "available": "no"},
    {"owner": "all", "state": "active"},
    {"method": "digest"},
)
QUERIES = st.builds(
    lambda likely, odd: {**likely, **odd},
    st.sampled_from(LIKELY),
    st.dictionaries(st.sampled_from(FIELDS), TEXTS, max_size=3),
)
"""What the client may have asked for, and something strange with it."""


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    route=st.sampled_from(FACE.routes),
    method=st.sampled_from(["", "", "", "", "GET", "POST", "PUT", "DELETE", "HEAD"]),
    query=QUERIES,
    body=BODIES,
    who=CREDENTIALS,
    header=HEADERS,
)
def test_whatever_is_sent_is_answered(
    fuzzed: Site, route: Any, method: str, query: dict[str, str], body: Optional[bytes], who: str, header: str
) -> None:
    headers = {"X-Authentication-Token": fuzzed.token(who) if who not in ("", "nonsense") else who} if who else {}
    headers |= {"Authorization": header.encode().decode("latin-1")} if header else {}
    text = "&".join(f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in query.items())
    answer = fuzzed.client.simulate_request(
        method or route.method, route.path, query_string=text, body=body, headers=headers
    )
    if route.path.endswith("/next_file") and (method or route.method) == "GET":
        assert answer.status_code in (200, 503)
        assert "mistake inside" not in answer.text
    assert answer.status_code < 500, (route.path, answer.text)
    assert "Traceback" not in answer.text and "mistake inside the server" not in answer.text


def test_a_waiting_worker_waits_less_long_than_its_client() -> None:
    assert 0 < WAIT_S < 60
