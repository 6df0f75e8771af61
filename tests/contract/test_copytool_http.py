"""The copytool http with what sites put before their storages: credentials, doors that redirect, plain servers."""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest

from common.errors import ErrorCode
from pilot.copytool import load_copytool
from pilot.copytool.credentials import Credential
from tests.contract.storages_http import HttpStorage, Shown
from tests.contract.test_copytools import DATA, NEVER, code_of, copy_in, copy_out, names, transfer
from tests.services.base import free_port
from tests.services.certificates import Authority, write_proxy
from tests.services.faulty_proxy import FaultyProxy
from tests.services.s3 import BUCKET, S3Server
from tests.services.webdav import PERSON, WebdavServer, XrootdHttpServer, started

KEY = "a key for tests only, of enough bytes for HS256"
IN, OUT = ErrorCode.STAGE_IN_AUTHENTICATION, ErrorCode.STAGE_OUT_AUTHENTICATION


def token(scope: str = "read modify", lifetime_s: float = 300.0) -> str:
    return jwt.encode({"scope": scope, "exp": time.time() + lifetime_s}, KEY, algorithm="HS256")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The job's folder, with an output."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "out").write_bytes(DATA)
    return tmp_path / "job"


@pytest.fixture(scope="session")
def guarded(services_folder: Path, authority: Authority) -> Iterator[WebdavServer]:
    """A WebDAV server over TLS that demands tokens."""
    yield from started(WebdavServer(services_folder / "webdav-tokens", authority, token_key=KEY))


@pytest.fixture(scope="session")
def door(services_folder: Path, authority: Authority, guarded: WebdavServer) -> Iterator[WebdavServer]:
    """A door to it: readers and writers are sent on."""
    folder = services_folder / "webdav-door"
    yield from started(WebdavServer(folder, authority, data=guarded.data, token_key=KEY, redirect_to=guarded.url))


@pytest.fixture(scope="session")
def plain(services_folder: Path) -> Iterator[WebdavServer]:
    """A server that knows nothing of WebDAV."""
    yield from started(WebdavServer(services_folder / "plain-http", plain=True))


def storage_of(server: Any, authority: Authority, **shown: Any) -> HttpStorage:
    base = server.https_url if isinstance(server, XrootdHttpServer) else server.url
    return HttpStorage(server, base, ca=str(authority.folder), credentials=Shown(**shown))


def round_trip(storage: HttpStorage, job: Path) -> tuple[Any, Any]:
    stored = copy_out(storage, transfer(storage.url("f"), job / "out"))
    fetched = copy_in(storage, transfer(storage.url("f"), job / "in"))
    return code_of(stored), code_of(fetched)


# --- tokens


def test_token_opens(guarded: WebdavServer, authority: Authority, job: Path) -> None:
    storage = storage_of(guarded, authority, token=token())
    assert round_trip(storage, job) == (None, None)
    assert (job / "in").read_bytes() == DATA
    assert storage.tool.remove([storage.url("f")], cancel=NEVER) == [None]
    assert storage.names() == set()


@pytest.mark.parametrize(
    ("claims", "codes"),
    [
        (None, (OUT, IN)),
        ({"lifetime_s": -60}, (OUT, IN)),
        ({"scope": "read"}, (OUT, None)),
    ],
)
def test_token_that_is_none_expired_or_for_reading(
    guarded: WebdavServer, authority: Authority, job: Path, claims: dict[str, Any] | None, codes: Any
) -> None:
    # Signed now: one that is signed when the tests are collected has ended by the time that this one's turn comes.
    shown = None if claims is None else token(**claims)
    storage = storage_of(guarded, authority, token=shown)
    storage.put("f", DATA)
    stored = copy_out(storage, transfer(storage.url("g"), job / "out"))
    fetched = copy_in(storage, transfer(storage.url("f"), job / "in"))
    assert (code_of(stored), code_of(fetched)) == codes
    assert storage.names() == {"f"}
    if shown is None:
        assert fetched.error is not None and "neither a token nor a proxy" in fetched.error.detail
    for error in (stored.error, fetched.error):
        assert error is None or shown is None or shown not in error.detail


