"""``pilotage admin retry-rule`` and ``blocked-host``: what they ask of the server, and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli.admin import admin
from common.cli.main import Frame

URL = "https://server.test"
RULE = {
    "name": "oom",
    "action": {"kind": "more_memory", "cap_mb": 4096, "factor": 2.0},
    "when": {"error_codes": ["1212"], "labels": {"a": "b"}},
    "description": "more",
}


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

    def invoke(*arguments: str) -> Result:
        command: click.Command = admin
        options = ["--server", URL, "--token-file", str(token)]
        return CliRunner().invoke(command, [*arguments, *options], obj=Frame(config_file=None))

    return invoke


def reply(server: responses.RequestsMock, method: str, path: str, body: Any) -> None:
    server.add(method, f"{URL}{path}", body=msgspec.json.encode(body), content_type="application/json")


def sent(server: responses.RequestsMock) -> Any:
    return json.loads(server.calls[-1].request.body or "null")


def with_rules(server: responses.RequestsMock, *rules: dict[str, Any]) -> None:
    reply(server, "GET", "/v1/retry-rules", {"items": list(rules)})


def test_a_rule_is_made_from_options(server: responses.RequestsMock, run: Any) -> None:
    with_rules(server)
    reply(server, "PUT", "/v1/retry-rules/oom", RULE)
    result = run(
        "retry-rule", "set", "oom", "--source", "payload", "--code", "1212", "--code", "1230..1240", "--message", "x|y",
        "--label", "a=b=c", "--site", "s", "--action", "more_memory", "--factor", "1.5", "--memory-cap", "4GiB",
        "--passive",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sent(server) == {
        "name": "oom",
        "active": False,
        "action": {"kind": "more_memory", "factor": 1.5, "cap_mb": 4096},
        "when": {
            "sources": ["payload"],
            "error_codes": ["1212", "1230..1240"],
            "message": "x|y",
            "labels": {"a": "b=c"},
            "sites": ["s"],
        },
    }
    assert "error codes 1212 and labels a=b" in result.output and "more_memory" in result.output


def test_options_change_only_what_they_name(server: responses.RequestsMock, run: Any) -> None:
    with_rules(server, RULE)
    reply(server, "PUT", "/v1/retry-rules/oom", RULE)
    assert run("retry-rule", "set", "oom", "--factor", "3", "--position", "7").exit_code == 0
    action = {"kind": "more_memory", "cap_mb": 4096, "factor": 3.0}
    assert sent(server) == {**RULE, "action": action, "position": 7}


def test_another_action_begins_anew(server: responses.RequestsMock, run: Any) -> None:
    with_rules(server, RULE)
    reply(server, "PUT", "/v1/retry-rules/oom", RULE)
    assert run("retry-rule", "set", "oom", "--action", "limit_retry", "--limit", "2").exit_code == 0
    assert sent(server)["action"] == {"kind": "limit_retry", "limit": 2}


def test_a_file_replaces_the_whole_rule(server: responses.RequestsMock, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('position = 3\n[action]\nkind = "no_retry"\n[when]\nmessage = "a"\n')
    reply(server, "PUT", "/v1/retry-rules/oom", RULE)
    result = run("retry-rule", "set", "oom", "--file", str(file))
    assert result.exit_code == 0, result.output
    assert sent(server) == {"name": "oom", "position": 3, "action": {"kind": "no_retry"}, "when": {"message": "a"}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--action", "more_memory", "--factor", "2"], "action.cap_mb: this field is required"),
        (["--limit", "2"], "action"),
        (["--action", "no_retry", "--label", "x"], "write KEY=VALUE"),
        (["--action", "no_retry", "--source", "weather"], "'weather' is not one of"),
        (["--action", "more_memory", "--memory-cap", "4096"], "has no unit"),
        (["--action", "no_retry", "--limit", "2"], "limit"),
    ],
)
def test_what_cannot_be_is_told_before_the_server_is_asked_to_write(run: Any, arguments: list[str], words: str) -> None:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as server:
        with_rules(server)
        result = run("retry-rule", "set", "r", *arguments)
        assert result.exit_code == 2 and words in result.output, result.output
        assert all(call.request.method == "GET" for call in server.calls)


def test_rules_are_listed_shown_and_deleted(server: responses.RequestsMock, run: Any) -> None:
    with_rules(server, RULE, {**RULE, "name": "all", "when": {}, "active": False})
    listed = run("retry-rule", "list").output
    assert "every failure" in listed and "more_memory cap mb 4096 factor 2.0" in listed.replace("_mb", " mb")
    assert json.loads(run("retry-rule", "list", "--json").output)[0]["when"]["error_codes"] == ["1212"]
    assert "no: it only leaves events" in run("retry-rule", "show", "all").output
    assert "there is no retry rule 'x'" in run("retry-rule", "show", "x").output
    server.add("DELETE", f"{URL}/v1/retry-rules/oom", status=204)
    assert "oom is deleted" in run("retry-rule", "delete", "oom").output


def test_blocked_hosts_are_listed_and_freed(server: responses.RequestsMock, run: Any) -> None:
    host = {"queue": "q", "host": "node1.x", "until": 1.7e9, "blocks": 2, "error_code": 1098}
    reply(server, "GET", "/v1/blocked-hosts", {"items": [host]})
    assert "1098 NO_LOCAL_SPACE" in run("blocked-host", "list").output
    assert json.loads(run("blocked-host", "list", "--json").output)[0]["blocks"] == 2
    server.add("DELETE", f"{URL}/v1/blocked-hosts/q/node1.x", status=204)
    assert "gets work again" in run("blocked-host", "unblock", "q", "node1.x").output


def test_a_queue_is_told_to_be_patient(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/queues", {"items": [{"name": "q", "site": "s"}]})
    reply(server, "PUT", "/v1/queues/q", {"name": "q", "site": "s"})
    assert run("queue", "set", "q", "--heartbeat-timeout", "12h", "--no-reassign").exit_code == 0
    assert sent(server) == {"name": "q", "site": "s", "heartbeat_timeout_s": 43200, "no_reassign": True}
