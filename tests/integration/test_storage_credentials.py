"""A whole life: a pilot fetches tokens from the server that mints them, and a storage verifies them with its keys."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
import pytest

from common.clock import SystemClock
from common.tokens import write_secret_file
from common.wire import (
    CredentialKind,
    Endpoint,
    EventPage,
    FilesInput,
    FileSpec,
    OutputPattern,
    ReplicaSpec,
    StageSpec,
    StorageSpec,
)
from pilot.copytool.base import part_name
from server.agents.sweep import sweep_unconfirmed
from server.config import ServerConfig
from server.store.migrate import upgrade
from tests.integration.server.harness import Site
from tests.services.base import require
from tests.services.certificates import Authority
from tests.services.xrootd_secure import PERSON, ProxyXrootd, SecureXrootd, TokenXrootd, install

DATA = bytes(range(256)) * 4096
PAYLOAD = """#!/bin/sh
set -e
place=$(cat "$PILOTAGE_INPUT_FILES")
echo "$place" > place.txt
env | grep -c -e BEARER_TOKEN -e X509_USER > shown.txt || true
case "$place" in
roots://*)
    xrdcp --silent "$place" copied.dat
    if xrdcp --silent copied.dat "$place.mine" 2>/dev/null; then echo "it may write" >&2; exit 9; fi
    if xrdfs "$STORAGE" cat /data/private 2>/dev/null; then echo "it may read all" >&2; exit 8; fi
    stat -c %a "$BEARER_TOKEN_FILE" >> shown.txt
    ;;
