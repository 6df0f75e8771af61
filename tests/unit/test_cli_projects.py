"""``pilotage project``: what it asks of the server, and how it tells the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame, projects
from common.cli.main import main
from common.states import UnitState
from common.wire.projects import (
    ProjectFileView,
    ProjectState,
    ProjectView,
    ReleasedFile,
    ReleaseReply,
    ReserveReply,
)

URL = "http://server.test"
VIEW = ProjectView(id=7, name="p", owner="u", state=ProjectState.ACTIVE, created=1.0, active=1.0)
FILE = ProjectFileView(id=1, did="data:a", state=UnitState.RESERVED)


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    options = ["--server", URL, "--token-file", str(token)]
    return lambda *words: CliRunner().invoke(main, [*words, *options], obj=Frame(config_file=None))


def answer(server: responses.RequestsMock, path: str, *replies: Any) -> None:
    for reply in replies:
        server.add("POST", URL + path, body=msgspec.json.encode(reply), content_type="application/json")


def sent(server: responses.RequestsMock, number: int = 0) -> Any:
    return msgspec.json.decode(server.calls[number].request.body or b"")


def test_create_from_lists_in_slices(
    server: responses.RequestsMock, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projects, "SLICE", 2)
    (tmp_path / "list.txt").write_text("data:a\ndata:b # a comment\n\ndata:c\n")
    answer(server, "/v1/projects", VIEW)
    answer(server, "/v1/projects/7/files", VIEW)
    answer(server, "/v1/projects/7/files:close", VIEW)
    words = ("-A", "step=reco version=3", "-w", "90m", "-t", "none", "-u", "a,b", "--fail-on-timeout")
    result = run("project", "create", "-l", "list.txt", "--virtual", *words)
    assert result.exit_code == 0, result.output
    made = sent(server)
    assert [each["did"] for each in made["files"]] == ["data:a", "data:b"]
    assert (made["open"], made["virtual"], made["retry_on_timeout"]) == (True, True, False)
    assert (made["worker_timeout_s"], made["idle_timeout_s"]) == (5400.0, None)
    assert (made["attributes"], made["users"]) == ({"step": "reco", "version": 3}, ["a", "b"])
    assert [each["did"] for each in sent(server, 1)["files"]] == ["data:c"]


def test_create_takes_lists_as_data_dispatcher_writes_them(
    server: responses.RequestsMock, run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "list.json").write_text('["ns:a", {"namespace": "ns", "name": "b", "attributes": {"pi": 3.14}}]')
    answer(server, "/v1/projects", VIEW)
    assert run("project", "create", "-l", "list.json", "--virtual").exit_code == 0
    assert sent(server)["files"] == [{"did": "ns:a"}, {"did": "ns:b", "attributes": {"pi": 3.14}}]
    assert "worker_timeout_s" not in sent(server)


def test_a_list_that_is_none_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"x": 1}]')
    result = run("project", "create", "-l", "list.json")
    assert result.exit_code != 0
    assert "no list of files" in result.output


def test_next_prints_the_file_and_repeats_its_request(
    server: responses.RequestsMock, run: Callable[..., Result]
) -> None:
    assert CliRunner().invoke(projects.worker, ["me"]).output == "me\n"
    answer(server, "/v1/projects/7/files:reserve", ReserveReply(), ReserveReply([FILE]))
    result = run("project", "next", "7", "-c", "here")
    assert (result.exit_code, result.output) == (0, "data:a\n")
    assert sent(server)["request_id"] == sent(server, 1)["request_id"]
    assert (sent(server)["worker"], sent(server)["cpu_site"]) == ("me", "here")


@pytest.mark.parametrize("state", ["timeout", "done", "cancelled"])
def test_next_says_why_there_is_none(server: responses.RequestsMock, run: Callable[..., Result], state: str) -> None:
    found = ProjectState.ACTIVE if state == "timeout" else ProjectState(state)
    answer(server, "/v1/projects/7/files:reserve", ReserveReply(state=found))
    result = run("project", "next", "7", "--worker", "w", "-t", "0")
    assert (result.exit_code, result.output) == (1, f"{state}\n")


def test_a_worker_must_be_named(run: Callable[..., Result]) -> None:
    result = run("project", "next", "7")
    assert result.exit_code == 2
    assert "--worker" in result.output


def test_a_release_that_is_not_accepted_is_an_error(server: responses.RequestsMock, run: Callable[..., Result]) -> None:
    reply = ReleaseReply([ReleasedFile("data:a", False, UnitState.READY, "the worker held it for too long")])
    answer(server, "/v1/projects/7/files:release", reply)
    result = run("project", "failed", "7", "data:a", "--worker", "w", "-f")
    assert result.exit_code == 1
    assert "held it for too long" in result.output
    assert sent(server)["files"] == [{"did": "data:a", "outcome": "failed", "retry": False}]


def test_restart_names_states(server: responses.RequestsMock, run: Callable[..., Result]) -> None:
    answer(server, "/v1/projects/7:restart", VIEW)
    assert run("project", "restart", "7", "-f", "-r").exit_code == 0
    assert sent(server)["states"] == ["failed", "reserved"]
