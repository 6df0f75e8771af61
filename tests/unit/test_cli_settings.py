"""``pilotage admin setting`` and ``revoke``: what is refused before the server is asked, and what the shell completes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jwt
import msgspec
import pytest
import responses
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from common.cli import Frame
from common.cli.admin import admin
from common.cli.demand import demand
from common.cli.revoke import revoke
from common.cli.settings import is_duration
from common.tokens import write_secret_file
from server.config import Knobs

URL = "https://server.test"
VALUES = {"heartbeat_s": 60.0, "site_failures": 20, "user_priority": False, "isolation": "off", "production_shares": []}
OPENAPI = {
    "components": {
        "schemas": {
            "Knobs": {
                "properties": {
                    "heartbeat_s": {"type": "number", "default": 60.0},
                    "site_failures": {"type": "integer", "default": 30},
                    "isolation": {"$ref": "#/components/schemas/Isolation", "default": "off"},
                }
            },
            "Isolation": {"enum": ["group", "off"]},
        }
    }
}


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.get(f"{URL}/v1/settings", json=VALUES)
        mock.get(f"{URL}/v1/openapi.json", json=OPENAPI)
        yield mock


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    write_secret_file(tmp_path / "token", "some-token")
    return str(tmp_path / "token")


@pytest.fixture
def run(token: str) -> Any:
    def invoke(group: click.Command, *words: str) -> Result:
        return CliRunner().invoke(group, [*words, "--server", URL, "--token-file", token], obj=Frame())

    return invoke


def completed(command: click.Command, token: str, *words: str, address: str = URL) -> list[str]:
    """What the shell offers for the last word."""
    options = ["--server", address, "--token-file", token]
    shell = ShellComplete(command, {}, "pilotage", "_PILOTAGE_COMPLETE")
    before = [*words[:-1]]
    return [each.value for each in shell.get_completions([*before[:2], *options, *before[2:]], words[-1])]


def test_settings_that_are_times_are_told_from_rates() -> None:
    """A rate such as kB/s ends like a time; a new one must be told apart too."""
    times = {each for each in Knobs.__struct_fields__ if each.endswith("_s")}
    assert {each for each in times if not is_duration(each)} == {
        "idle_requests_per_s",
        "scout_disk_io_cap_kb_s",
        "scout_leak_kb_s",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("heartbeat_s", "soon"), "heartbeat_s: 'soon': write seconds, or numbers with units"),
        (("heartbeat_s", "-1"), "heartbeat_s: '-1': write seconds"),
        (("site_failures", "many"), "site_failures: 'many': write a whole number"),
        (("site_failures", "1.5"), "site_failures: '1.5': write a whole number"),
        (("site_failures", "inf"), "site_failures: 'inf': write a number"),
        (("user_priority", "3"), "user_priority: '3': write true or false"),
        (("isolation", "all"), "isolation: 'all': write group or off"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_remedy(
    server: responses.RequestsMock, run: Any, words: tuple[str, ...], said: str
) -> None:
    result = run(admin, "setting", "set", *words)
    assert result.exit_code == 2 and said in result.output
    assert all(call.request.method == "GET" for call in server.calls)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("hartbeat", "did you mean heartbeat_s?"),
        ("failures", "did you mean site_failures?"),
        ("zzz", "there is no setting 'zzz'; pilotage admin setting list shows all"),
    ],
)
def test_an_unknown_setting_is_answered_with_near_ones(
    server: responses.RequestsMock, run: Any, key: str, said: str
) -> None:
    for words in (("show", key), ("set", key, "1")):
        result = run(admin, "setting", *words)
        assert result.exit_code == 1 and said in result.output


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("heartbeat_s", "1h30m"), 5400.0),
        (("heartbeat_s", "90"), 90.0),
        (("site_failures", "1e2"), 100),
        (("user_priority", "On"), True),
        (("isolation", "group"), "group"),
        (("production_shares", "mc, data"), ["mc", "data"]),
        (("production_shares", ""), []),
    ],
)
def test_a_value_is_sent_in_the_type_of_its_setting(
    server: responses.RequestsMock, run: Any, words: tuple[str, str], value: object
) -> None:
    server.put(f"{URL}/v1/settings/{words[0]}", json={**VALUES, words[0]: value})
    result = run(admin, "setting", "set", *words)
    assert result.exit_code == 0, result.output
    sent = msgspec.json.decode(server.calls[-1].request.body or b"null")
    assert sent == {"value": value} and type(sent["value"]) is type(value)


def test_a_server_that_describes_no_settings_is_still_read(run: Any) -> None:
    with responses.RequestsMock() as mock:
        mock.get(f"{URL}/v1/settings", json=VALUES)
        mock.get(f"{URL}/v1/openapi.json", json={"components": {}})
        assert "heartbeat_s" in run(admin, "setting", "list").output


def test_the_shell_completes_names(server: responses.RequestsMock, token: str) -> None:
    assert completed(admin, token, "setting", "show", "heart") == ["heartbeat_s"]
    assert completed(admin, token, "setting", "set", "s") == ["site_failures"]
    assert completed(admin, token, "setting", "set", "isolation", "") == ["group", "off"]
    assert completed(admin, token, "setting", "set", "heartbeat_s", "") == []
    assert completed(revoke, token, "p") == ["person", "pilot"]
    server.get(f"{URL}/v1/queues", json={"items": [{"name": "Q2", "site": "S"}, {"name": "A", "site": "S"}]})
    assert completed(demand, token, "Q") == ["Q2"]


def test_a_server_that_does_not_answer_spoils_no_line(token: str) -> None:
    with responses.RequestsMock() as mock:
        mock.get(f"{URL}/v1/settings", status=503)
        assert completed(admin, token, "setting", "show", "heart") == []
    assert completed(admin, token, "setting", "show", "heart", address="nonsense") == []
    assert completed(admin, token + ".none", "setting", "show", "heart") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("token", "--reason", "x"), "say which: give the token's id, or --from FILE"),
        (("token", "a", "--from", "f", "--reason", "x"), "say which: give the token's id, or --from FILE"),
        (("token", "abc"), "Missing option '--reason'"),
        (("token", "eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "--reason", "x"), "that is a token, not its id"),
        (("token", "plp_abc", "--reason", "x"), "that is a token, not its id"),
        (("pilot", "first", "--reason", "x"), "'first' is not a valid integer"),
    ],
)
def test_what_cannot_be_revoked_is_told(run: Any, words: tuple[str, ...], said: str) -> None:
    with responses.RequestsMock():  # no call is made
        result = run(revoke, *words)
    assert result.exit_code == 2 and said in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "it holds no token that has an id"),
        ("plp_abc", "pilotage revoke pilot NUMBER"),
        ("plr_abc", "pilotage revoke person NAME"),
        (jwt.encode({"sub": "alice"}, b"k" * 32), "the token has no id (claim jti)"),
    ],
)
def test_a_file_without_an_id_is_told(run: Any, tmp_path: Path, text: str, said: str) -> None:
    write_secret_file(tmp_path / "leaked", text)
    with responses.RequestsMock():
        result = run(revoke, "token", "--from", str(tmp_path / "leaked"), "--reason", "x")
    assert result.exit_code == 1 and said in result.output and text not in result.output


def test_the_id_is_taken_out_of_the_token_in_a_file(run: Any, tmp_path: Path) -> None:
    """Who leaked it may have had it from another issuer, and it may be over: only its id counts."""
    leaked = jwt.encode({"sub": "alice", "jti": "id-1", "exp": 1}, b"k" * 32)
    write_secret_file(tmp_path / "leaked", leaked)
    view = {"kind": "token", "value": "id-1", "reason": "x", "author": "root", "time": 1.7e9, "expires": 1.8e9}
    with responses.RequestsMock() as mock:
        mock.post(f"{URL}/v1/revocations", json=view)
        result = run(revoke, "token", "--from", str(tmp_path / "leaked"), "--reason", "x")
        assert msgspec.json.decode(mock.calls[0].request.body or b"") == {
            "kind": "token",
            "value": "id-1",
            "reason": "x",
        }
    assert result.output == "token id-1 is refused\n"


def test_a_queue_that_is_not_there_is_told_with_the_remedy(server: responses.RequestsMock, run: Any) -> None:
    problem = {"type": "about:blank", "title": "There is no such thing", "status": 404, "detail": "no queue"}
    server.get(f"{URL}/v1/queues/Q/demand", json=problem, status=404, content_type="application/problem+json")
    result = run(demand, "Q")
    assert result.exit_code == 1
    assert "there is no queue 'Q'; pilotage admin queue list shows all" in result.output
