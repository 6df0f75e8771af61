"""The pilot's credentials for storages: asked for once, kept fresh, kept apart, removed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import pytest
from cryptography import x509

from common.errors import ErrorCode, PilotageError
from common.proxies import sign_proxy
from common.wire import CredentialKind, CredentialReply, CredentialRequest
from pilot.client import CallRefused, ServerAway, ServerError
from pilot.copytool.credentials import Credential
from pilot.credentials import ServerCredentials, plain
from tests.services.base import wait_until
from tests.unit.test_x509_proxies import NOW, Authority

A, B = "root://disk//data/a", "root://disk//data/b"
OUT = "davs://disk/data/u/1/2/1.2.x"


class Ambient:
    """What the surroundings have."""

    def for_url(self, url: str, *, write: bool) -> Credential:
        return Credential("ambient-token", Path("/tmp/ambient-proxy"))


class Giver:
    """A server that gives numbered tokens."""

    def __init__(self) -> None:
        self.requests: list[CredentialRequest] = []
        self.kind = CredentialKind.TOKEN
        self.life_s = 600.0
        self.ambient = False
        self.error: Optional[ServerError] = None
        self.authority: Optional[Authority] = None
        self.came = threading.Event()

    def credentials(self, request: CredentialRequest) -> CredentialReply:
        self.requests.append(request)
        self.came.set()
        if self.error is not None:
            raise self.error
        covers = [each.rpartition("/")[0] + "/" for each in request.urls] if request.write else request.urls
        reply = CredentialReply(kind=self.kind, covers=covers, life_s=self.life_s, provider="wlcg")
        if self.ambient or self.kind in (CredentialKind.NONE, CredentialKind.AMBIENT):
            reply.ambient, reply.provider = self.ambient, ""
        elif self.kind is CredentialKind.TOKEN:
            reply.token = f"token-{len(self.requests)}"
        elif request.csr is None:
            reply.csr_wanted = True
        else:
            assert self.authority is not None
            reply.chain = sign_proxy(request.csr, self.authority.credential, 600, NOW).chain
        return reply


class Clock:
    """Seconds that go by when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def giver() -> Giver:
    return Giver()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(giver: Giver, clock: Clock, tmp_path: Path) -> Iterator[ServerCredentials]:
    made = ServerCredentials(giver, tmp_path / "credentials", Ambient(), clock=clock)
    made.reads(1, [A, B])
    yield made
    made.close()
    assert not (tmp_path / "credentials").exists()


def test_one_token_serves_all_that_it_covers(source: ServerCredentials, giver: Giver) -> None:
    first = source.for_url(A, write=False)
    assert first.token == "token-1" and source.for_url(B, write=False) is first
    assert first.token_file is not None and first.token_file.read_text().strip() == "token-1"
    assert stat.S_IMODE(first.token_file.stat().st_mode) == 0o600
    assert [(each.job_id, each.urls, each.write, each.csr) for each in giver.requests] == [(1, [A, B], False, None)]
    assert "token='" not in repr(first), "a secret in a log"


def test_reading_and_writing_are_apart(source: ServerCredentials, giver: Giver) -> None:
    source.writes(1, [OUT])
    read, write = source.for_url(A, write=False), source.for_url(OUT, write=True)
    part = source.for_url(f"{OUT.rpartition('/')[0]}/.pilotage-1.part", write=True)
    assert (read.token, write.token, part) == ("token-1", "token-2", write)
    assert giver.requests[1].write and giver.requests[1].urls == [OUT]
    assert source.for_url(A, write=True).token == "ambient-token", "an input would be written with a job's credential"


def test_the_url_is_known_however_a_copytool_writes_it(source: ServerCredentials, giver: Giver) -> None:
    source.writes(1, [OUT])
    source.for_url("https://DISK:443/data/u/1/2/1.2.x?x=1", write=True)
    source.for_url("xroot://disk:1094//data/a", write=False)
    assert [each.urls[0] for each in giver.requests] == [OUT, A]
    assert plain("http://[::1]:80/x") == "http://[::1]/x" and plain("/a/b") == "/a/b"


def test_what_belongs_to_no_job_is_the_surroundings_business(source: ServerCredentials, giver: Giver) -> None:
    assert source.for_url("root://disk//data/z", write=False).token == "ambient-token"
    source.forget(1)
    assert source.for_url(A, write=False).token == "ambient-token"
    assert giver.requests == []


@pytest.mark.parametrize(
    ("kind", "token", "proxy"),
    [
        (CredentialKind.NONE, None, None),
        (CredentialKind.TOKEN, "ambient-token", None),
        (CredentialKind.PROXY, None, Path("/tmp/ambient-proxy")),
        (CredentialKind.AMBIENT, "ambient-token", Path("/tmp/ambient-proxy")),
    ],
)
def test_the_surroundings_serve_where_the_server_has_nothing(
    source: ServerCredentials, giver: Giver, kind: CredentialKind, token: Optional[str], proxy: Optional[Path]
) -> None:
    giver.kind, giver.ambient = kind, kind is not CredentialKind.NONE
    found = source.for_url(A, write=False)
    assert (found.token, found.proxy_file) == (token, proxy)
    source.for_url(A, write=False)
    assert len(giver.requests) == 1


