"""``pilotage events`` and ``pilotage agents``, against answers of a server that is not there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame
from common.cli.agents import agents
from common.cli.events import events
from common.http import ProblemError, Unreachable
from common.problem import Problem
from common.wire import AgentList, AgentView, EventPage, EventView

URL = "http://server.test"


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))

    def invoke(command: click.Command, *arguments: str) -> Result:
        return CliRunner().invoke(command, [*arguments, "--server", URL], obj=Frame(config_file=None))

    return invoke


def reply(server: responses.RequestsMock, method: str, path: str, body: object, status: int = 200) -> None:
    kind = "application/json" if status < 400 else "application/problem+json"
    server.add(method, URL + path, body=msgspec.json.encode(body), status=status, content_type=kind)


def asked(server: responses.RequestsMock, index: int = -1) -> dict[str, str]:
    return {name: value[0] for name, value in parse_qs(urlsplit(str(server.calls[index].request.url)).query).items()}


def event(number: int) -> EventView:
    return EventView(number, 1.7e9, "JOB_FAILED", "job", str(number), source="running", target="failed")


def test_the_newest_events_with_all_filters(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/events", EventPage("5.9", [event(3), event(4)]))
    result = run(
        events, "--task", "7", "--kind", "job_failed", "--kind", "JOB_LOST", "--since", "2h", "--until", "2030-01-01",
        "--subject", "job", "--limit", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "JOB_FAILED" in result.output
    query = asked(server)
    assert float(query.pop("since")) == pytest.approx(time.time() - 7200, abs=60)
    assert float(query.pop("until")) == datetime(2030, 1, 1).timestamp()
    assert query == {"task": "7", "kind": "JOB_FAILED,JOB_LOST", "subject": "job", "newest": "true", "limit": "2"}


@pytest.mark.parametrize("arguments", [["--kind", "JOB_LOSED"], ["--since", "soon"], ["--limit", "1001"]])
def test_what_makes_no_sense_is_refused_before_the_server_is_asked(
    server: responses.RequestsMock, run: Any, arguments: list[str]
) -> None:
    assert run(events, *arguments).exit_code == 2
    assert len(server.calls) == 0


def test_following_goes_on_from_each_cursor_through_an_outage(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.cli.events.RETRY_S", 0.0)
    answers: list[EventPage | BaseException] = [
        EventPage("5.1", [event(1)]),
        EventPage("5.2", [event(2)]),
        Unreachable("down"),
        ProblemError(503, Problem("restarting", 503)),
        EventPage("5.3", [event(3)]),
        EventPage("5.9"),
        KeyboardInterrupt(),
    ]
    cursors: list[object] = []

    def call(_client: object, _method: str, _path: str, _body: object, _type: object, *, params: Any) -> EventPage:
        cursors.append(params.get("after"))
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr("common.http.HttpClient.call", call)
    result = run(events, "--follow", "--json")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines() if line] == [1, 2, 3]
    assert (result.exit_code, result.stderr.count("asking again")) == (0, 2)
    assert cursors == [None, "5.1", "5.2", "5.2", "5.2", "5.3", "5.9"]


def test_a_refusal_ends_following(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/events", EventPage("5.1"))
    reply(server, "GET", "/v1/events", {"title": "no", "status": 403, "type": "pilotage:forbidden"}, 403)
    assert run(events, "--follow").exit_code != 0


def test_agents_are_listed_with_how_they_do(server: responses.RequestsMock, run: Any) -> None:
    found = AgentList(
        [
            AgentView("a", True, 0.5, started=1.7e9, seconds=0.01, runs=5),
            AgentView("b", False, 60.0),
            AgentView("c", True, 1.0, error="RuntimeError: boom"),
            AgentView("d", True, 1.0, late_s=400.0),
            AgentView("e", True, 1.0, seconds=3.0, overrun=True),
        ]
    )
    reply(server, "GET", "/v1/agents", found)
    lines = run(agents, "list").output.splitlines()
    for name, words in (
        ("a", "well"),
        ("b", "off"),
        ("c", "failing: RuntimeError: boom"),
        ("d", "late by"),
        ("e", "slow"),
    ):
        assert any(line.split()[:1] == [name] and words in line for line in lines), (name, words, lines)
    assert len(json.loads(run(agents, "list", "--json").output)) == 5


@pytest.mark.parametrize(("word", "enabled"), [("on", True), ("off", False)])
def test_agents_are_switched(server: responses.RequestsMock, run: Any, word: str, enabled: bool) -> None:
    reply(server, "PUT", "/v1/agents/publish-events", AgentView("publish-events", enabled, 2.0))
    result = run(agents, word, "publish-events")
    assert f"agent publish-events is {word}" in result.output
    assert json.loads(server.calls[-1].request.body or b"") == {"enabled": enabled}
