"""The gfal copytool beyond the contract: credentials, faults of the line and of the disk, its tables, its two ways."""

from __future__ import annotations

import errno
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest

from common.errors import ERRORS, ErrorCode, PilotageError
from pilot.copytool import Copytool, TransferOutcome, TransferRequest, load_copytool
from pilot.copytool.base import Direction
from pilot.copytool.credentials import Credential
from pilot.copytool.gfal_client import GfalFailure, find_gfal
from pilot.copytool.gfal_errors import ERRNOS, WORDS, failure_code, failure_error, is_missing, tells_no_checksum
from pilot.copytool.gfal_place import Place
from pilot.staging_rounds import TRANSIENT
from tests.contract.storages import Storage
from tests.contract.storages_other import gfal_davs, gfal_file, gfal_root
from tests.contract.storages_secure import SecureStorage, Source, TokenStorage, proxy_storage, token_storage
from tests.contract.test_copytool_faults import small_disk
from tests.services.base import free_port, wait_until
from tests.services.certificates import Authority, write_proxy
from tests.services.faulty_proxy import FaultyProxy
from tests.services.webdav import PERSON, XrootdHttpServer

DATA = bytes(range(256)) * 12_289
MIB = 1024 * 1024
NEVER = threading.Event()

pytestmark = pytest.mark.usefixtures("gfal")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder of a mounted storage."""
    return tmp_path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "out").write_bytes(DATA)
    return tmp_path / "job"


def get(
    tool: Copytool, url: str, path: Path, timeout_s: float = 30, cancel: threading.Event = NEVER
) -> TransferOutcome:
    return tool.copy_in([TransferRequest(url, path, None, None, "test:f", timeout_s)], cancel=cancel)[0]


def put(
    tool: Copytool, path: Path, url: str, timeout_s: float = 30, cancel: threading.Event = NEVER
) -> TransferOutcome:
    return tool.copy_out([TransferRequest(url, path, None, None, "test:f", timeout_s)], cancel=cancel)[0]


def code_of(outcome: TransferOutcome) -> Optional[ErrorCode]:
    return outcome.error.code if outcome.error else None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the commands, which the contract goes through with one protocol


@pytest.mark.parametrize("make", [gfal_root, gfal_davs])
def test_commands_do_the_same(request: pytest.FixtureRequest, job: Path, make: Callable[..., Storage]) -> None:
    storage = make(request, "commands")
    url = storage.url("new folder/a%41 b.root")
    assert code_of(put(storage.tool, job / "out", url)) is None
    assert storage.path("new folder/a%41 b.root").read_bytes() == DATA
    assert code_of(put(storage.tool, job / "out", url)) is None, "a repeat after a lost reply"
    assert storage.tool.exists(url)
    assert code_of(get(storage.tool, url, job / "in")) is None
    assert (job / "in").read_bytes() == DATA
    (job / "in").write_bytes(b"other content")
    assert code_of(put(storage.tool, job / "in", url)) is ErrorCode.FILE_EXISTS
    assert storage.tool.remove([url, url], cancel=NEVER) == [None, None]
    assert code_of(get(storage.tool, url, job / "no")) is ErrorCode.NO_SUCH_FILE
    assert names(job) == {"in", "out"}


# --- credentials


def with_gfal(storage: SecureStorage, authority: Authority, use: str) -> Copytool:
    """The tool, with nothing of the test's own environment but what the storage's source gives."""
    return load_copytool("gfal", credentials=storage.source, ca=str(authority.folder), use=use)


@pytest.mark.parametrize("use", ["bindings", "commands"])
def test_tokens(request: pytest.FixtureRequest, authority: Authority, job: Path, use: str) -> None:
    storage: TokenStorage = token_storage(request)
    tool = with_gfal(storage, authority, use)
    assert code_of(put(tool, job / "out", storage.url("f"))) is None
    assert storage.path("f").read_bytes() == DATA
    storage.give(600, "read")
    assert code_of(put(tool, job / "out", storage.url("g"))) is ErrorCode.STAGE_OUT_AUTHENTICATION
    assert code_of(get(tool, storage.url("f"), job / "in")) is None
    storage.give(-600)
    late = get(tool, storage.url("f"), job / "no")
    assert code_of(late) is ErrorCode.STAGE_IN_AUTHENTICATION
    assert str(storage.source.credential.token) not in str(late.error)
    storage.source.credential = Credential()
    assert code_of(get(tool, storage.url("f"), job / "no")) is ErrorCode.STAGE_IN_AUTHENTICATION


def test_token_without_a_file_of_its_own(
    request: pytest.FixtureRequest,
    authority: Authority,
    job: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    storage: TokenStorage = token_storage(request)
    storage.source.credential = Credential(storage.source.credential.token)
    assert code_of(put(with_gfal(storage, authority, "bindings"), job / "out", storage.url("f"))) is None
    assert not list(tmp_path.glob("pilotage-gfal-*")), "it is left behind"


def test_proxies_by_gsi(request: pytest.FixtureRequest, authority: Authority, job: Path) -> None:
    storage = proxy_storage(request)
    tool = with_gfal(storage, authority, "bindings")
    assert code_of(put(tool, job / "out", storage.url("f"))) is None
    assert code_of(get(tool, storage.url("f"), job / "in")) is None
    write_proxy(authority.person("Robot"), job / "old.pem", -timedelta(hours=1))
    storage.source.credential = Credential(proxy_file=job / "old.pem")
    assert code_of(get(tool, storage.url("f"), job / "no")) is ErrorCode.STAGE_IN_AUTHENTICATION
    storage.source.credential = Credential()
    assert code_of(get(tool, storage.url("f"), job / "no")) is ErrorCode.STAGE_IN_AUTHENTICATION


def test_proxies_by_https(xrootd_for_proxies: XrootdHttpServer, authority: Authority, job: Path) -> None:
    server = xrootd_for_proxies
    write_proxy(authority.person(PERSON), job / "proxy.pem")
    source = Source(Credential(proxy_file=job / "proxy.pem"))
    tool = load_copytool("gfal", credentials=source, ca=str(authority.folder))
    url = f"{server.https_url.replace('https', 'davs')}/by-proxy"
    assert code_of(put(tool, job / "out", url)) is None
    source.credential = Credential()
    assert code_of(get(tool, url, job / "no")) is ErrorCode.STAGE_IN_AUTHENTICATION
    assert {write for asked, write in source.asked if asked == url} == {True, False}


def test_secrets_in_urls_are_no_arguments(request: pytest.FixtureRequest, job: Path) -> None:
    storage = gfal_root(request, "commands")
    outcome = get(storage.tool, storage.url("f") + "?authz=Bearer%20s3cr3t", job / "f")
    assert code_of(outcome) is ErrorCode.NO_STORAGE_PROTOCOL
    assert "s3cr3t" not in str(outcome.error)


def test_certificate_of_an_unknown_authority(xrootd_http: XrootdHttpServer, job: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    tool = load_copytool("gfal", ca=str(tmp_path / "none"))
    url = xrootd_http.https_url.replace("https", "davs") + "/f"
    assert code_of(put(tool, job / "out", url)) is ErrorCode.STAGE_OUT_AUTHENTICATION


# --- the line, the disk


class Faulty(NamedTuple):
    storage: Storage
    line: FaultyProxy

    def url(self) -> str:
        """The URL of the file ``f``, through the line."""
        return re.sub(r"(localhost):\d+", rf"\1:{self.line.port}", self.storage.url("f"))


@pytest.fixture(params=["root", "davs"])
def faulty(request: pytest.FixtureRequest) -> Iterator[Faulty]:
    storage = {"root": gfal_root, "davs": gfal_davs}[request.param](request, "bindings")
    found = re.search(r":(\d+)", storage.url("f"))
    assert found is not None
    with FaultyProxy(int(found.group(1))) as line:
        yield Faulty(storage, line)


def test_download_that_is_cut_again_and_again(faulty: Faulty, job: Path) -> None:
    faulty.storage.put("f", DATA)
    faulty.line.down.cut_after = MIB
    outcome = get(faulty.storage.tool, faulty.url(), job / "f", timeout_s=5)  # XRootD's client has more patience
    assert outcome.error is not None and outcome.error.code in TRANSIENT
    assert names(job) == {"out"}


def test_upload_that_was_cut_can_be_repeated(faulty: Faulty, job: Path) -> None:
    faulty.line.up.cut_after, faulty.line.up.times = MIB, 1
    first = put(faulty.storage.tool, job / "out", faulty.url())
    assert first.ok or (first.error is not None and first.error.code in TRANSIENT)
    assert put(faulty.storage.tool, job / "out", faulty.url()).ok
    assert faulty.storage.path("f").read_bytes() == DATA
    assert faulty.storage.names() == {"f"}


def test_stalled_download_and_upload_end_in_time(faulty: Faulty, job: Path) -> None:
    faulty.storage.put("f", DATA)
    faulty.line.down.stall_after = MIB
    fetched = get(faulty.storage.tool, faulty.url(), job / "f", timeout_s=1)
    assert (code_of(fetched), fetched.seconds < 4) == (ErrorCode.STAGE_IN_TIMEOUT, True)
    faulty.storage.path("f").unlink()
    faulty.line.down.stall_after, faulty.line.up.stall_after = None, MIB
    stored = put(faulty.storage.tool, job / "out", faulty.url(), timeout_s=1)
    assert (code_of(stored), stored.seconds < 6) == (ErrorCode.STAGE_OUT_TIMEOUT, True)
    assert names(job) == {"out"}


@pytest.mark.parametrize("way", ["in", "out"])
def test_transfer_without_progress_is_given_up(
    request: pytest.FixtureRequest, faulty: Faulty, authority: Authority, job: Path, way: str
) -> None:
    tool = load_copytool("gfal", stall_s=1.0, ca=str(authority.folder))
    if way == "in":
        faulty.storage.put("f", DATA)
        faulty.line.down.stall_after = MIB
        outcome = get(tool, faulty.url(), job / "f", timeout_s=60)
    else:
        with (job / "out").open("ab") as stream:
            stream.truncate(64 * MIB)  # more than the buffers on the way
        faulty.line.up.stall_after = MIB
        outcome = put(tool, job / "out", faulty.url(), timeout_s=60)
    assert code_of(outcome) in (ErrorCode.STAGE_IN_TIMEOUT, ErrorCode.STAGE_OUT_TIMEOUT)
    assert outcome.error is not None and "no byte moved for 1 s" in outcome.error.detail
    assert outcome.seconds < 50


def test_cancel_while_nothing_moves(faulty: Faulty, job: Path) -> None:
    faulty.storage.put("f", DATA)
    faulty.line.down.stall_after = MIB
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(get, faulty.storage.tool, faulty.url(), job / "f", 60, cancel)
        wait_until(lambda: faulty.line.down.passed > MIB // 2, "the transfer is under way")
        cancel.set()
        cancelled_at = time.monotonic()
        outcome = running.result(timeout=120)
    assert time.monotonic() - cancelled_at < 30
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "cancelled" in outcome.error.detail
    assert names(job) == {"out"}


def test_full_local_disk(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    storage = gfal_davs(request, "bindings")
    url = storage.put("f", DATA)
    small = tmp_path / "small"
    small.mkdir()
    with small_disk(small) as mounted:
        if not mounted:
            pytest.skip("this user may mount no disk")
        assert code_of(get(storage.tool, url, small / "f")) is ErrorCode.NO_LOCAL_SPACE
        assert names(small) == set()


def test_full_storage(request: pytest.FixtureRequest, job: Path, tmp_path: Path) -> None:
    storage = gfal_file(request, "bindings")
    storage.path("small").mkdir()
    with small_disk(storage.path("small")) as mounted:
        if not mounted:
            pytest.skip("this user may mount no disk")
        assert code_of(put(storage.tool, job / "out", storage.url("small/f"))) is ErrorCode.NO_REMOTE_SPACE
        assert names(storage.path("small")) == set()


def test_nobody_answers_and_nobody_knows_the_name(job: Path) -> None:
    tool = load_copytool("gfal")
    begun = time.monotonic()
    for scheme in ("root", "davs"):
        outcome = get(tool, f"{scheme}://localhost:{free_port()}//f", job / "f", timeout_s=30)
        assert code_of(outcome) is ErrorCode.SERVICE_UNAVAILABLE, outcome.error
        outcome = get(tool, f"{scheme}://no-such-host.invalid//f", job / "f", timeout_s=30)
        assert code_of(outcome) in (ErrorCode.NETWORK_UNREACHABLE, ErrorCode.SERVICE_UNAVAILABLE), outcome.error
    assert time.monotonic() - begun < 100
    assert names(job) == {"out"}


def test_gfal2_that_crashes_costs_one_attempt(tmp_path: Path, job: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *"import gfal2") exit 0;; esac\nkill -SEGV $$\n')
    python.chmod(0o755)
    outcome = get(load_copytool("gfal", use="bindings", python=str(python)), "root://localhost//f", job / "f")
    assert code_of(outcome) is ErrorCode.SERVICE_UNAVAILABLE
    assert outcome.error is not None and "gfal2 ended with -11" in outcome.error.detail


# --- tables, places, what is found


def test_every_errno_and_every_word_has_a_number() -> None:
    for direction in Direction:
        for number in [*ERRNOS, 0, 9999, *range(3000, 3036)]:
            assert failure_code(GfalFailure(number, ""), direction) in ERRORS
        assert len({pattern.pattern for pattern, _ in WORDS}) == len(WORDS)


@pytest.mark.parametrize(
    ("number", "message", "direction", "code"),
    [
        (errno.ENOENT, "Failed to stat file", Direction.IN, ErrorCode.NO_SUCH_FILE),
        (errno.ENOENT, "no such folder", Direction.OUT, ErrorCode.STAGE_OUT_FAILED),
        (errno.EACCES, "Permission denied", Direction.OUT, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (errno.ENOSPC, "No space left on device", Direction.OUT, ErrorCode.NO_REMOTE_SPACE),
        (errno.ENOSPC, "No space left on device", Direction.IN, ErrorCode.NO_LOCAL_SPACE),
        (errno.ETIMEDOUT, "Operation timed out", Direction.IN, ErrorCode.STAGE_IN_TIMEOUT),
        (3010, "refused", Direction.IN, ErrorCode.STAGE_IN_AUTHENTICATION),
        (3018, "file exists", Direction.OUT, ErrorCode.FILE_EXISTS),
        (errno.EIO, "Server responded with an error: [3009] no space", Direction.OUT, ErrorCode.NO_REMOTE_SPACE),
        (
            errno.ECOMM,
            "Result HTTP 507 : Insufficient Storage  after 1 attempts",
            Direction.OUT,
            ErrorCode.NO_REMOTE_SPACE,
        ),
        (errno.ECOMM, "Result HTTP 503 : Service Unavailable", Direction.IN, ErrorCode.SERVICE_UNAVAILABLE),
        (errno.ECOMM, "Could not connect to server", Direction.IN, ErrorCode.SERVICE_UNAVAILABLE),
        (errno.ECOMM, "SSL handshake failed: certificate has expired", Direction.IN, ErrorCode.STAGE_IN_AUTHENTICATION),
        # A time-out that was taken for an expired credential.
        (errno.EIO, "Operation expired", Direction.OUT, ErrorCode.STAGE_OUT_TIMEOUT),
        (errno.EPROTO, "something new", Direction.IN, ErrorCode.STAGE_IN_FAILED),
    ],
)
def test_what_failures_mean(number: int, message: str, direction: Direction, code: ErrorCode) -> None:
    assert failure_code(GfalFailure(number, message), direction) is code


def test_what_is_missing_and_what_has_no_checksum() -> None:
    assert is_missing(GfalFailure(errno.ENOENT, "")) and is_missing(GfalFailure(errno.ECOMM, "Result HTTP 404 : no"))
    assert not is_missing(GfalFailure(errno.EACCES, "")) and not is_missing(GfalFailure(errno.ENOENT, "HTTP 403"))
    assert tells_no_checksum(GfalFailure(errno.EINPROGRESS, "Got 'adler32' while expecting 'md5'"))
    assert not tells_no_checksum(GfalFailure(errno.EACCES, "Permission denied"))


def test_tokens_in_urls_are_not_told() -> None:
    error = failure_error(
        GfalFailure(5, "cannot open root://h//f?authz=s3cr3t"), Direction.IN, "root://h//f", "authz=s3cr3t"
    )
    assert "s3cr3t" not in str(error)


@pytest.mark.parametrize(
    ("url", "wanted", "shown"),
    [
        ("root://h:1094//a/b%20c", "root://h:1094//a/b%20c", "root://h:1094//a/b c"),
        ("davs://h/a%23b?x=1", "davs://h/a%23b?x=1", "davs://h/a#b"),
        ("file:///a%20b/c", "file:///a b/c", "file:///a b/c"),
        (
            "srm://h:8443/srm/managerv2?SFN=/a/b",
            "srm://h:8443/srm/managerv2?SFN=/a/b",
            "srm://h:8443/srm/managerv2?SFN=/a/b",
        ),
        ("gsiftp://h//a/b", "gsiftp://h//a/b", "gsiftp://h//a/b"),
    ],
)
def test_places(url: str, wanted: str, shown: str) -> None:
    place = Place.parse(url, Direction.IN)
    assert (place.url, place.shown) == (wanted, shown)
    assert place.part().head == place.head and place.part().path.endswith(".part")
    assert Path(place.part().path).parent == Path(place.path).parent


@pytest.mark.parametrize(
    "url", ["root://", "davs://h", "davs:///f", "file://elsewhere/f", "root://h//a%0Ab", "root://h//a%3Fb"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(PilotageError) as error:
        Place.parse(url, Direction.IN)
    assert error.value.code is ErrorCode.STAGE_IN_FAILED


def test_node_without_gfal2_says_what_to_install(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"PATH": str(tmp_path)}
    with pytest.raises(PilotageError, match="install gfal2-util and python3-gfal2") as error:
        find_gfal("auto", "/usr/bin/false", nothing)
    assert error.value.code is ErrorCode.MIDDLEWARE_IMPORT_FAILED
    with pytest.raises(PilotageError, match="write auto, bindings or commands"):
        load_copytool("gfal", use="magic")