def test_it_is_renewed_when_it_is_asked_for_late(source: ServerCredentials, giver: Giver, clock: Clock) -> None:
    first = source.for_url(A, write=False)
    clock.now += 300
    assert source.for_url(A, write=False).token == "token-1"
    clock.now += 101
    second = source.for_url(A, write=False)
    assert second.token == "token-2" and second.token_file == first.token_file
    assert second.token_file is not None and second.token_file.read_text().strip() == "token-2"


def test_the_old_one_serves_while_the_server_is_away(source: ServerCredentials, giver: Giver, clock: Clock) -> None:
    source.for_url(A, write=False)
    giver.error = ServerAway("no route")
    clock.now += 500
    assert source.for_url(A, write=False).token == "token-1"
    clock.now += 99
    with pytest.raises(PilotageError, match="no route") as error:
        source.for_url(A, write=False)
    assert error.value.code is ErrorCode.COMMUNICATION_FAILED
    giver.error = CallRefused(422, "job 1 reads nothing there")
    with pytest.raises(PilotageError, match="reads nothing there") as error:
        source.for_url(A, write=False)
    assert error.value.code is ErrorCode.MISSING_CREDENTIALS


def test_a_thread_renews_ahead_of_time(giver: Giver, tmp_path: Path) -> None:
    giver.life_s = 0.6
    source = ServerCredentials(giver, tmp_path / "credentials", Ambient())
    try:
        source.reads(1, [A])
        found = source.for_url(A, write=False)
        assert found.token_file is not None
        file = found.token_file
        wait_until(lambda: file.read_text().strip() >= "token-3", "nobody asked, and it was renewed twice", 10)
        giver.error = ServerAway("for a moment")
        seen = len(giver.requests)
        wait_until(lambda: len(giver.requests) > seen, "it is tried again", 10)
        giver.error = None
        wait_until(lambda: file.read_text().strip() >= f"token-{seen}", "and goes on", 10)
        source.forget(1)
        assert not file.exists()
    finally:
        source.close()


def test_one_proxy_for_all_jobs(source: ServerCredentials, giver: Giver, clock: Clock) -> None:
    giver.kind, giver.authority = CredentialKind.PROXY, Authority()
    source.reads(2, ["root://other//x"])
    first, second = source.for_url(A, write=False), source.for_url("root://other//x", write=False)
    assert first.proxy_file == second.proxy_file and first.proxy_file is not None
    assert [each.csr is not None for each in giver.requests] == [False, True, False]
    text = first.proxy_file.read_text()
    assert text.index("BEGIN RSA PRIVATE KEY") > text.index("BEGIN CERTIFICATE")
    assert len(x509.load_pem_x509_certificates(text.encode())) == 2
    assert stat.S_IMODE(first.proxy_file.stat().st_mode) == 0o600
    clock.now += 401
    source.for_url(A, write=False)
    assert first.proxy_file.read_text() != text


def test_a_payload_has_its_own(source: ServerCredentials, giver: Giver, clock: Clock, tmp_path: Path) -> None:
    mine = source.for_url(A, write=False)
    place = tmp_path / "job" / "storage-credential"
    place.parent.mkdir()
    given = source.for_payload(1, [A, B], place)
    assert given.environment == {"BEARER_TOKEN_FILE": str(place)} and given.covers == {A, B}
    assert giver.requests[-1].payload and not giver.requests[-1].write
    assert place.read_text().strip() == "token-2" and stat.S_IMODE(place.stat().st_mode) == 0o600
    assert source.for_url(A, write=False) is mine
    source.for_payload(1, [B], place)
    assert place.read_text().strip() == "token-3"
    source.forget(1)
    assert place.exists(), "it goes with the job's folder"


@pytest.mark.parametrize("kind", [CredentialKind.NONE, CredentialKind.TOKEN, CredentialKind.PROXY])
def test_a_payload_never_gets_the_pilots_own(
    source: ServerCredentials, giver: Giver, tmp_path: Path, kind: CredentialKind
) -> None:
    giver.kind, giver.ambient = kind, kind is not CredentialKind.NONE
    given = source.for_payload(1, [A], tmp_path / "x")
    assert given.environment == {} and not (tmp_path / "x").exists()
    assert given.covers == ({A} if kind is CredentialKind.NONE else set())


def test_many_who_ask_at_once_make_one_request(giver: Giver, tmp_path: Path) -> None:
    source = ServerCredentials(giver, tmp_path / "credentials", Ambient())
    source.reads(1, [A, B])
    ask: Callable[[], object] = lambda: source.for_url(B, write=False)  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(giver.requests) == 1
    source.close()


def test_what_an_earlier_pilot_left_is_removed(giver: Giver, tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "token-1").write_text("old")
    source = ServerCredentials(giver, tmp_path / "credentials", Ambient())
    assert list((tmp_path / "credentials").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "credentials").stat().st_mode) == 0o700
    source.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a file to another user")
def test_a_renewed_file_stays_whose_it_was(
    source: ServerCredentials, giver: Giver, clock: Clock, tmp_path: Path
) -> None:
    """Payloads that run as another user: the pilot, which is root, renews what was handed to them."""
    place = tmp_path / "storage-credential"
    source.for_payload(1, [A], place)
    os.chown(place, 65534, 65534)
    source.for_payload(1, [A], place)
    found = place.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode), place.read_text().strip()) == (65534, 0o600, "token-2")