class Renewed(Shown):
    """A source whose first token has ended when it is asked again; ``renews``: then it has another one."""

    LIFETIME_S = 5.0

    def __init__(self, renews: bool) -> None:
        super().__init__()
        self.renews = renews
        self.first: str | None = None
        self.ends = 0.0

    def for_url(self, url: str, *, write: bool) -> Credential:
        if self.first is None:
            # Signed at the last moment, and waited for at the end: how fast the machine is doesn't matter.
            self.first, self.ends = token(lifetime_s=self.LIFETIME_S), time.time() + self.LIFETIME_S
            return Credential(self.first)
        while time.time() <= self.ends + 1.0:
            threading.Event().wait(0.1)
        return Credential(token() if self.renews else self.first)


@pytest.mark.parametrize(("renews", "code"), [(True, None), (False, IN)])
def test_transfer_outlives_its_token(
    guarded: WebdavServer, authority: Authority, job: Path, renews: bool, code: ErrorCode | None
) -> None:
    """The line is cut, and the first token has ended before the download goes on: with the next one, if there is one."""
    storage = storage_of(guarded, authority)
    storage.tool = load_copytool("http", ca=str(authority.folder), credentials=Renewed(renews))
    storage.put("f", DATA)
    with FaultyProxy(guarded.port) as line:
        line.down.cut_after, line.down.times = 2_500_000, 1
        url = storage.url("f").replace(str(guarded.port), str(line.port))
        outcome = copy_in(storage, transfer(url, job / "in"))
    assert code_of(outcome) is code


# --- proxies


@pytest.fixture(scope="session")
def proxies(services_folder: Path, authority: Authority) -> dict[str, Path]:
    """Proxies of the person that may, expired and not, and of another."""
    person = authority.person(PERSON)
    files = {name: services_folder / f"{name}.proxy" for name in ("good", "expired", "other")}
    write_proxy(person, files["good"])
    write_proxy(person, files["expired"], timedelta(hours=-1))
    write_proxy(authority.person("Somebody Else"), files["other"])
    return files


def test_proxy_opens(
    xrootd_for_proxies: XrootdHttpServer, authority: Authority, proxies: dict[str, Path], job: Path
) -> None:
    storage = storage_of(xrootd_for_proxies, authority, proxy_file=proxies["good"])
    assert round_trip(storage, job) == (None, None)
    assert (job / "in").read_bytes() == DATA


@pytest.mark.parametrize("which", ["none", "expired", "other"])
def test_proxy_that_is_none_expired_or_somebody_elses(
    xrootd_for_proxies: XrootdHttpServer, authority: Authority, proxies: dict[str, Path], job: Path, which: str
) -> None:
    storage = storage_of(xrootd_for_proxies, authority, proxy_file=proxies.get(which))
    assert round_trip(storage, job) == (OUT, IN)
    assert names(job) == {"out"} and storage.names() == set()


def test_storage_that_wants_the_proxy_and_not_the_token(
    xrootd_for_proxies: XrootdHttpServer, authority: Authority, proxies: dict[str, Path], job: Path
) -> None:
    storage = storage_of(xrootd_for_proxies, authority, token=token(), proxy_file=proxies["good"])
    assert round_trip(storage, job) == (None, None)


def test_renewed_proxy_is_used(
    xrootd_for_proxies: XrootdHttpServer, authority: Authority, proxies: dict[str, Path], job: Path, tmp_path: Path
) -> None:
    """A bug that this design avoids: a connection pool keeps the proxy that it was made with."""
    mine = tmp_path / "proxy"
    mine.touch(0o600)
    mine.write_bytes(proxies["other"].read_bytes())
    storage = storage_of(xrootd_for_proxies, authority, proxy_file=mine)
    assert round_trip(storage, job) == (OUT, IN)
    mine.write_bytes(proxies["good"].read_bytes())
    assert round_trip(storage, job) == (None, None)


