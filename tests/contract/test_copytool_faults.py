"""What can go wrong on the way to a storage, for every copytool that goes over a network: behind a faulty line."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional

import pytest

from common.errors import ErrorCode
from pilot.copytool import Copytool, TransferOutcome, load_copytool
from pilot.staging_rounds import TRANSIENT
from tests.contract.storages import Storage
from tests.contract.storages_http import HttpStorage, S3Storage, s3_tool
from tests.contract.test_copytools import DATA, NEVER, Interference, XrootdStorage, code_of, names, transfer
from tests.services.base import wait_until
from tests.services.faulty_proxy import FaultyProxy

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
ADLER32 = f"adler32:{zlib.adler32(DATA):08x}"
#: Those of the tools http and s3; the client of XRootD has ways of its own, and half a minute of patience.
OURS = ["real_webdav", "real_xrootd_https", "real_s3"]


class Faulty(NamedTuple):
    """A storage, a tool and URLs that go to it through a faulty line."""

    name: str
    storage: Storage
    line: FaultyProxy
    tool: Copytool

    def url(self, name: str) -> str:
        """The URL of a file, through the line."""
        return re.sub(r"(localhost):\d+", rf"\1:{self.line.port}", self.storage.url(name))

    def copy_in(self, path: Path, *, timeout_s: float = 30.0, cancel: threading.Event = NEVER) -> TransferOutcome:
        """Fetch the file ``f``."""
        request = transfer(self.url("f"), path, size=len(DATA), checksum=ADLER32, timeout_s=timeout_s)
        return self.tool.copy_in([request], cancel=cancel)[0]

    def copy_out(self, path: Path, *, timeout_s: float = 30.0, cancel: threading.Event = NEVER) -> TransferOutcome:
        """Store the file ``f``."""
        return self.tool.copy_out([transfer(self.url("f"), path, timeout_s=timeout_s)], cancel=cancel)[0]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The job's folder."""
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


@pytest.fixture(params=[*OURS, "real_xrootd"])
def faulty(request: pytest.FixtureRequest) -> Iterator[Faulty]:
    """Each storage that is reached over a network, behind a line of its own."""
    get = request.getfixturevalue
    if request.param == "real_s3":
        server = get("s3")
        with FaultyProxy(server.port) as line:
            yield Faulty(request.param, S3Storage(server, line), line, s3_tool(line.address))
        return
    if request.param == "real_xrootd":
        server = get("xrootd")
        storage: Storage = XrootdStorage(server)
        port = server.port
    elif request.param == "real_webdav":
        server = get("webdav")
        storage, port = HttpStorage(server, server.url), server.port
    else:
        server = get("xrootd_http")
        storage = HttpStorage(server, server.https_url, ca=str(get("authority").folder))
        port = server.https_port
    with FaultyProxy(port) as line:
        yield Faulty(request.param, storage, line, storage.tool)


def timed(act: Callable[[], TransferOutcome]) -> tuple[TransferOutcome, float]:
    begun = time.monotonic()
    return act(), time.monotonic() - begun


# --- the line


def test_download_goes_on_after_a_cut(faulty: Faulty, job: Path) -> None:
    faulty.storage.put("f", DATA)
    faulty.line.down.cut_after, faulty.line.down.times = 2 * MIB, 1
    outcome = faulty.copy_in(job / "f")
    assert (code_of(outcome), outcome.size) == (None, len(DATA))
    assert (job / "f").read_bytes() == DATA
    assert faulty.line.connections >= 2
    if faulty.name != "real_xrootd":  # whose client starts anew
        assert faulty.line.down.passed < len(DATA) + MIB, "what had arrived was fetched again"


def test_line_that_never_brings_a_byte_of_the_file(faulty: Faulty, job: Path) -> None:
    faulty.storage.put("f", DATA)
    faulty.line.down.cut_after = 0
    outcome = faulty.copy_in(job / "f")
    assert outcome.error is not None and outcome.error.code in TRANSIENT
    assert names(job) == set()


