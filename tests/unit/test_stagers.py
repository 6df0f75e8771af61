"""The stager for tape systems that speak the WLCG Tape REST API, against a small server that speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from server.stagers.base import Recall, Recalled, StagerError
from server.stagers.wlcg import STATES, WlcgOptions, WlcgTapeStager


class TapeServer:
    """Version 1 of the API: bulk stage requests by id, their progress, cancel and release."""

    def __init__(self) -> None:
        self.requests: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.tokens: list[str | None] = []
        self.down = False

    def answer(self, method: str, path: str, body: Any, token: str | None) -> tuple[int, Any]:
        self.calls.append((method, path, body))
        self.tokens.append(token)
        if self.down:
            return 500, {"title": "the library is being moved"}
        parts = path.removeprefix("/api/v1/").split("/")
        if (method, parts) == ("POST", ["stage"]):
            name = f"request {len(self.requests) + 1}"
            self.requests[name] = body["files"]
            return 201, {"requestId": name}
        name = parts[1].replace("%20", " ")
        if name not in self.requests:
            return 404, {"title": "Not found"}
        if method == "GET":
            files = [{"path": each["path"], **self.files.get(each["path"], {})} for each in self.requests[name]]
            return 200, {"id": name, "createdAt": 1, "startedAt": 2, "files": files}
        return 200, None


@pytest.fixture
def tape() -> Iterator[tuple[TapeServer, str]]:
    system = TapeServer()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, reply = system.answer(self.command, self.path, body, self.headers.get("Authorization"))
            data = b"" if reply is None else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield system, f"http://127.0.0.1:{server.server_port}/api/v1"
    server.shutdown()
    server.server_close()


def stager(url: str, **more: Any) -> WlcgTapeStager:
    return WlcgTapeStager(WlcgOptions(url, prefix="/eos/tape", disk_lifetime_s=3600, **more))


def test_the_whole_life_of_a_recall(tape: tuple[TapeServer, str]) -> None:
    system, url = tape
    mine = stager(url)
    name = mine.request(["d/a", "/d/b", "d/c"])
    assert system.requests[name] == [
        {"path": f"/eos/tape/d/{each}", "diskLifetime": "PT3600S"} for each in ("a", "b", "c")
    ]
    system.files["/eos/tape/d/a"] = {"state": "SUBMITTED"}
    system.files["/eos/tape/d/b"] = {"onDisk": False}
    assert mine.poll(name, ["d/a", "/d/b", "d/c"]) == dict.fromkeys(["d/a", "/d/b", "d/c"], Recalled(Recall.WAITING))
    system.files["/eos/tape/d/a"] = {"state": "COMPLETED", "finishedAt": 5}
    system.files["/eos/tape/d/b"] = {"onDisk": True}
    system.files["/eos/tape/d/c"] = {"error": "tape V00123 is disabled"}
    told = mine.poll(name, ["d/a", "/d/b", "d/c"])
    assert told == {
        "d/a": Recalled(Recall.ONLINE),
        "/d/b": Recalled(Recall.ONLINE),
        "d/c": Recalled(Recall.FAILED, "tape V00123 is disabled"),
    }
    mine.release(name, ["d/a"])
    assert system.calls[-2:] == [
        ("POST", "/api/v1/stage/request%201/cancel", {"paths": ["/eos/tape/d/a"]}),
        ("POST", "/api/v1/release/request%201", {"paths": ["/eos/tape/d/a"]}),
    ]


@pytest.mark.parametrize(("word", "state"), STATES.items())
def test_every_state_of_the_api_has_its_meaning(tape: tuple[TapeServer, str], word: str, state: Recall) -> None:
    system, url = tape
    mine = stager(url)
    name = mine.request(["a"])
    system.files["/eos/tape/a"] = {"state": word}
    assert mine.poll(name, ["a"])["a"].state is state


def test_a_state_that_nobody_knows_changes_nothing(tape: tuple[TapeServer, str]) -> None:
    system, url = tape
    mine = stager(url)
    name = mine.request(["a"])
    system.files["/eos/tape/a"] = {"state": "PONDERING"}
    assert mine.poll(name, ["a"])["a"].state is Recall.WAITING


def test_what_was_evicted_again_has_failed(tape: tuple[TapeServer, str]) -> None:
    system, url = tape
    mine = stager(url)
    name = mine.request(["a"])
    system.files["/eos/tape/a"] = {"state": "COMPLETED", "onDisk": False}
    assert mine.poll(name, ["a"])["a"].state is Recall.FAILED


def test_a_request_that_was_forgotten_has_failed_and_can_be_let_go(tape: tuple[TapeServer, str]) -> None:
    _, url = tape
    mine = stager(url)
    told = mine.poll("gone", ["a"])
    assert told["a"].state is Recall.FAILED and "has forgotten request gone" in told["a"].reason
    mine.release("gone", ["a"])


def test_a_system_that_is_down_says_nothing_of_any_file(tape: tuple[TapeServer, str]) -> None:
    system, url = tape
    mine = stager(url)
    name = mine.request(["a"])
    system.down = True
    for call in (lambda: mine.request(["b"]), lambda: mine.poll(name, ["a"]), lambda: mine.release(name, ["a"])):
        with pytest.raises(StagerError):
            call()
    assert len(system.requests) == 1


def test_a_request_is_made_once_only(tape: tuple[TapeServer, str]) -> None:
    system, url = tape
    system.down = True
    with pytest.raises(StagerError):
        stager(url).request(["a"])
    assert len(system.calls) == 1


def test_the_token_is_read_at_each_call(tape: tuple[TapeServer, str], tmp_path: Path) -> None:
    system, url = tape
    path = tmp_path / "token"
    mine = stager(url, token_file=str(path))
    for token in ("first", "second"):
        path.write_text(token)
        path.chmod(0o600)
        mine.request(["a"])
    assert system.tokens == ["Bearer first", "Bearer second"]
    path.chmod(0o644)
    with pytest.raises(StagerError, match="token"):
        mine.request(["a"])
