"""Credentials: got in each way there is, renewed ahead of their end, and told of when they can't be."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.clock import FrozenClock, SystemClock
from common.config import ConfigError
from harvester.credentials.ends import VOMS_ATTRIBUTES, ends_of
from harvester.credentials.keeper import FIRST_RETRY_S, Keeper, told_states, unused_files
from harvester.credentials.voms import _sequence
from tests.oidc_provider import Provider, reply
from tests.services.base import run
from tests.services.certificates import Authority, Issued, write_proxy

NOW = 1_700_000_000.0


def token(expires: float) -> str:
    return jwt.encode({"exp": int(expires)}, "k" * 32)


class World:
    """A keeper of one credential by a command that prints what lies in a file, or fails without it."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.clock = FrozenClock(NOW)
        self.folder = folder
        self.source = folder / "source"
        command = ["/bin/sh", "-c", f"cat {self.source}"]
        self.keeper = Keeper({"t": {"kind": "command", "command": command, **keys}}, folder, self.clock)
        self.file = folder / "credentials" / "t"

    def give(self, text: str) -> None:
        self.source.write_text(text)

    def renew(self, advance: float = 0.0) -> None:
        self.clock.advance(advance)
        self.keeper.renew_due()

    def next_in_s(self) -> float:
        left = self.keeper.next_in_s()
        assert left is not None
        return left


