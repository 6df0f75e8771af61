"""What holds for every face: off by default, closed to strangers, bounded bodies, refusals in its client's words."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from falcon.testing import TestClient, create_environ

from common.problem import Problem
from server.api.application import create_application
from server.api.routes import ROUTES
from server.api.routing import Call, Raw, Role, Route, allow
from server.compat.bodies import Body, form_of, inflated, short_body
from server.compat.face import Face, as_json
from server.compat.faces import FACES, faces_of
from server.compat.settings import Compat
from server.config import ServerConfig
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid, TooLarge
from server.store.migrate import upgrade
from tests.integration.server.harness import Site

LIMIT = 1000
NAMED = ("user", "production", "admin", "harvester", "outside_worker", "foreign_pilot")


def echo(_: Dispatcher, call: Call) -> Raw:
    body = call.body
    assert isinstance(body, Body)
    return as_json(
        {"said": body.json_or_form(), "asked": dict(call.query), "tag": call.header("X-Tag")}, X_Answer="yes"
    )


def broken(_: Dispatcher, __: Call) -> Raw:
    raise ValueError("a mistake of ours")


ODD = Face(
    "odd",
    (
        Route("POST", "/odd/echo", allow(Role.FOREIGN_PILOT), echo, "Say it again"),
        Route("GET", "/odd/broken", allow(Role.ANYBODY), broken, "Break"),
    ),
    refused=lambda _, problem: as_json({"msg": str(problem), "was": problem.status}, 200),
    credential=lambda req: req.get_header("X-Token"),
    below=("/odd",),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(f"sqlite:///{tmp_path_factory.mktemp('faces') / 'pilotage.db'}")
    upgrade(made.database)
    made.client = TestClient(create_application(made.dispatcher, (), (ODD,)))
    yield made
    made.database.close()


def post(site: Site, body: bytes, token: str | None = None, **headers: str) -> Any:
    named = {"X-Token": token or site.token("foreign_pilot"), **headers}
    return site.client.simulate_post("/odd/echo", body=body, headers=named)


def test_a_client_is_answered_with_headers_of_its_own(site: Site) -> None:
    answer = site.client.simulate_post(
        "/odd/echo?left=1&unknown=2", body=b'{"a": 1}', headers={"X-Token": site.token("foreign_pilot"), "X-Tag": "t"}
    )
    assert answer.json == {"said": {"a": 1}, "asked": {"left": "1", "unknown": "2"}, "tag": "t"}
    assert answer.headers["X-Answer"] == "yes"


@pytest.mark.parametrize("body", [b'{"a": "1"}', b"a=1", gzip.compress(b'{"a": "1"}'), gzip.compress(b"a=1")])
def test_json_and_forms_are_understood_compressed_or_not(site: Site, body: bytes) -> None:
    assert post(site, body).json["said"] == {"a": "1"}


@pytest.mark.parametrize("body", [b"", b"  ", gzip.compress(b"")])
def test_nothing_says_nothing(site: Site, body: bytes) -> None:
    assert post(site, body).json["said"] == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (gzip.compress(b'{"a": 1}')[:-9], "breaks off"),
        (b"\x1f\x8b\x08\x00 nonsense", "gzip"),
        (b"{", "no JSON"),
        (b'{"a": "\xff"}', "no JSON"),
        (b"{" * 100_000, "no JSON"),
        ("ä".encode(), "neither JSON nor a form"),
        (b"a=%ff", "neither JSON nor a form"),
    ],
    ids=["cut", "damaged", "half", "latin", "deep", "umlaut", "odd"],
)
def test_a_body_that_cannot_be_read_is_refused_in_the_clients_words(site: Site, body: bytes, words: str) -> None:
    answer = post(site, body)
    assert answer.status_code == 200 and answer.json["was"] == 400 and words in answer.json["msg"]


@pytest.mark.parametrize(("token", "status"), [("nonsense", 401), (None, 401), ("user", 403)])
def test_strangers_are_refused_in_the_clients_words(site: Site, token: str | None, status: int) -> None:
    sent = {} if token is None else {"X-Token": site.token(token) if token == "user" else token}
    answer = site.client.simulate_post("/odd/echo", body=b"{}", headers=sent)
    assert answer.json["was"] == status and answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "was"),
    [("GET", "/odd/nothing", 404), ("GET", "/odd", 404), ("DELETE", "/odd/echo", 405), ("GET", "/odd/echo/", 404)],
)
def test_what_is_not_there_is_refused_in_the_clients_words(site: Site, method: str, path: str, was: int) -> None:
    answer = site.client.simulate_request(method, path)
    assert (answer.status_code, answer.json["was"]) == (200, was)


def test_what_is_not_a_faces_is_refused_in_our_words(site: Site) -> None:
    answer = site.client.simulate_get("/oddity")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_paths_below_a_face_are_those_of_its_routes() -> None:
    for face in FACES:
        assert not face.below or all(face.owns(route.path) for route in face.routes), face.name


@pytest.mark.parametrize("token", ["", "foreign_pilot"])
def test_all_of_a_refused_body_is_taken_so_that_its_sender_hears_why(site: Site, token: str) -> None:
    """``act`` found its connection broken, and its user a word about that, when a file was too large."""
    body = io.BytesIO(b"x" * (60 * 1024 * 1024))
    environ = create_environ("/odd/echo", method="POST", headers={"X-Token": site.token(token)} if token else {})
    environ |= {"wsgi.input": body, "CONTENT_LENGTH": str(len(body.getvalue()))}
    told: list[str] = []
    answer = b"".join(site.client.app(environ, lambda status, *_: told.append(status)))  # type: ignore[arg-type]
    assert told == ["200 OK"] and b'"was":' + (b"413" if token else b"401") in answer
    assert body.tell() == len(body.getvalue())


def test_a_mistake_of_ours_is_told_in_the_clients_words_without_a_traceback(site: Site) -> None:
    answer = site.client.simulate_get("/odd/broken")
    assert answer.json == {"msg": "A mistake inside the server; its log says more", "was": 500}


def test_a_small_body_cannot_become_a_large_one() -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    with pytest.raises(TooLarge, match="decompressed"):
        inflated(bomb, len(bomb) + LIMIT)
    assert inflated(gzip.compress(b"0" * LIMIT), LIMIT) == b"0" * LIMIT


@pytest.mark.parametrize("said", [11, 10**6])
def test_a_body_that_breaks_off_is_not_taken_for_a_whole_one(said: int) -> None:
    """The web server tells no connection that broke from a body that ended."""
    with pytest.raises(Invalid, match=f"10 of {said} bytes came"):
        Body(io.BytesIO(b'{"a": "b"}'), 2 * said, said).json()


class Endless:
    def __init__(self) -> None:
        self.taken = 0

    def read(self, size: int = -1) -> bytes:
        self.taken += size
        return b"x" * size


class Trickle(io.BytesIO):
    """Gives at most two bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(2, size or 0))


