"""Downtimes, tagging rules, demand and shares on the command line: what they ask of the server, and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame
from common.cli.admin import admin
from common.cli.show import show
from common.cli.why import why

URL = "https://server.test"
QUEUE: dict[str, Any] = {"name": "Q", "site": "S", "downtimes": [{"start": 4e9, "end": 4.1e9, "reason": "later"}]}


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    token = tmp_path / "token"
    token.write_text("some-token\n")
    token.chmod(0o600)

    def command(group: click.Command, *words: str) -> Result:
        options = ["--server", URL, "--token-file", str(token)]
        return CliRunner().invoke(group, [*words, *options], obj=Frame(), standalone_mode=True)

    return command


def sent(server: responses.RequestsMock) -> Any:
    return json.loads(server.calls[-1].request.body or "null")


def test_a_downtime_is_added_beside_the_others(server: responses.RequestsMock, run: Any) -> None:
    server.get(f"{URL}/v1/queues", json={"items": [QUEUE]})
    server.put(f"{URL}/v1/queues/Q", json=QUEUE)
    words = ["downtime", "add", "queue", "Q", "--start", "2026-12-01T06:00Z", "--for", "12h", "--reason", "power"]
    result = run(admin, *words)
    assert result.exit_code == 0, result.output
    assert sent(server)["downtimes"] == [
        {"start": 1796104800.0, "end": 1796148000.0, "reason": "power"},
        QUEUE["downtimes"][0],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--start", "soon", "--for", "1h"], "2026-11-22T08:00Z"),
        (["--start", "2026-12-01"], "--end TIME or --for"),
        (["--start", "2026-12-02", "--end", "2026-12-01"], "ends before it begins"),
    ],
)
def test_a_downtime_that_cannot_be_is_refused(run: Any, words: list[str], said: str) -> None:
    result = run(admin, "downtime", "add", "queue", "Q", *words)
    assert result.exit_code == 2 and said in result.output


def test_a_downtime_is_removed_by_its_number(server: responses.RequestsMock, run: Any) -> None:
    server.get(f"{URL}/v1/queues", json={"items": [QUEUE]})
    server.put(f"{URL}/v1/queues/Q", json={"name": "Q", "site": "S"})
    assert run(admin, "downtime", "remove", "queue", "Q", "1").exit_code == 0
    assert "downtimes" not in sent(server)
    assert run(admin, "downtime", "remove", "queue", "Q", "2").exit_code == 1


def test_downtimes_are_listed(server: responses.RequestsMock, run: Any) -> None:
    server.get(f"{URL}/v1/queues", json={"items": [QUEUE]})
    result = run(admin, "downtime", "list", "queue")
    assert "later" in result.output and result.exit_code == 0


def test_a_tagging_rule_is_made_of_options(server: responses.RequestsMock, run: Any) -> None:
    rule: dict[str, Any] = {
        "name": "r",
        "when": {"owner": "^a", "labels": {"k": "v"}},
        "set": {"share": "mc", "labels": {"x": "y"}},
    }
    server.get(f"{URL}/v1/tagging-rules", json={"items": []})
    server.put(f"{URL}/v1/tagging-rules/r", json=rule)
    words = ["--owner", "^a", "--if-label", "k=v", "--share", "mc", "--label", "x=y"]
    result = run(admin, "tagging-rule", "set", "r", *words)
    assert result.exit_code == 0, result.output
    assert sent(server) == rule
    server.get(f"{URL}/v1/tagging-rules", json={"items": [rule]})
    assert run(admin, "tagging-rule", "set", "r", "--priority", "5").exit_code == 0
    assert sent(server)["set"] in ({"priority": 5}, {**rule["set"], "priority": 5})


def test_demand_and_shares_are_shown(server: responses.RequestsMock, run: Any) -> None:
    line = {"shape": {"cores": 4}, "pilots": 7, "ready_jobs": 5, "running_jobs": 2}
    part = {
        "task_id": 1, "tasks": 2, "buckets": 3, "queues": 4, "distance": 5, "weight": 1.0, "weights": 4.0,
        "ready_jobs": 20, "jobs": 5,
    }  # fmt: skip
    refused = {"filter": "tags", "detail": "lacks el9", "task_id": 9, "tasks": 1, "buckets": 1, "units": 3}
    reply = {"queue": {"name": "Q", "site": "S"}, "shapes": [line], "parts": [part], "refused": [refused]}
    server.get(f"{URL}/v1/queues/Q/demand", json=reply)
    for command in (["demand", "Q", "--explain"],):
        result = run(show, *command)
        assert result.exit_code == 0, result.output
        assert "5 of 20" in result.output and "lacks el9" in result.output
    assert "explain=true" in str(server.calls[-1].request.url)
    assert "5 of 20" in run(why, "--queue", "Q", "--demand").output
    server.get(f"{URL}/v1/share-tree", json={"items": [{"name": "a", "target": 0.75, "used": 0.5, "cores": 3}]})
    result = run(show, "shares")
    assert "75.0%" in result.output and "50.0%" in result.output


def test_why_asks_for_one_thing(server: responses.RequestsMock, run: Any) -> None:
    server.get(f"{URL}/v1/pilots/7/why", json={"queue": "Q", "offer": {}, "note": "offered last"})
    assert "offered last" in run(why, "--pilot", "7").output
    for words in (["--pilot", "7", "--task", "1"], ["--pilot", "7", "--cores", "2"], ["--task", "1", "--demand"]):
        assert run(why, *words).exit_code == 2
