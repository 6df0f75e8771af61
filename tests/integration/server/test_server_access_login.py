"""``pilotage login``, ``logout``, ``whoami``, ``ban`` and ``server user`` against a server that listens."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from click.testing import CliRunner, Result
from sqlalchemy.engine import make_url

from common.cli.main import main
from common.cli.session import Session, load_session, save_session, session_file, session_token
from common.clock import SystemClock
from common.tokens import TokenIssuer, load_or_create_key
from server.access import logins
from server.access.settings import OidcIssuer
from server.api.application import create_application
from server.config import ServerConfig
from server.dispatch.context import Dispatcher
from server.engine.access import Role
from server.store.database import Database
from tests.oidc_provider import Provider

MAPPING = """
[[person]]
name = "carol"
identities = ["iam:s-1"]
roles = ["user"]
"""


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


@dataclass
class Place:
    """A server that listens, and a person's home."""

    url: str
    dispatcher: Dispatcher
    home: Path
    database: str
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, given: str | None = None, **environ: str | None) -> Result:
        runner = CliRunner()
        return runner.invoke(main, list(words), input=given, env={**self.environ, **environ})

    def code(self, name: str = "alice", role: Role = Role.USER) -> str:
        return logins.invite(self.dispatcher, name, [role], ["dune"])[0]

    def log_in(self, name: str = "alice") -> Session:
        done = self.run("login", "--code", given=self.code(name) + "\n")
        assert done.exit_code == 0, done.output
        return self.session()

    def session(self) -> Session:
        found = load_session(self.url, self.environ)
        assert found is not None
        return found

    def age(self) -> None:
        """Let the token of the login be at its end."""
        found = self.session()
        found.expires = time.time() + 5
        save_session(found, self.environ)


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider(time.time)
    yield made
    made.stop()