def test_no_more_is_read_than_is_allowed() -> None:
    stream = Endless()
    with pytest.raises(TooLarge):
        Body(stream, LIMIT).raw()  # type: ignore[arg-type]
    assert stream.taken < 1_000_000
    with pytest.raises(TooLarge):
        Body(stream, LIMIT, LIMIT + 1)  # type: ignore[arg-type]


def test_a_body_that_breaks_off_is_none() -> None:
    assert Body(io.BytesIO(b"abc"), LIMIT, 3).raw() == Body(io.BytesIO(b"abc"), LIMIT).raw() == b"abc"
    with pytest.raises(Invalid, match="breaks off: 3 of 4 bytes came"):
        Body(io.BytesIO(b"abc"), LIMIT, 4).raw()
    with pytest.raises(Invalid, match="breaks off: 3 of 4 bytes came"):
        short_body(Trickle(b"abc"), 4)


def test_a_short_body_that_comes_in_pieces_is_taken_whole_and_nothing_after_it() -> None:
    assert short_body(Trickle(b"abcd and more"), 4) == b"abcd"


def test_a_form_has_not_any_number_of_fields() -> None:
    with pytest.raises(Invalid):
        form_of(b"&".join(b"a%d=1" % number for number in range(1001)))


def test_every_face_is_off_until_it_is_turned_on() -> None:
    assert faces_of(ServerConfig().compat) == []
    for face in FACES:
        on = msgspec.convert({face.name: {"on": True}}, Compat)
        assert faces_of(on) == [face]


def test_no_two_routes_are_the_same() -> None:
    served = [(route.method, re.sub("{.*?}", "{}", route.path)) for route in ROUTES]
    served += [(route.method, re.sub("{.*?}", "{}", route.path)) for face in FACES for route in face.routes]
    assert len(served) == len(set(served))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(f"sqlite:///{tmp_path_factory.mktemp('everything') / 'pilotage.db'}")
    upgrade(made.database)
    made.client = TestClient(create_application(made.dispatcher, ROUTES, FACES))
    yield made
    made.database.close()


SERVED = [(face, route) for face in FACES for route in face.routes]


@pytest.mark.parametrize("credential", ["none", *NAMED])
@pytest.mark.parametrize(("face", "route"), SERVED, ids=[f"{route.method} {route.path}" for _, route in SERVED])
def test_a_route_of_a_face_is_open_to_whom_it_says_and_to_nobody_else(
    everything: Site, face: Face, route: Route, credential: str
) -> None:
    """What a refusal is, each client sees for itself: here it counts whether the handler was reached."""
    refusals: list[int] = []

    def refused(_: object, problem: Problem) -> Raw:
        refusals.append(problem.status)
        return as_json({})

    watched = Face(face.name, (route,), refused, face.credential)
    client = TestClient(create_application(everything.dispatcher, (), (watched,)))
    token = None if credential == "none" else everything.token(credential)
    sent = {} if token is None else {"Authorization": f"Bearer {token}", "X-Authentication-Token": token}
    path = re.sub(r"{(\w+)(:\w+)?}", lambda place: "1" if place[1].endswith("_id") else "x", route.path)
    client.simulate_request(route.method, path, headers=sent)
    allowed = Role.ANYBODY in route.access or (credential != "none" and Role(credential) in route.access)
    if allowed:
        assert not set(refusals) & {401, 403} and all(status < 500 for status in refusals)
    else:
        assert refusals == [401 if credential == "none" else 403]


class _Watched(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


def test_a_body_whose_length_was_said_is_not_asked_for_more() -> None:
    """Each read of the web server's stream hands the processor over to other threads."""
    stream = _Watched(b"abc")
    assert Body(stream, LIMIT, 3).raw() == b"abc"
    assert stream.reads == 1