class Switched(Shown):
    """A source whose proxy is another one from the second request on."""

    def __init__(self, first: Path, then: Path) -> None:
        super().__init__(None, first)
        self._files = [first, then]

    def for_url(self, url: str, *, write: bool) -> Credential:
        return Credential(None, self._files.pop(0) if len(self._files) > 1 else self._files[0])


@pytest.mark.parametrize(("first", "then", "code"), [("good", "good", None), ("good", "other", IN)])
def test_each_connection_shows_the_proxy_of_the_moment(
    xrootd_for_proxies: XrootdHttpServer,
    authority: Authority,
    proxies: dict[str, Path],
    job: Path,
    first: str,
    then: str,
    code: Any,
) -> None:
    storage = storage_of(xrootd_for_proxies, authority)
    source = Switched(proxies[first], proxies[then])
    storage.tool = load_copytool("http", ca=str(authority.folder), credentials=source)
    storage.put("f", DATA)
    with FaultyProxy(xrootd_for_proxies.https_port) as line:
        line.down.cut_after, line.down.times = 2_000_000, 1
        url = storage.url("f").replace(str(xrootd_for_proxies.https_port), str(line.port))
        checksum = f"adler32:{zlib.adler32(DATA):08x}"
        outcome = copy_in(storage, transfer(url, job / "in", checksum=checksum))
    assert code_of(outcome) is code


def test_server_that_nobody_vouches_for(xrootd_http: XrootdHttpServer, job: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("X509_CERT_DIR", raising=False)
    outcome = copy_in(storage := HttpStorage(xrootd_http, xrootd_http.https_url), transfer(storage.url("f"), job / "f"))
    assert code_of(outcome) is IN
    assert outcome.error is not None and "X509_CERT_DIR" in outcome.error.detail


def test_x509_cert_dir_is_trusted(
    xrootd_http: XrootdHttpServer, authority: Authority, job: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("X509_CERT_DIR", str(authority.folder))
    storage = HttpStorage(xrootd_http, xrootd_http.https_url)
    assert round_trip(storage, job) == (None, None)


# --- redirects


def test_door_that_sends_on(door: WebdavServer, authority: Authority, job: Path) -> None:
    """The token goes along to where the door points, or the storage behind it would refuse."""
    storage = storage_of(door, authority, token=token())
    assert round_trip(storage, job) == (None, None)
    assert storage.path("f").read_bytes() == DATA


class Pointing:
    """A server that points every request elsewhere, and counts the bytes of bodies that it was sent all the same."""

    def __init__(self, target: str) -> None:
        self.requests = 0
        self.body_bytes = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def point(self) -> None:
                outer.requests += 1
                self.send_response(307)
                self.send_header("Location", f"{target}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                if self.command == "PUT":
                    self.connection.settimeout(0.3)
                    self.close_connection = True
                    try:
                        while data := self.rfile.read1(65536):
                            outer.body_bytes += len(data)
                    except OSError:
                        return

            do_GET = do_HEAD = do_PUT = do_OPTIONS = do_MOVE = do_DELETE = do_PROPFIND = do_MKCOL = point

            def handle_expect_100(self) -> bool:
                return True  # and the answer is that of do_PUT

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Pointing:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_body_goes_only_where_it_is_wanted(webdav: WebdavServer, job: Path) -> None:
    with Pointing(webdav.url) as pointing:
        storage = HttpStorage(webdav, f"http://localhost:{pointing.port}")
        assert round_trip(storage, job) == (None, None)
        assert pointing.requests >= 5
        assert pointing.body_bytes == 0
    assert storage.path("f").read_bytes() == DATA


def test_redirects_end(job: Path) -> None:
    with Pointing("") as pointing:
        url = f"http://localhost:{pointing.port}/f"
        outcome = load_copytool("http").copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "redirected more than" in outcome.error.detail


def test_nothing_is_sent_without_tls_that_began_with_it(
    services_folder: Path, authority: Authority, webdav: WebdavServer, job: Path
) -> None:
    with FaultyProxy(webdav.port) as line:
        for door in started(WebdavServer(services_folder / "door-down", authority, redirect_to=line.address)):
            outcome = round_trip(storage_of(door, authority, token=token()), job)
        assert line.connections == 0
    assert outcome == (ErrorCode.STAGE_OUT_FAILED, ErrorCode.STAGE_IN_FAILED)


# --- servers with less


def test_plain_server(plain: WebdavServer, job: Path) -> None:
    storage = HttpStorage(plain, plain.url)
    assert round_trip(storage, job) == (None, None)
    again = copy_out(storage, transfer(storage.url("f"), job / "out"))
    assert code_of(again) is None
    (job / "out").write_bytes(b"other")
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "out"))) is ErrorCode.FILE_EXISTS
    assert storage.path("f").read_bytes() == DATA
    assert storage.tool.remove([storage.url("f")], cancel=NEVER) == [None]
    assert storage.names() == set()