@pytest.mark.parametrize("faulty", OURS, indirect=True)
def test_upload_that_is_cut_leaves_nothing(faulty: Faulty, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    faulty.line.up.cut_after = MIB
    outcome = faulty.copy_out(job / "f")
    assert outcome.error is not None and outcome.error.code in TRANSIENT
    assert faulty.storage.names() == set()


def test_upload_that_was_cut_can_be_repeated(faulty: Faulty, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    faulty.line.up.cut_after, faulty.line.up.times = MIB, 1
    outcomes = [faulty.copy_out(job / "f"), faulty.copy_out(job / "f")]
    assert outcomes[-1].ok, outcomes
    assert faulty.storage.path("f").read_bytes() == DATA


def test_stalled_download_ends_in_time(faulty: Faulty, job: Path) -> None:
    faulty.storage.put("f", DATA)
    faulty.line.down.stall_after = MIB
    outcome, seconds = timed(lambda: faulty.copy_in(job / "f", timeout_s=1.0))
    assert code_of(outcome) is ErrorCode.STAGE_IN_TIMEOUT
    assert seconds < 40
    assert names(job) == set() if faulty.tool.name == "http" else not (job / "f").exists()


def test_stalled_upload_ends_in_time(faulty: Faulty, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    faulty.line.up.stall_after = MIB
    outcome, seconds = timed(lambda: faulty.copy_out(job / "f", timeout_s=1.0))
    assert code_of(outcome) is ErrorCode.STAGE_OUT_TIMEOUT
    assert seconds < 40
    assert "f" not in faulty.storage.names()


@pytest.mark.parametrize("way", ["in", "out"])
def test_cancel_while_nothing_moves(faulty: Faulty, job: Path, way: str) -> None:
    faulty.storage.put("f", DATA) if way == "in" else (job / "f").write_bytes(DATA)
    passing = faulty.line.down if way == "in" else faulty.line.up
    passing.stall_after = MIB
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(faulty.copy_in if way == "in" else faulty.copy_out, job / "f", cancel=cancel)
        wait_until(lambda: passing.passed > MIB // 2, "the transfer is under way")
        cancel.set()
        cancelled_at = time.monotonic()
        outcome = running.result(timeout=120)
    assert time.monotonic() - cancelled_at < 30
    assert code_of(outcome) is (ErrorCode.STAGE_IN_FAILED if way == "in" else ErrorCode.STAGE_OUT_FAILED)
    assert outcome.error is not None and "cancelled" in outcome.error.detail
    if faulty.tool.name == "http":  # whose sockets are cut; the others let their libraries' calls run out
        assert names(job) == (set() if way == "in" else {"f"})


def test_slow_line_is_only_slow(faulty: Faulty, job: Path) -> None:
    faulty.storage.put("f", DATA)
    faulty.line.down.rate = 6e6
    outcome, seconds = timed(lambda: faulty.copy_in(job / "f"))
    assert code_of(outcome) is None
    assert seconds > 0.3


def test_silent_storage_is_left_after_the_stall_time(request: pytest.FixtureRequest, job: Path) -> None:
    """Long before the transfer's own time is over; http and s3 have an option for it."""
    get = request.getfixturevalue
    storage = HttpStorage(get("webdav"), get("webdav").url, stall_s=0.5)
    storage.put("f", DATA)
    with FaultyProxy(get("webdav").port) as line:
        faulty = Faulty("real_webdav", storage, line, storage.tool)
        line.down.stall_after = MIB
        fetched, seconds = timed(lambda: faulty.copy_in(job / "f", timeout_s=60))
    assert code_of(fetched) is ErrorCode.STAGE_IN_TIMEOUT
    assert seconds < 40


def test_what_has_no_version_is_not_put_together_from_two(request: pytest.FixtureRequest, job: Path) -> None:
    """XRootD names no version of a file: without a checksum, a second part could be another file's."""
    server = request.getfixturevalue("xrootd_http")
    storage = HttpStorage(server, server.https_url, ca=str(request.getfixturevalue("authority").folder))
    storage.put("f", DATA)
    with FaultyProxy(server.https_port) as line:
        line.down.cut_after, line.down.times = 2 * MIB, 1
        url = Faulty("", storage, line, storage.tool).url("f")
        outcome = storage.tool.copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.SERVICE_UNAVAILABLE
    assert names(job) == set()


def test_a_file_that_changed_meanwhile_is_fetched_anew(request: pytest.FixtureRequest, job: Path) -> None:
    server = request.getfixturevalue("webdav")
    storage = HttpStorage(server, server.url)
    storage.put("f", DATA)
    other = DATA[::-1] + b"longer"
    with FaultyProxy(server.port) as line:
        line.down.cut_after, line.down.times = 2 * MIB, 1
        faulty = Faulty("", storage, line, storage.tool)
        replaced = Interference(lambda: line.down.times == 0, lambda: storage.put("f", other))
        outcome = storage.tool.copy_in([transfer(faulty.url("f"), job / "f")], cancel=replaced)[0]
    assert replaced.done
    assert code_of(outcome) is None
    assert (job / "f").read_bytes() == other


# --- this machine


def test_full_local_disk(faulty: Faulty, tmp_path: Path) -> None:
    """A disk of one megabyte; where this user may mount none, a limit on the size of files."""
    faulty.storage.put("f", DATA)
    small = tmp_path / "small"
    small.mkdir()
    with small_disk(small) as mounted:
        if mounted:
            outcome = faulty.copy_in(small / "f")
            assert code_of(outcome) is ErrorCode.NO_LOCAL_SPACE
        else:
            assert in_a_child_with_small_files(faulty, small / "f") == "NO_LOCAL_SPACE"
        assert names(small) == set()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def in_a_child_with_small_files(faulty: Faulty, path: Path) -> str:
    script = (
        "import resource, sys, threading; from pathlib import Path\n"
        "from pilot.copytool import TransferRequest, load_copytool\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1048576, 1048576))\n"
        "request = TransferRequest(sys.argv[2], Path(sys.argv[3]), None, None, 'f', 30.0)\n"
        "print(load_copytool(sys.argv[1]).copy_in([request], cancel=threading.Event())[0].error.code.name)\n"
    )
    words = [sys.executable, "-c", script, faulty.tool.name, faulty.storage.url("f"), str(path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


# --- nobody there


@pytest.mark.parametrize("tool", ["http", "s3"])
@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost:9", ErrorCode.SERVICE_UNAVAILABLE),
        ("no-such-host.invalid:443", ErrorCode.NETWORK_UNREACHABLE),
    ],
)
def test_nobody_there_costs_seconds(
    job: Path, tool: str, host: str, code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    scheme: Optional[str] = "davs" if tool == "http" else "s3"
    outcome = load_copytool(tool).copy_in([transfer(f"{scheme}://{host}/bucket/f", job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is code
    assert outcome.seconds < 8