def test_a_token_is_renewed_when_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = token(NOW + 3600)
    world.give(first)
    world.renew()
    assert world.file.read_text() == f"{first}\n"
    assert stat.S_IMODE(world.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(world.file.parent.stat().st_mode) == 0o700
    assert world.next_in_s() == 2400
    second = token(NOW + 7200)
    world.give(second)
    world.renew(2399)
    assert world.file.read_text() == f"{first}\n"
    world.renew(1)
    assert world.file.read_text() == f"{second}\n"
    assert world.keeper.problems() == []


def test_the_keys_say_when_to_renew_and_when_to_warn(tmp_path: Path) -> None:
    world = World(tmp_path, renew_before_s=100.0, warn_before_s=3000.0)
    world.give(token(NOW + 3600))
    world.renew()
    assert world.next_in_s() == 3500
    assert world.keeper.problems() == []
    world.clock.advance(601)
    (problem,) = world.keeper.problems()
    assert problem == "credential t: it ends in 49m59s; whoever renews it has not done so"


def test_a_token_whose_end_is_not_known_is_got_again_now_and_then(tmp_path: Path) -> None:
    world = World(tmp_path, every_s=50.0)
    world.give("opaque-token")
    world.renew()
    assert (world.next_in_s(), world.keeper.states()[0].expires) == (50.0, None)


def test_a_failure_leaves_the_old_one_is_told_and_tried_again_less_and_less_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(tmp_path)
    good = token(NOW + 3600)
    world.give(good)
    world.renew()
    world.source.unlink()
    world.renew(2400)
    assert world.next_in_s() == FIRST_RETRY_S
    world.renew(FIRST_RETRY_S)
    assert world.next_in_s() == 2 * FIRST_RETRY_S
    assert world.file.read_text() == f"{good}\n"
    (problem,) = world.keeper.problems()
    assert "could not be renewed; /bin/sh ended with exit code 1" in problem
    (told,) = told_states(tmp_path)
    assert (told.failures, told.expires) == (2, NOW + 3600)
    world.renew(3600)
    assert "it has ended" in world.keeper.problems()[0]
    assert good not in caplog.text
    world.give(token(NOW + 20000))
    world.renew(600)
    assert world.keeper.problems() == []


def test_what_has_no_file_yet_is_got_before_anybody_looks_for_it(tmp_path: Path) -> None:
    """A bug: a backend that looks for its token when it is made kept harvester from its first start."""
    world = World(tmp_path)
    world.give(token(NOW + 3600))
    world.keeper.obtain_missing()
    assert world.file.exists()
    world.give(token(NOW + 9999))
    world.keeper.obtain_missing()
    world.renew()
    assert world.keeper.states()[0].expires == NOW + 3600, "it is not got twice"


def test_one_that_has_expired_already_is_not_taken(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.give(token(NOW - 5))
    world.renew()
    assert not world.file.exists()
    assert "has expired 5s ago" in world.keeper.problems()[0]


def test_after_a_restart_an_old_one_that_is_good_still_counts(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.give(token(NOW + 3600))
    world.renew()
    world.source.unlink()
    again = World(tmp_path)
    again.renew()
    (state,) = again.keeper.states()
    assert (state.expires, state.failures) == (NOW + 3600, 1)


def test_a_command_that_hangs_or_says_too_much_is_a_failure(tmp_path: Path) -> None:
    hangs = {"kind": "command", "command": ["sleep", "60"], "timeout_s": 0.2}
    secret = {"kind": "command", "command": ["/bin/sh", "-c", "echo 'bad eyJhbGciOiJI.eyJleHAi.abc' >&2; exit 2"]}
    absent = {"kind": "command", "command": ["/no/such/program"]}
    empty = {"kind": "command", "command": ["true"]}
    keeper = Keeper({"a": hangs, "b": secret, "c": absent, "d": empty}, tmp_path, FrozenClock(NOW))
    keeper.renew_due()
    words = " | ".join(keeper.problems())
    for part in ("sleep has not ended within 0.2 s", "bad ***", "cannot be run: No such file", "it gave nothing"):
        assert part in words


def test_a_file_that_somebody_else_renews(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, file = FrozenClock(NOW), tmp_path / "theirs"
    keeper = Keeper({"f": {"kind": "file", "file": str(file)}}, tmp_path, clock)
    keeper.renew_due()
    assert "cannot be read" in keeper.problems()[0]
    file.write_text(token(NOW + 600))
    file.chmod(0o600)
    clock.advance(FIRST_RETRY_S)
    keeper.renew_due()
    assert keeper.problems() == []
    clock.advance(550)
    keeper.renew_due()
    assert "whoever renews it has not done so" in keeper.problems()[0]
    keeper.renew_due()
    told = [message for message in caplog.messages if "whoever renews it" in message]
    assert told == ["credential f: it ends in 35s; whoever renews it has not done so"], "once"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "kind: None is not known; choose one of: command, file, issuer, proxy"),
        ({"kind": "file"}, r"\[harvester.credentials.x\] .*`file`"),
        ({"kind": "file", "file": "f", "fiel": "g"}, "fiel"),
        ({"kind": "issuer", "issuer": "https://i"}, "exactly one of the two"),
        ({"kind": "issuer", "issuer": "https://i", "client_secret_file": "f"}, "client_id"),
        ({"kind": "proxy", "certificate": "c", "voms": [{"server": "http://v"}]}, "server"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Keeper({"x": table}, tmp_path, FrozenClock(NOW))


def test_files_of_credentials_that_are_configured_no_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.give("x-token")
    world.renew()
    assert unused_files(tmp_path, ["t"]) == []
    assert unused_files(tmp_path, ["other"]) == [world.file]


# ---------------------------------------------------------------- issuers


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider(SystemClock().now)
    yield made
    made.stop()


def secret_file(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_a_token_by_client_credentials(tmp_path: Path, provider: Provider) -> None:
    table = {
        "kind": "issuer",
        "issuer": provider.url,
        "client_id": "harvester",
        "client_secret_file": secret_file(tmp_path / "secret", "s3cret"),
        "scopes": ["compute.create", "compute.read"],
        "audience": "https://ce.example.org",
    }
    keeper = Keeper({"ce": table}, tmp_path, SystemClock())
    keeper.renew_due()
    assert keeper.problems() == []
    assert provider.forms == [
        {
            "grant_type": "client_credentials",
            "scope": "compute.create compute.read",
            "audience": "https://ce.example.org",
        }
    ]
    expires = keeper.states()[0].expires
    assert expires is not None and 500 < expires - SystemClock().now() < 700


def test_a_refresh_token_is_replaced_by_the_one_that_came_with_the_token(tmp_path: Path, provider: Provider) -> None:
    refreshes = iter(["refresh-2", "refresh-3"])
    provider.answers["/token"] = lambda: reply(
        {"access_token": provider.token(), "expires_in": 600, "refresh_token": next(refreshes)}
    )
    given = secret_file(tmp_path / "refresh", "refresh-1")
    table = {"kind": "issuer", "issuer": provider.url, "client_id": "c", "refresh_token_file": given}
    for _ in range(2):
        Keeper({"ce": table}, tmp_path, SystemClock()).renew_due()
    assert [form["refresh_token"] for form in provider.forms] == ["refresh-1", "refresh-2"]
    memory = tmp_path / "credentials" / ".ce.memory"
    assert (memory.read_text().strip(), stat.S_IMODE(memory.stat().st_mode)) == ("refresh-3", 0o600)


def test_an_issuer_that_refuses(tmp_path: Path, provider: Provider) -> None:
    provider.answers["/token"] = lambda: reply({"error": "invalid_client"}, 401)
    secret = secret_file(tmp_path / "s", "x")
    table = {"kind": "issuer", "issuer": provider.url, "client_id": "c", "client_secret_file": secret}
    keeper = Keeper({"ce": table}, tmp_path, SystemClock())
    keeper.renew_due()
    assert "invalid_client" in keeper.problems()[0]


# ---------------------------------------------------------------- proxies


@pytest.fixture(scope="module")
def authority_here(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "certificates")


def person(authority: Authority, folder: Path) -> dict[str, str]:
    issued = authority.person("Robot")
    issued.write(folder / "cert.pem", folder / "key.pem")
    return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}


def chain_of(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes())


def test_a_proxy_of_a_certificate(tmp_path: Path, authority_here: Authority) -> None:
    table = {"kind": "proxy", "life_s": 7200.0, **person(authority_here, tmp_path)}
    keeper = Keeper({"p": table}, tmp_path, SystemClock())
    keeper.renew_due()
    assert keeper.problems() == []
    path = tmp_path / "credentials" / "p"
    proxy, owner = chain_of(path)
    assert proxy.issuer == owner.subject
    key = load_pem_private_key(path.read_bytes(), None)
    assert key.public_key() == proxy.public_key()
    left = keeper.states()[0].expires
    assert left is not None and 7100 < left - SystemClock().now() <= 7200
    verified = run(
        ["openssl", "verify", "-CAfile", authority_here.file, "-allow_proxy_certs", "-untrusted", path, path]
    )
    assert "OK" in verified


def test_a_proxy_of_a_long_proxy_ends_with_it(tmp_path: Path, authority_here: Authority) -> None:
    long = tmp_path / "long"
    write_proxy(authority_here.person("Robot"), long, timedelta(seconds=600))
    keeper = Keeper({"p": {"kind": "proxy", "certificate": str(long)}}, tmp_path, SystemClock())
    keeper.renew_due()
    expires = keeper.states()[0].expires
    assert expires is not None and 500 < expires - SystemClock().now() <= 600
    assert len(chain_of(tmp_path / "credentials" / "p")) == 3


def test_a_certificate_that_cannot_be_used_is_told(tmp_path: Path, authority_here: Authority) -> None:
    other = tmp_path / "other"
    other.mkdir()
    table = {"kind": "proxy", **person(authority_here, tmp_path), "key": person(authority_here, other)["key"]}
    gone = {"kind": "proxy", "certificate": str(tmp_path / "gone")}
    keeper = Keeper({"p": table, "g": gone}, tmp_path, SystemClock())
    keeper.renew_due()
    words = " | ".join(keeper.problems())
    assert "do not belong together" in words and "gone: cannot be read" in words


# ---------------------------------------------------------------- VOMS


def _der(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _sequence(content)[1:]


def attributes_of(end: str, *names: str) -> bytes:
    """As much of an attribute certificate as is read: its validity (RFC 5755) and the names in it."""
    validity = _der(0x30, _der(0x18, b"20230101000000Z") + _der(0x18, end.encode()))
    return _der(0x30, validity + _der(0x30, b"".join(_der(0x04, name.encode()) for name in names)))


class Voms:
    """A VOMS server over TLS that wants a client's certificate."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        host: Issued = authority.host()
        host.write(folder / "host.pem", folder / "host.key")
        self.asked: list[str] = []
        self.answer = (
            200,
            f"<voms><ac>{base64.b64encode(attributes_of('20370101000000Z', '/atlas/Role=pilot')).decode()}</ac></voms>",
        )
        voms = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                voms.asked.append(self.path)
                status, text = voms.answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "host.pem", folder / "host.key")
        context.load_verify_locations(authority.file)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"https://localhost:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def voms(tmp_path: Path, authority_here: Authority) -> Iterator[Voms]:
    made = Voms(authority_here, tmp_path)
    yield made
    made.stop()


def test_attributes_of_a_voms_server_are_in_the_proxy(tmp_path: Path, authority_here: Authority, voms: Voms) -> None:
    server = {"server": voms.url, "fqans": ["/atlas/Role=pilot"]}
    table = {
        "kind": "proxy", "life_s": 3600.0, "voms": [server], "ca_path": str(authority_here.file),
        **person(authority_here, tmp_path),
    }  # fmt: skip
    keeper = Keeper({"p": table}, tmp_path, SystemClock())
    keeper.renew_due()
    assert keeper.problems() == []
    assert voms.asked == ["/generate-ac?lifetime=3600&fqans=%2Fatlas%2FRole%3Dpilot"]
    (state,) = keeper.states()
    assert (state.attributes, state.voms_expires) == (["/atlas/Role=pilot"], 2114380800.0)
    proxy, _ = chain_of(tmp_path / "credentials" / "p")
    assert not proxy.extensions.get_extension_for_oid(VOMS_ATTRIBUTES).critical

    voms.answer = (403, "<voms><error><message>unknown user</message></error></voms>")
    again = Keeper({"q": table}, tmp_path, SystemClock())
    again.renew_due()
    assert "status 403: unknown user" in again.problems()[0]


def test_attributes_that_end_before_the_proxy_count_as_its_end(
    tmp_path: Path, authority_here: Authority, voms: Voms
) -> None:
    soon = (SystemClock().now() // 60 + 20) * 60
    stamp = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(soon))
    voms.answer = (200, f"<ac>{base64.b64encode(attributes_of(stamp, '/x')).decode()}</ac>")
    table = {"kind": "proxy", "voms": [{"server": voms.url}], "ca_path": str(authority_here.file)}
    keeper = Keeper({"p": {**table, **person(authority_here, tmp_path)}}, tmp_path, SystemClock())
    keeper.renew_due()
    assert keeper.states()[0].expires == soon


@pytest.mark.usefixtures("voms_clients")
def test_real_voms_attributes_of_a_source_proxy_stay_in_the_chain(tmp_path: Path, authority_here: Authority) -> None:
    host = authority_here.host()
    host.write(tmp_path / "host.pem", tmp_path / "host.key")
    mine = person(authority_here, tmp_path)
    run([
        "voms-proxy-fake", "-rfc", "-bits", "2048", "-cert", mine["certificate"], "-key", mine["key"],
        "-certdir", authority_here.folder, "-hostcert", tmp_path / "host.pem", "-hostkey", tmp_path / "host.key",
        "-voms", "atlas", "-uri", "localhost:15000", "-fqan", "/atlas/Role=pilot", "-hours", "24",
        "-out", tmp_path / "vproxy.pem",
    ])  # fmt: skip
    keeper = Keeper({"p": {"kind": "proxy", "certificate": str(tmp_path / "vproxy.pem")}}, tmp_path, SystemClock())
    keeper.renew_due()
    assert keeper.problems() == []
    (state,) = keeper.states()
    assert any(name.startswith("/atlas/Role=pilot") for name in state.attributes)
    assert state.voms_expires is not None and state.voms_expires > SystemClock().now()


def test_damaged_certificates_and_tokens_have_no_end() -> None:
    assert ends_of("a.b.c").expires is None
    assert ends_of("opaque").expires is None
    assert ends_of(f"x.{base64.urlsafe_b64encode(json.dumps({'exp': 'soon'}).encode()).decode()}.y").expires is None
    with pytest.raises(ValueError, match="damaged certificate"):
        ends_of("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
