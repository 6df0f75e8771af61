"""``pilotage admin setting``, ``revoke`` and ``show demand`` against a server that listens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from click.testing import CliRunner, Result

from common.cli.main import main
from common.tokens import write_secret_file
from common.wire import Whoami
from tests.integration.server.harness import Refused, Site


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@dataclass
class Admin:
    """An admin's command line."""

    site: Site
    folder: Path
    environ: dict[str, str]

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(main, list(words), env=self.environ)

    def done(self, *words: str) -> str:
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.output

    def token(self, subject: str, *roles: str) -> tuple[str, Path]:
        """A token of somebody, also in a file."""
        minted = self.site.issuer.mint(subject, roles, 3600.0)
        file = self.folder / f"{subject}.token"
        write_secret_file(file, minted)
        return minted, file


@pytest.fixture
def admin(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    server = make_server("127.0.0.1", 0, site.client.app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "PILOTAGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    made = Admin(site, tmp_path, {})
    made.environ = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PILOTAGE_CLIENT_SERVER_URL": f"http://127.0.0.1:{server.server_port}",
        "PILOTAGE_TOKEN_FILE": str(made.token("root", "admin", "user")[1]),
    }
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_settings_are_listed_with_their_defaults_and_turned(admin: Admin) -> None:
    assert "nothing found" in admin.done("admin", "setting", "list", "--changed")
    assert admin.done("admin", "setting", "set", "heartbeat_s", "5m") == "heartbeat_s is 5m, was 1m\n"
    assert admin.done("admin", "setting", "set", "heartbeat_s", "300") == "heartbeat_s stays 5m\n"
    admin.done("admin", "setting", "set", "production_shares", "mc,data")
    every = json.loads(admin.done("admin", "setting", "list", "--json"))
    assert {"key": "sweep_after_s", "value": 3600.0, "default": 3600.0, "choices": []} in every
    changed = json.loads(admin.done("admin", "setting", "list", "--changed", "--json"))
    assert [(each["key"], each["value"], each["default"]) for each in changed] == [
        ("heartbeat_s", 300.0, 60.0),
        ("production_shares", ["mc", "data"], []),
    ]
    shown = json.loads(admin.done("admin", "setting", "show", "isolation", "--json"))
    assert shown == {"key": "isolation", "value": "off", "default": "off", "choices": ["group", "off"]}
    row = next(line for line in admin.done("admin", "setting", "list").splitlines() if " heartbeat_s " in line)
    assert row.split() == ["heartbeat_s", "5m", "1m", "yes"]
    assert admin.site.raw("GET", "/v1/settings", token=admin.site.token("user")).json["heartbeat_s"] == 300
    assert admin.done("admin", "setting", "reset", "heartbeat_s") == "heartbeat_s is 1m, was 5m\n"
    assert admin.done("admin", "setting", "reset", "heartbeat_s") == "heartbeat_s stays 1m\n"
    changed = json.loads(admin.done("admin", "setting", "list", "--changed", "--json"))
    assert [each["key"] for each in changed] == ["production_shares"]


def test_the_servers_refusal_of_a_value_is_told(admin: Admin) -> None:
    result = admin.run("admin", "setting", "set", "heartbeat_s", "0")
    assert result.exit_code == 1
    assert "heartbeat_s is out of range" in result.output and "give a number above 0" in result.output
    assert "heartbeat_s stays 1m" in admin.done("admin", "setting", "set", "heartbeat_s", "1m")


def test_only_admins_turn_and_revoke(admin: Admin) -> None:
    file = str(admin.token("alice", "user")[1])
    assert "heartbeat_s" in admin.done("admin", "setting", "list", "--token-file", file)
    for words in (
        ("admin", "setting", "set", "heartbeat_s", "5m"),
        ("revoke", "person", "root", "--reason", "mine now"),
        ("revoke", "list"),
    ):
        result = admin.run(*words, "--token-file", file)
        assert result.exit_code == 1 and "needs the role admin" in result.output


def test_revoked_tokens_are_refused_and_listed(admin: Admin) -> None:
    def known(token: str) -> bool:
        try:
            return bool(admin.site.call("GET", "/v1/whoami", None, Whoami, token).name)
        except Refused as error:
            assert error.status == 401
            return False

    assert "nothing found" in admin.done("revoke", "list")
    leaked, file = admin.token("alice", "user")
    (other, _), (bob, _) = admin.token("alice-bot", "user"), admin.token("bob", "user")
    assert known(leaked) and known(other) and known(bob)
    said = admin.done("revoke", "token", "--from", str(file), "--reason", "in a log")
    assert leaked not in said
    admin.done("revoke", "person", "bob", "--reason", "laptop stolen")
    admin.done("revoke", "pilot", "12", "--reason", "odd")
    admin.site.tick()
    assert [known(leaked), known(other), known(bob)] == [False, True, False]
    found = json.loads(admin.done("revoke", "list", "--json"))
    assert [(each["kind"], each["reason"], each["author"]) for each in found] == [
        ("person", "laptop stolen", "root"),
        ("pilot", "odd", "root"),
        ("token", "in a log", "root"),
    ]
    assert said == f"token {found[2]['value']} is refused\n"
    assert "laptop stolen" in admin.done("revoke", "list")


def test_a_queues_demand_is_told_with_what_is_behind_it(admin: Admin) -> None:
    admin.site.world()
    admin.site.counter(40)
    text = admin.done("show", "demand", "q", "--explain")
    assert "Its part of the work that waits" in text
    reply = json.loads(admin.done("show", "demand", "q", "--explain", "--json"))
    assert reply["queue"]["name"] == "q"
    assert sum(part["jobs"] for part in reply["parts"]) > 0
    result = admin.run("show", "demand", "nowhere")
    assert result.exit_code == 1 and "there is no queue 'nowhere'" in result.output


def test_a_wrong_setting_is_refused_with_what_could_have_been_meant(site: Site) -> None:
    with pytest.raises(Refused, match="did you mean heartbeat_s") as unknown:
        site.admin("PUT", "/v1/settings/heartbet_s", {"value": 5})
    assert unknown.value.status == 404
    with pytest.raises(Refused, match="Expected") as wrong:
        site.admin("PUT", "/v1/settings/site_failures", {"value": 1.5})
    assert wrong.value.status == 400 and "$.site_failures" not in str(wrong.value)
