"""The copytool of Rucio against a real Rucio server, with its own clients, an RSE on disk and one behind XRootD."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from common.checksums import file_checksum
from common.errors import ERRORS, ErrorCode, PilotageError
from common.tokens import write_secret_file
from pilot.copytool import Copytool, TransferOutcome, TransferRequest, load_copytool
from pilot.copytool.base import Direction
from pilot.copytool.credentials import Credential
from pilot.copytool.rucio import Place
from pilot.copytool.rucio_errors import EXCEPTIONS, exception_code
from pilot.staging import Destination, InputFile, OutputFile, Replica, StageInClient, StageOutClient
from tests.services.base import free_port
from tests.services.rucio import PASSWORD, RSE, SCOPE, RucioServer
from tests.services.xrootd import XrootdServer

DATA = bytes(range(256)) * 4_097
NEVER = threading.Event()


class Shows:
    """A source of one credential, which can be changed."""

    def __init__(self, token: Optional[str] = None) -> None:
        self.token = token

    def for_url(self, url: str, *, write: bool) -> Credential:
        return Credential(self.token)


def new_name() -> str:
    return f"f.{uuid.uuid4().hex}"


def rucio_url(name: str, rse: str = RSE) -> str:
    """As the server makes the URLs of outputs: folders between scope and name."""
    return f"rucio://{rse}/{SCOPE}/1/2/{name}"


def transfer(
    url: str,
    path: Path,
    *,
    size: Optional[int] = None,
    checksum: Optional[str] = None,
    label: str = "",
    timeout_s: float = 60,
) -> TransferRequest:
    return TransferRequest(url, path, size, checksum, label or path.name, timeout_s)


def copy_in(tool: Copytool, request: TransferRequest, cancel: threading.Event = NEVER) -> TransferOutcome:
    return tool.copy_in([request], cancel=cancel)[0]


def copy_out(tool: Copytool, request: TransferRequest, cancel: threading.Event = NEVER) -> TransferOutcome:
    return tool.copy_out([request], cancel=cancel)[0]


def code_of(outcome: TransferOutcome) -> Optional[ErrorCode]:
    return outcome.error.code if outcome.error else None


def password_file(folder: Path) -> str:
    write_secret_file(folder / "password", PASSWORD)
    return str(folder / "password")


@pytest.fixture
def tool(rucio: RucioServer, tmp_path: Path) -> Copytool:
    """The copytool, logged in with a password."""
    return load_copytool("rucio", config=str(rucio.config), password_file=password_file(tmp_path))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


@pytest.fixture
def stored(tool: Copytool, job: Path) -> str:
    """The name of a file that Rucio has."""
    name = new_name()
    (job / "out").write_bytes(DATA)
    assert code_of(copy_out(tool, transfer(rucio_url(name), job / "out"))) is None
    (job / "out").unlink()
    return name


def on_disk(rucio: RucioServer, name: str) -> Path:
    """Where a file lies."""
    return next(path for path in rucio.disk.rglob("*") if path.name == name)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_upload_registers_a_replica_and_sends_a_trace(rucio: RucioServer, tool: Copytool, job: Path) -> None:
    name, out = new_name(), job / "histogram.root"
    out.write_bytes(DATA)
    checksum = str(file_checksum(out))
    outcome = copy_out(tool, transfer(rucio_url(name), out, size=len(DATA), checksum=checksum))
    assert (code_of(outcome), outcome.size, outcome.checksum) == (None, len(DATA), checksum)
    replica = rucio.replicas(f"{SCOPE}:{name}")[0]
    assert (replica["bytes"], replica["adler32"]) == (len(DATA), checksum.partition(":")[2])
    assert replica["states"] == {RSE: "AVAILABLE"}
    assert on_disk(rucio, name).read_bytes() == DATA
    trace = rucio.traces.received[-1]
    assert (trace["eventType"], trace["clientState"], trace["remoteSite"]) == ("upload", "DONE", RSE)
    assert (trace["scope"], trace["filesize"]) == (SCOPE, len(DATA))
    assert names(job) == {"histogram.root"}


def test_download_is_verified_and_traced(rucio: RucioServer, tool: Copytool, job: Path, stored: str) -> None:
    checksum = "md5:" + rucio.replicas(f"{SCOPE}:{stored}")[0]["md5"]
    (job / "in").write_bytes(b"of an earlier try")
    outcome = copy_in(tool, transfer(rucio_url(stored), job / "in", size=len(DATA), checksum=checksum))
    assert (code_of(outcome), outcome.size, outcome.checksum) == (None, len(DATA), checksum)
    assert ((job / "in").read_bytes(), names(job)) == (DATA, {"in"})
    trace = rucio.traces.of(f"{SCOPE}:{stored}")[-1]
    assert (trace["eventType"], trace["clientState"], trace["remoteSite"]) == ("download", "DONE", RSE)


def test_replica_by_its_url_is_told_by_its_did(rucio: RucioServer, tool: Copytool, job: Path, stored: str) -> None:
    did = f"{SCOPE}:{stored}"
    url = rucio.replicas(did)[0]["rses"][RSE][0]
    assert code_of(copy_in(tool, transfer(url, job / "in", label=did))) is None
    assert (job / "in").read_bytes() == DATA
    assert rucio.traces.of(did)[-1]["remoteSite"] == RSE
    assert code_of(copy_in(tool, transfer(f"{url}x", job / "no", label=did))) is ErrorCode.REPLICA_NOT_FOUND
    assert code_of(copy_in(tool, transfer(url, job / "no", label="histogram"))) is ErrorCode.NO_STORAGE_PROTOCOL
    assert code_of(copy_out(tool, transfer(url, job / "in", label=did))) is ErrorCode.NO_STORAGE_PROTOCOL


def test_missing_file_and_missing_replica(rucio: RucioServer, tool: Copytool, job: Path, stored: str) -> None:
    unknown = copy_in(tool, transfer(rucio_url(new_name()), job / "f"))
    elsewhere = copy_in(tool, transfer(rucio_url(stored, "NOWHERE"), job / "f"))
    on_disk(rucio, stored).unlink()
    gone = copy_in(tool, transfer(rucio_url(stored), job / "f"))
    assert (code_of(unknown), code_of(gone)) == (ErrorCode.NO_SUCH_FILE, ErrorCode.NO_SUCH_FILE)
    assert code_of(elsewhere) in (ErrorCode.NO_STORAGE, ErrorCode.NO_SUCH_FILE)
    assert rucio.traces.of(f"{SCOPE}:{stored}")[-1]["clientState"] == "FAILED"
    assert names(job) == set()


def test_damaged_replica(rucio: RucioServer, tool: Copytool, job: Path, stored: str) -> None:
    with on_disk(rucio, stored).open("r+b") as stream:
        stream.write(b"damage")
    outcome = copy_in(tool, transfer(rucio_url(stored), job / "f"))
    assert code_of(outcome) is ErrorCode.GET_ADLER32_MISMATCH
    assert names(job) == set()
    assert rucio.traces.of(f"{SCOPE}:{stored}")[-1]["clientState"] == "FAIL_VALIDATE"


def test_other_content_than_recorded(tool: Copytool, job: Path, stored: str) -> None:
    wrong = copy_in(tool, transfer(rucio_url(stored), job / "f", checksum="adler32:00000002"))
    short = copy_in(tool, transfer(rucio_url(stored), job / "f", size=1))
    assert code_of(wrong) is code_of(short) is ErrorCode.GET_ADLER32_MISMATCH
    (job / "out").write_bytes(DATA)
    out = copy_out(tool, transfer(rucio_url(new_name()), job / "out", checksum="md5:" + 32 * "0"))
    assert code_of(out) is ErrorCode.PUT_MD5_MISMATCH
    assert names(job) == {"out"}


def test_repeat_after_a_lost_reply_and_another_file_of_that_name(
    rucio: RucioServer, tool: Copytool, job: Path, stored: str
) -> None:
    (job / "out").write_bytes(DATA)
    written = on_disk(rucio, stored).stat().st_mtime_ns
    assert code_of(copy_out(tool, transfer(rucio_url(stored), job / "out"))) is None
    assert on_disk(rucio, stored).stat().st_mtime_ns == written
    (job / "out").write_bytes(b"of a loser")
    assert code_of(copy_out(tool, transfer(rucio_url(stored), job / "out"))) is ErrorCode.FILE_EXISTS
    assert on_disk(rucio, stored).read_bytes() == DATA


def test_exists_and_remove(rucio: RucioServer, tool: Copytool, stored: str) -> None:
    url = rucio_url(stored)
    assert tool.exists(url) and not tool.exists(rucio_url(new_name()))
    assert tool.remove([url, rucio_url(new_name()), url], cancel=NEVER) == [None, None, None]
    assert not tool.exists(url)
    rule = json.loads(rucio.call("GET", f"/dids/{SCOPE}/{stored}/rules"))
    assert rule["expires_at"] and rule["purge_replicas"], "Rucio's judge ends it, and its reaper the replica"


def test_scope_that_is_none_and_file_that_is_no_output(tool: Copytool, job: Path) -> None:
    (job / "out").symlink_to("/etc/passwd")
    assert code_of(copy_out(tool, transfer(rucio_url(new_name()), job / "out"))) is ErrorCode.OUTPUT_NOT_REGULAR
    outcome = copy_out(tool, transfer(rucio_url(new_name()), job / "none"))
    assert code_of(outcome) is ErrorCode.MISSING_OUTPUT


def test_without_registration_only_the_file_is_stored(rucio: RucioServer, job: Path, tmp_path: Path) -> None:
    tool = load_copytool(
        "rucio", config=str(rucio.config), password_file=password_file(tmp_path), register=False, lifetime_s=60
    )
    name = new_name()
    (job / "out").write_bytes(DATA)
    assert code_of(copy_out(tool, transfer(rucio_url(name), job / "out"))) is None
    assert on_disk(rucio, name).read_bytes() == DATA
    assert rucio.replicas(f"{SCOPE}:{name}") == []


# --- credentials


def test_expired_token_is_refused_and_the_next_one_is_taken(rucio: RucioServer, job: Path, stored: str) -> None:
    source = Shows(rucio.token())
    tool = load_copytool("rucio", credentials=source, config=str(rucio.config), auth_type="oidc")
    assert code_of(copy_in(tool, transfer(rucio_url(stored), job / "f"))) is None
    source.token = rucio.token()
    rucio.expire(source.token)  # before it is used: the server remembers for minutes what it has checked
    late = copy_in(tool, transfer(rucio_url(stored), job / "g"))
    assert code_of(late) is ErrorCode.STAGE_IN_AUTHENTICATION
    assert source.token not in str(late.error)
    source.token = rucio.token()
    assert code_of(copy_in(tool, transfer(rucio_url(stored), job / "g"))) is None


def test_wrong_password(rucio: RucioServer, job: Path, tmp_path: Path) -> None:
    write_secret_file(tmp_path / "wrong", "hunter2")
    tool = load_copytool("rucio", config=str(rucio.config), password_file=str(tmp_path / "wrong"))
    outcome = copy_in(tool, transfer(rucio_url(new_name()), job / "f"))
    assert code_of(outcome) is ErrorCode.STAGE_IN_AUTHENTICATION
    assert "hunter2" not in str(outcome.error)


# --- a server that misbehaves


@contextlib.contextmanager
def frozen(server: RucioServer) -> Iterator[None]:
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def test_slow_server_times_out(rucio: RucioServer, tool: Copytool, job: Path, stored: str) -> None:
    with frozen(rucio):
        outcome = copy_in(tool, transfer(rucio_url(stored), job / "f", timeout_s=1.5))
    assert code_of(outcome) is ErrorCode.STAGE_IN_TIMEOUT
    assert outcome.seconds < 30
    assert names(job) == set()


def test_slow_server_is_left_on_cancel(rucio: RucioServer, tool: Copytool, job: Path, stored: str) -> None:
    cancel = threading.Event()
    with frozen(rucio):
        threading.Timer(1, cancel.set).start()
        begun = time.monotonic()
        outcome = copy_in(tool, transfer(rucio_url(stored), job / "f"), cancel)
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "cancelled" in outcome.error.detail
    assert time.monotonic() - begun < 30
    assert names(job) == set()


def test_server_that_is_not_there(job: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    tool = load_copytool(
        "rucio", host=url, account="root", auth_type="userpass", username="u", password_file=password_file(tmp_path)
    )
    outcome = copy_in(tool, transfer(rucio_url(new_name()), job / "f"))
    assert code_of(outcome) is ErrorCode.SERVICE_UNAVAILABLE
    assert outcome.seconds < 20


# --- with the storages that it is for


def test_rse_behind_xrootd(rucio: RucioServer, tool: Copytool, xrootd: XrootdServer, job: Path) -> None:
    rse = f"XRD{xrootd.port}"
    rucio.add_rse(rse, "root", "localhost", xrootd.port, "//rucio/", "rucio.rse.protocols.xrootd.Default")
    name = new_name()
    (job / "out").write_bytes(DATA)
    assert code_of(copy_out(tool, transfer(rucio_url(name, rse), job / "out"))) is None
    url = rucio.replicas(f"{SCOPE}:{name}")[0]["rses"][rse][0]
    assert url.startswith("root://")
    assert code_of(copy_in(tool, transfer(url, job / "in", label=f"{SCOPE}:{name}"))) is None
    assert (job / "in").read_bytes() == DATA
    assert tool.remove([rucio_url(name, rse)], cancel=NEVER) == [None]


def test_staging_by_rucio_alone(tool: Copytool, job: Path) -> None:
    name = new_name()
    (job / "h.root").write_bytes(DATA)
    output = OutputFile("h.root", job / "h.root", None, None, [Destination(RSE, rucio_url(name))])
    assert StageOutClient([tool]).stage_out([output])[0].ok
    wanted = InputFile(f"{SCOPE}:{name}", len(DATA), None, [Replica(RSE, rucio_url(name))])
    result = StageInClient([tool]).stage_in([wanted], into=job / "in")[0]
    assert result.path is not None and result.path.read_bytes() == DATA


# --- what needs no server


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("rucio://CERN_DISK/mc/f.root", ("mc", "f.root")),
        ("rucio://CERN_DISK/mc/7/9/7.9.f.root", ("mc", "7.9.f.root")),
        ("rucio://CERN_DISK/user.me:f%2Bg.root", ("user.me", "f+g.root")),
    ],
)
def test_urls_of_rucio(url: str, place: tuple[str, str]) -> None:
    found = Place.parse(url, "", Direction.OUT)
    assert (found.rse, (found.scope, found.name)) == ("CERN_DISK", place)


@pytest.mark.parametrize(
    "url", ["rucio://", "rucio://DISK", "rucio://DISK/scope", "rucio:///mc/f", "rucio://D/s/%2e%2e/f"]
)
def test_urls_that_name_no_file(url: str) -> None:
    with pytest.raises(PilotageError) as error:
        Place.parse(url, "mc:f", Direction.IN)
    assert error.value.code is ErrorCode.STAGE_IN_FAILED


def test_without_configuration_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUCIO_CONFIG", raising=False)
    monkeypatch.setenv("RUCIO_HOME", "/nonexistent")
    with pytest.raises(PilotageError, match="name one with the option config") as error:
        load_copytool("rucio")
    assert error.value.code is ErrorCode.BAD_CONFIGURATION


def test_without_clients_it_says_so() -> None:
    with pytest.raises(PilotageError, match="install the extra 'rucio'") as error:
        load_copytool("rucio", host="http://localhost", python="/usr/bin/false")
    assert error.value.code is ErrorCode.MIDDLEWARE_IMPORT_FAILED


def test_table_of_exceptions() -> None:
    rucio_exception = pytest.importorskip("rucio.common.exception")
    others = {"ConnectionError", "ConnectTimeout", "ReadTimeout", "SSLError", "ModuleNotFoundError", "ImportError"}
    ours = {"DownloadFAIL_VALIDATE", "DownloadFILE_NOT_FOUND"}
    assert {name for name in EXCEPTIONS if not hasattr(rucio_exception, name)} == others | ours
    for name in EXCEPTIONS:
        for direction in Direction:
            assert exception_code(name, "", direction) in ERRORS


@pytest.mark.parametrize(
    ("name", "message", "direction", "code"),
    [
        ("NoFilesUploaded", "[Errno 28] No space left on device", Direction.OUT, ErrorCode.NO_REMOTE_SPACE),
        ("DownloadFAILED", "[Errno 28] No space left on device", Direction.IN, ErrorCode.NO_LOCAL_SPACE),
        ("DownloadFAILED", "Source file not found.", Direction.IN, ErrorCode.NO_SUCH_FILE),
        ("NoFilesUploaded", "Permission denied", Direction.OUT, ErrorCode.STAGE_OUT_AUTHENTICATION),
        ("ServiceUnavailable", "Connection refused", Direction.OUT, ErrorCode.SERVICE_UNAVAILABLE),
        ("RucioException", "Checksum mismatch", Direction.OUT, ErrorCode.PUT_ADLER32_MISMATCH),
        ("SomethingNew", "", Direction.IN, ErrorCode.STAGE_IN_FAILED),
    ],
)
def test_what_the_words_say(name: str, message: str, direction: Direction, code: ErrorCode) -> None:
    assert exception_code(name, message, direction) is code