def test_plain_server_keeps_no_beginning_of_a_file(plain: WebdavServer, job: Path) -> None:
    """It has no temporary names: what was cut lies under the final one, and is removed."""
    storage = HttpStorage(plain, plain.url)
    with FaultyProxy(plain.port) as line:
        line.up.cut_after, line.up.times = 1_000_000, 1
        url = storage.url("f").replace(str(plain.port), str(line.port))
        assert not copy_out(storage, transfer(url, job / "out")).ok
    assert storage.names() == set()


def test_folder_is_not_removed(webdav: WebdavServer) -> None:
    """DELETE of a collection takes along all that is in it (RFC 4918, 9.6.1)."""
    storage = HttpStorage(webdav, webdav.url)
    storage.path("folder").mkdir()
    storage.own(storage.path("folder"))
    (storage.path("folder") / "f").write_bytes(DATA)
    errors = storage.tool.remove([storage.url("folder"), storage.url("folder") + "/"], cancel=NEVER)
    assert all(error is not None and "is a folder" in error.detail for error in errors)
    assert (storage.path("folder") / "f").exists()


def test_proxies_of_the_environment_are_used(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(9) as line:
        monkeypatch.setenv("http_proxy", line.address)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        url = "http://storage.invalid/f"
        assert not load_copytool("http").copy_in([transfer(url, job / "f")], cancel=NEVER)[0].ok
        assert line.connections == 1
        monkeypatch.setenv("no_proxy", "storage.invalid")
        outcome = load_copytool("http").copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.NETWORK_UNREACHABLE


def test_examples_of_the_documentation_run(gfal: None) -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "storages.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        exec(compile(example, "storages.md", "exec"), {})


# --- URLs that are the permission


def test_signed_urls(s3: S3Server, job: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "pilot")
    tool = load_copytool("http", credentials=Shown(token="of no use here"))  # and S3 refuses two permissions at once
    key = f"{job.parent.name}/two words"
    put, get, gone = (
        s3.client.generate_presigned_url(call, {"Bucket": BUCKET, "Key": name})
        for call, name in (("put_object", key), ("get_object", key), ("get_object", f"{key}-absent"))
    )
    assert code_of(tool.copy_out([transfer(put, job / "out")], cancel=NEVER)[0]) is None
    assert code_of(tool.copy_in([transfer(get, job / "in")], cancel=NEVER)[0]) is None
    assert (job / "in").read_bytes() == DATA
    assert tool.exists(get) and not tool.exists(gone)
    (job / "out").write_bytes(b"other")
    taken = tool.copy_out([transfer(put, job / "out")], cancel=NEVER)[0]
    missing = tool.copy_in([transfer(gone, job / "gone")], cancel=NEVER)[0]
    assert (code_of(taken), code_of(missing)) == (ErrorCode.FILE_EXISTS, ErrorCode.NO_SUCH_FILE)
    told = caplog.text + str(taken.error) + str(missing.error)
    assert "Signature" not in told and "?" not in told