*) cp "$place" copied.dat ;;
esac
mv copied.dat result.dat
"""


class Threaded(ThreadingMixIn, WSGIServer):
    """A request does not wait for a pilot's long poll."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Issuing:
    """The server over HTTPS, and the storage that trusts it."""

    def __init__(self, folder: Path, services: Path, authority: Authority) -> None:
        self.folder = folder
        self.authority = authority
        certificate, key = folder / "host.pem", folder / "host.key"
        authority.host().write(certificate, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._web = make_server("localhost", 0, lambda *_: [], Threaded, Quiet)
        self._web.socket = context.wrap_socket(self._web.socket, server_side=True)
        self.url = f"https://localhost:{self._web.server_port}"
        state = folder / "state"
        state.mkdir()
        robot = authority.person(PERSON)
        write_secret_file(folder / "robot.pem", (robot.certificate_pem + robot.key_pem).decode())
        sections: dict[str, dict[str, Any]] = {
            "wlcg": {"kind": "minted", "issuer": self.url, "life_s": 300},
            "robot": {"kind": "proxy", "credential_file": str(folder / "robot.pem")},
        }
        config = ServerConfig(state_dir=str(state), credentials=sections)
        self.site = Site(f"sqlite:///{folder / 'pilotage.db'}", SystemClock(), config)
        upgrade(self.site.database)
        self.site.say_up()
        self._web.set_app(self.site.client.app)
        threading.Thread(target=self._web.serve_forever, args=(0.05,), daemon=True).start()
        self.storage = require(lambda: TokenXrootd(services / f"issuing-{self._web.server_port}", authority, self))

    def describe(self, storage: SecureXrootd, remote_io: bool, **endpoint: Any) -> None:
        """A site with a storage, and what lies there."""
        self.site.put_site("s")
        self.site.put_queue("q", remote_io=remote_io, copytools=["xrootd"], wall_s=600)
        way = Endpoint(f"{storage.url}/data", **endpoint)
        self.site.admin("PUT", "/v1/storages/disk", StorageSpec(name="disk", site="s", endpoints=[way]))
        (self.folder / "in.dat").write_bytes(DATA)
        for name in ("in/a-b.dat", "in/c.dat", "private"):
            storage.put(self.folder / "in.dat", f"/data/{name}")

    def run_task(self, storage: SecureXrootd, *names: str, jobscript: str = PAYLOAD) -> tuple[dict[str, bytes], str]:
        """A job over files: its outputs, as they lie on the storage, and what its pilot logged."""
        given = [FileSpec(did=f"data:{n}", size=len(DATA), replicas=[ReplicaSpec("disk", f"in/{n}")]) for n in names]
        stage = StageSpec(
            name="one",
            input=FilesInput(given),
            jobscript=jobscript,
            environment={"X509_CERT_DIR": str(self.authority.folder), "STORAGE": storage.url},
            outputs=[OutputPattern("*.dat"), OutputPattern("*.txt")],
            scouts=False,
        )
        task = self.site.submit(stage)[0]
        log = self.run_pilot()
        found = {
            each.did.partition(":")[2].split(".", 2)[2]: storage.local_path(
                each.url.removeprefix(storage.url)
            ).read_bytes()
            for each in self.site.outputs(task)
            if each.role == "output"
        }
        assert found, log[-6000:]
        return found, log

    def given(self) -> list[dict[str, Any]]:
        """What is written down of credentials that were given."""
        token = self.site.token("admin")
        page = self.site.raw("GET", "/v1/events", token=token, query_string="kind=CREDENTIAL_GIVEN")
        return [each.detail for each in msgspec.json.decode(page.content, type=EventPage).items]

    def run_pilot(self) -> str:
        """One pilot for one job; what it logged."""
        mark, secret = self.site.worker()
        write_secret_file(self.folder / "secret", secret)
        work = self.folder / "work"
        command = [
            str(Path(sys.executable).with_name("pilotage")), "pilot", "run", "--server", self.url, "--worker", mark,
            "--secret-file", str(self.folder / "secret"), "--work-dir", str(work), "--max-jobs", "1",
            "--idle-exit", "5", "--ca-file", str(self.authority.file), "--log-level", "DEBUG",
        ]  # fmt: skip
        env = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "X509_CERT_DIR": str(self.authority.folder)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
        assert not (work / "credentials").exists(), "credentials outlive their pilot"
        return done.stderr

    def close(self) -> None:
        """End both."""
        self.storage.stop()
        self._web.shutdown()
        self._web.server_close()
        self.site.database.close()


@pytest.fixture
def issuing(tmp_path: Path, services_folder: Path, authority: Authority) -> Iterator[Issuing]:
    require(install)
    made = Issuing(tmp_path, services_folder, authority)
    try:
        made.storage.start()
        yield made
    finally:
        made.close()


TOKEN = {"credential": CredentialKind.TOKEN, "provider": "wlcg"}


@pytest.mark.parametrize("remote_io", [False, True], ids=["copied", "read directly"])
def test_real_xrootd_a_job_with_tokens_from_the_server(issuing: Issuing, remote_io: bool) -> None:
    issuing.describe(issuing.storage, remote_io, audience=issuing.storage.audience, **TOKEN)
    outputs, log = issuing.run_task(issuing.storage, "a-b.dat")
    assert outputs["result.dat"] == DATA
    assert outputs["place.txt"].startswith(b"roots://") == remote_io
    assert outputs["shown.txt"].split() == ([b"1", b"600"] if remote_io else [b"0"])
    told = issuing.given()
    assert [each["payload"] for each in told].count(True) == int(remote_io)
    assert all("/data/" in scope for each in told for scope in each["scopes"])
    assert "eyJ" not in log, "a token in the pilot's log"


GET_FILE = """#!/bin/sh
set -e
for n in 1 2; do
    pilotage-get-file > got.$n
    xrdcp --silent "$(cut -d' ' -f2 got.$n)" "$n.dat"
    cut -d' ' -f2 got.$n >> pilotage-processed-pfns.txt
done
cat got.? > got.txt
"""


def test_real_xrootd_files_that_come_one_by_one_are_read_directly_too(issuing: Issuing) -> None:
    issuing.describe(issuing.storage, True, audience=issuing.storage.audience, **TOKEN)
    outputs, _ = issuing.run_task(issuing.storage, "a-b.dat", "c.dat", jobscript=GET_FILE)
    assert outputs["1.dat"] == outputs["2.dat"] == DATA
    place = f"{issuing.storage.url}/data/in"
    assert outputs["got.txt"].decode() == f"data:a-b.dat {place}/a-b.dat disk\ndata:c.dat {place}/c.dat disk\n"
    payload = [each["scopes"] for each in issuing.given() if each["payload"]]
    assert payload[-1] == ["storage.read:/data/in/c.dat", "storage.read:/data/in/a-b.dat"]


@pytest.mark.parametrize("kind", ["token", "proxy"])
def test_real_xrootd_what_was_never_confirmed_is_swept_with_credentials(
    issuing: Issuing, xrootd_proxies: ProxyXrootd, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole: the server's sweep had nothing to show to storages that want something."""
    monkeypatch.setenv("X509_CERT_DIR", str(issuing.authority.folder))
    storage: SecureXrootd = issuing.storage
    if kind == "token":
        issuing.describe(storage, False, audience=issuing.storage.audience, **TOKEN)
    else:
        storage = xrootd_proxies
        issuing.describe(storage, False, credential=CredentialKind.PROXY, provider="robot")
    site = issuing.site
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    places = [each.urls[0].removeprefix(storage.url) for each in pilot.record(job, "x", "y").destinations]
    for place in places:
        storage.put(issuing.folder / "in.dat", place)
    left = storage.local_path(f"{places[0].rpartition('/')[0]}/{part_name(places[0].rpartition('/')[2])}")
    left.touch()
    pilot.fail(job, 1137)
    site.turn("sweep_after_s", 1)
    site.clock = type("Later", (SystemClock,), {"now": lambda self: SystemClock().now() + 60})()
    site.dispatcher.clock = site.clock
    assert sweep_unconfirmed(site.dispatcher) == 2
    assert not any(storage.local_path(place).exists() for place in places)
    assert not left.exists(), "what a pilot that was killed left stays for ever"


def test_real_xrootd_a_job_with_a_proxy_from_the_server(issuing: Issuing, xrootd_proxies: ProxyXrootd) -> None:
    issuing.describe(xrootd_proxies, True, credential=CredentialKind.PROXY, provider="robot")
    outputs, log = issuing.run_task(xrootd_proxies, "a-b.dat")
    assert outputs["result.dat"] == DATA
    assert outputs["shown.txt"].split() == [b"0"], "the payload was shown the robot's proxy"
    assert not outputs["place.txt"].startswith(b"root"), "a proxy for everything was a payload's"
    assert [each["kind"] for each in issuing.given()] == ["proxy"], "one for reading and writing"
    assert "PRIVATE" not in log