@pytest.fixture
def place(make_url_of: Any, tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    url = make_url_of("sqlite")
    state, home, people = tmp_path / "state", tmp_path / "home", tmp_path / "people.toml"
    state.mkdir()
    home.mkdir()
    people.write_text(MAPPING)
    clock = SystemClock()
    config = ServerConfig(
        database=url,
        state_dir=str(state),
        mapping_file=str(people),
        oidc=[OidcIssuer(label="iam", issuer=provider.url, audience=["pilotage"], client_id="cli")],
    )
    issuer = TokenIssuer(load_or_create_key(state / "signing.key"), "pilotage", clock)
    dispatcher = Dispatcher(Database(url), issuer, config, clock)
    server = make_server("127.0.0.1", 0, create_application(dispatcher), Threads, Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "PILOTAGE_TOKEN_FILE", "XDG_RUNTIME_DIR", "PILOTAGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    address = f"http://127.0.0.1:{server.server_port}"
    environ = {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "PILOTAGE_CLIENT_SERVER_URL": address,
        "PILOTAGE_SERVER_DATABASE": url,
        "PILOTAGE_SERVER_STATE_DIR": str(state),
    }
    yield Place(address, dispatcher, home, str(make_url(url).database), environ)
    server.shutdown()
    thread.join()
    server.server_close()
    dispatcher.database.close()


def test_from_an_invitation_to_the_end_of_the_login(place: Place) -> None:
    added = place.run("server", "user", "add", "alice", "--role", "user", "--group", "dune")
    assert added.exit_code == 0, added.output
    code = added.stdout.strip()
    assert "pilotage login --code" in added.stderr
    done = place.run("login", "--code", given=code + "\n")
    assert done.exit_code == 0, done.output
    assert "you are alice, with the roles user" in done.output
    session = place.session()
    for secret in (code, session.access_token, session.refresh_token):
        assert secret not in done.output
    path = session_file(place.url, place.environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    shown = json.loads(place.run("whoami", "--json").stdout)
    assert (shown["name"], shown["roles"], shown["groups"]) == ("alice", ["user"], ["dune"])
    assert "alice" in place.run("whoami").stdout
    assert place.run("server", "user", "list").stdout == "alice\tuser\tdune\n"
    out = place.run("logout")
    assert (out.exit_code, path.exists()) == (0, False)
    after = place.run("whoami")
    assert (after.exit_code, "run pilotage login" in after.output) == (1, True)
    assert "not logged in" in place.run("logout").output
    # The server forgot it as well.
    save_session(session, place.environ)
    place.age()
    assert session_token(place.url, place.environ, None) == session.access_token  # which still counts
    assert place.run("server", "user", "remove", "alice").exit_code == 0
    assert place.run("server", "user", "remove", "alice").exit_code == 1


@pytest.mark.parametrize("given", ["plc_nonsense\n", "nonsense\n", "\n", ""])
def test_a_code_that_is_not_good_leaves_nothing_behind(place: Place, given: str) -> None:
    done = place.run("login", "--code", given=given)
    assert done.exit_code == 1
    assert "code" in done.output
    assert not session_file(place.url, place.environ).exists()


@pytest.mark.parametrize("name", ["a b", "iam:alice", "", "a/b", "-a"])
def test_names_that_nobody_can_have(place: Place, name: str) -> None:
    done = place.run("server", "user", "add", "--role", "user", "--", name)
    assert done.exit_code == 2
    assert place.run("server", "user", "list").stdout == ""


def test_a_database_that_no_server_has_prepared(place: Place, tmp_path: Path) -> None:
    done = place.run("server", "user", "list", PILOTAGE_SERVER_DATABASE=f"sqlite:///{tmp_path}/new.db")
    assert (done.exit_code, "pilotage server migrate" in done.output) == (2, True)


def test_roles_that_nobody_can_be_given(place: Place) -> None:
    for role in ("pilot", "worker", "anybody", "root"):
        assert place.run("server", "user", "add", "x", "--role", role).exit_code == 2


def test_the_token_is_renewed_before_its_end(place: Place) -> None:
    first = place.log_in()
    place.age()
    assert place.run("whoami").exit_code == 0
    second = place.session()
    assert second.refresh_token != first.refresh_token
    assert second.expires > time.time() + 3000


def test_commands_at_the_same_time_renew_once(place: Place) -> None:
    first = place.log_in()
    place.age()
    barrier, found = threading.Barrier(8), list[str | None]()

    def ask() -> None:
        barrier.wait(240)
        found.append(session_token(place.url, place.environ, None))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    second = place.session()
    assert found == [second.access_token] * 8
    verify = place.dispatcher.issuer.verify_refresh
    assert verify(second.refresh_token)[1] == verify(first.refresh_token)[1] + 1


def test_a_login_that_has_ended_says_so_and_gives_way(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    session = place.log_in()
    logins.log_out(place.dispatcher, session.refresh_token)
    session.expires = time.time() - 5
    save_session(session, place.environ)
    assert session_token(place.url, place.environ, None) is None
    assert "has ended; run: pilotage login" in caplog.text
    other = place.dispatcher.issuer.mint("bob", ["user"], 600)
    assert json.loads(place.run("whoami", "--json", BEARER_TOKEN=other).stdout)["name"] == "bob"


def test_which_token_goes_first(place: Place, tmp_path: Path) -> None:
    def minted(name: str) -> Path:
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_text(place.dispatcher.issuer.mint(name, ["user"], 600))
        return path

    def name(*words: str, **environ: str) -> object:
        done = place.run("whoami", "--json", *words, **environ)
        return json.loads(done.stdout)["name"]

    runtime = tmp_path / "runtime"
    runtime.mkdir()
    option, variable, wlcg, file = minted("option"), minted("variable"), minted("wlcg"), minted("file")
    theirs = {"BEARER_TOKEN": wlcg.read_text(), "BEARER_TOKEN_FILE": str(file)}
    assert name(BEARER_TOKEN_FILE=str(file)) == "file"
    assert name(**theirs) == "wlcg"
    place.log_in("login")
    assert name(**theirs) == "login"
    assert name(**theirs, PILOTAGE_TOKEN_FILE=str(variable)) == "variable"
    assert name("--token-file", str(option), **theirs, PILOTAGE_TOKEN_FILE=str(variable)) == "option"


def test_a_login_is_for_its_own_server_only(place: Place) -> None:
    session = place.log_in()
    assert session_token("https://evil.example.org", place.environ, None) is None
    forged = session_file("https://evil.example.org", place.environ)
    forged.write_bytes(session_file(place.url, place.environ).read_bytes())
    forged.chmod(0o600)
    assert session_token("https://evil.example.org", place.environ, None) is None
    assert session_token(place.url + "/", place.environ, None) == session.access_token


def test_a_login_that_others_may_read_is_not_used(place: Place) -> None:
    place.log_in()
    session_file(place.url, place.environ).chmod(0o644)
    done = place.run("whoami")
    assert (done.exit_code, "others may read it" in done.output) == (2, True)


def test_a_login_with_another_issuer(place: Place, provider: Provider) -> None:
    undecided = place.run("login")
    assert (undecided.exit_code, "--code" in undecided.output, "--oidc" in undecided.output) == (2, True, True)
    done = place.run("login", "--oidc")
    assert done.exit_code == 0, done.output
    assert "ABCD-EFGH" in done.output
    assert f"{provider.url}/verify" in done.output
    assert "you are carol, with the roles user" in done.output
    session = place.session()
    assert (session.issuer, session.refresh_token) == ("iam", "refresh-1")
    assert session.access_token not in done.output
    place.age()
    assert json.loads(place.run("whoami", "--json").stdout)["proof"] == "iam"
    assert provider.forms[-1] == {"grant_type": "refresh_token", "refresh_token": "refresh-1", "client_id": "cli"}
    assert place.session().expires > time.time() + 300
    assert place.run("login", "--oidc", "--issuer", "other").exit_code == 1
    assert place.run("login", "--oidc", "--code").exit_code == 2


def test_bans_from_the_command_line(place: Place, tmp_path: Path) -> None:
    token = tmp_path / "admin"
    token.touch(mode=0o600)
    token.write_text(place.dispatcher.issuer.mint("root", ["admin"], 600))
    admin = ("--token-file", str(token))
    place.log_in()
    done = place.run("ban", "add", "user", "alice", "--reason", "mines coins", "--for", "12h", *admin)
    assert done.exit_code == 0, done.output
    assert "mines coins" in place.run("ban", "list", *admin).stdout
    refused = place.run("whoami")
    assert (refused.exit_code, "alice is banned" in refused.output) == (1, True)
    assert place.run("ban", "lift", "user", "alice", *admin).exit_code == 0
    assert place.run("whoami").exit_code == 0
    assert place.run("ban", "lift", "user", "alice", *admin).exit_code == 1
    assert place.run("ban", "list").exit_code == 1  # alice is no admin


def test_a_token_that_is_minted_carries_groups_and_the_epoch(place: Place) -> None:
    with place.dispatcher.database.write() as connection:
        from server.store import world

        world.put_setting(connection, "token_epoch", 4)
    words = ("server", "token", "--role", "production", "--subject", "bob", "--group", "dune")
    minted = place.run(*words).stdout.strip()
    shown = json.loads(place.run("whoami", "--json", BEARER_TOKEN=minted).stdout)
    assert (shown["name"], shown["roles"], shown["groups"]) == ("bob", ["production"], ["dune"])
