"""The contract of all copytools, on real storages; a new copytool adds a storage here and passes the same tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional
from urllib.parse import quote

import pytest

from common.checksums import file_checksum
from common.errors import ErrorCode, PilotageError
from pilot.copytool import TransferOutcome, TransferRequest, load_copytool
from pilot.copytool.base import part_name
from tests.contract.storages import LARGE, Storage
from tests.contract.storages_http import HTTP_STORAGES, NOT_IN_A_STORE
from tests.contract.storages_other import OTHER_STORAGES
from tests.contract.storages_secure import SECURE_STORAGES
from tests.services.base import free_port, require, wait_until
from tests.services.xrootd import XrootdServer, install

ROOT = Path(__file__).parents[2]
DATA = bytes(range(256)) * 12_289  # 3 MiB and a bit: several chunks, no round number
NEVER = threading.Event()


class FileStorage(Storage):
    """A mounted disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tool = load_copytool("file")

    def url(self, name: str) -> str:
        return self.path(name).as_uri()

    def path(self, name: str) -> Path:
        return self.folder / name

    def own(self, path: Path) -> None:
        """Ours already."""

    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(before)


class XrootdStorage(Storage):
    """A folder of an XRootD server."""

    def __init__(self, server: XrootdServer) -> None:
        self.server = server
        self.folder = f"/{uuid.uuid4().hex}"
        server.local_path(self.folder).mkdir()
        self.own(server.local_path(self.folder))
        self.tool = load_copytool("xrootd")

    def url(self, name: str) -> str:
        return f"{self.server.url}{self.folder}/{quote(name)}"

    def path(self, name: str) -> Path:
        return self.server.local_path(f"{self.folder}/{name}")

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, "xrootd", "xrootd")

    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        yield  # the server is one


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder that every user may enter (pytest's own are for this user only)."""
    folder = Path(tempfile.mkdtemp(prefix="pilotage-copytools-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


STORAGES = ["file", "real_xrootd", *HTTP_STORAGES, *OTHER_STORAGES, *SECURE_STORAGES]
#: Tests of what a storage has not; for a site's own commands, which do it all in one step, tests/contract/test_lsm.py has them.
NOT_FOR = {
    "real_s3": NOT_IN_A_STORE,
    "lsm": {"test_a_twin_that_was_quicker_is_not_overwritten", "test_storage_that_damages_what_it_stores"},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test with every storage that has what it is about."""
    if "storage" in metafunc.fixturenames:
        test = metafunc.function.__name__
        suited = [name for name in STORAGES if test not in NOT_FOR.get(name, set())]
        metafunc.parametrize("storage", suited, indirect=True)


@pytest.fixture
def storage(request: pytest.FixtureRequest, work: Path) -> Storage:
    """Each storage in turn."""
    if request.param in OTHER_STORAGES:
        return OTHER_STORAGES[request.param](request)
    if request.param in SECURE_STORAGES:
        return SECURE_STORAGES[request.param](request)
    if request.param in HTTP_STORAGES:
        return HTTP_STORAGES[request.param](request)
    if request.param == "real_xrootd":
        return XrootdStorage(request.getfixturevalue("xrootd"))
    (work / "storage").mkdir()
    return FileStorage(work / "storage")


@pytest.fixture
def job(work: Path) -> Path:
    """The job's folder."""
    (work / "job").mkdir()
    return work / "job"


def transfer(
    url: str, path: Path, *, size: Optional[int] = None, checksum: Optional[str] = None, timeout_s: float = 60.0
) -> TransferRequest:
    return TransferRequest(url, path, size, checksum, f"test:{path.name}", timeout_s)


def code_of(outcome: TransferOutcome) -> Optional[ErrorCode]:
    assert outcome.ok == (outcome.error is None)
    return outcome.error.code if outcome.error else None


def copy_in(storage: Storage, request: TransferRequest, cancel: threading.Event = NEVER) -> TransferOutcome:
    outcomes = storage.tool.copy_in([request], cancel=cancel)
    assert [outcome.request for outcome in outcomes] == [request]
    return outcomes[0]


def copy_out(storage: Storage, request: TransferRequest, cancel: threading.Event = NEVER) -> TransferOutcome:
    outcomes = storage.tool.copy_out([request], cancel=cancel)
    assert [outcome.request for outcome in outcomes] == [request]
    return outcomes[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bytes_arrive(folder: Path) -> Callable[[], bool]:
    """A condition: a transfer into this folder is under way."""

    def arrived() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(path.name.endswith(".part") and path.stat().st_size > 0 for path in folder.iterdir())
        return False

    return arrived


def large_output(job: Path) -> Path:
    with (job / "large.root").open("wb") as stream:
        stream.truncate(LARGE)
    return job / "large.root"


# --- the way it should be


@pytest.mark.parametrize("algorithm", ["adler32", "md5", "sha256"])
def test_round_trip(storage: Storage, job: Path, algorithm: str) -> None:
    (job / "out.root").write_bytes(DATA)
    checksum = str(file_checksum(job / "out.root", algorithm))
    request = transfer(storage.url("f.root"), job / "out.root", size=len(DATA), checksum=checksum)
    stored = copy_out(storage, request)
    assert (code_of(stored), stored.size, stored.checksum, stored.attempts) == (None, len(DATA), checksum, 1)
    assert stored.seconds > 0
    assert storage.path("f.root").read_bytes() == DATA
    fetched = copy_in(storage, transfer(request.url, job / "in.root", size=len(DATA), checksum=checksum))
    assert (code_of(fetched), fetched.size, fetched.checksum) == (None, len(DATA), checksum)
    assert (job / "in.root").read_bytes() == DATA
    assert storage.names() == {"f.root"}
    assert names(job) == {"out.root", "in.root"}


def test_nothing_recorded_gives_adler32(storage: Storage, job: Path) -> None:
    fetched = copy_in(storage, transfer(storage.put("f", b"Wikipedia"), job / "f"))
    assert (code_of(fetched), fetched.size, fetched.checksum) == (None, 9, "adler32:11e60398")


def test_empty_file(storage: Storage, job: Path) -> None:
    (job / "out").touch()
    stored = copy_out(storage, transfer(storage.url("empty"), job / "out", size=0, checksum="adler32:00000001"))
    assert (code_of(stored), stored.size, stored.checksum) == (None, 0, "adler32:00000001")
    fetched = copy_in(storage, transfer(storage.url("empty"), job / "in", size=0, checksum="adler32:00000001"))
    assert (code_of(fetched), fetched.size) == (None, 0)
    assert (job / "in").read_bytes() == b""


@pytest.mark.parametrize(
    "name",
    [
        "two words.root",
        "müon 日本.root",
        "a#b%41&c=d+e;f.root",
        "50% off: ~me@here.root",
        "ends with a blank ",
        'it\'s "quoted".root',
        "-rf",
        "n" * 250,
    ],
)
def test_odd_names(storage: Storage, job: Path, name: str) -> None:
    folder = job / "odd? #folder%41 é"
    folder.mkdir()
    (folder / name).write_bytes(DATA)
    assert code_of(copy_out(storage, transfer(storage.url(name), folder / name))) is None
    assert storage.path(name).read_bytes() == DATA
    assert storage.tool.exists(storage.url(name))
    (folder / name).unlink()
    assert code_of(copy_in(storage, transfer(storage.url(name), folder / name))) is None
    assert (folder / name).read_bytes() == DATA
    assert storage.tool.remove([storage.url(name)], cancel=NEVER) == [None]
    assert storage.names() == set()


@pytest.mark.parametrize("climb", ["..", "%2e%2e", "%2E.", "new/..%2F.."])
def test_encoded_dots_do_not_leave_the_storage(storage: Storage, job: Path, climb: str) -> None:
    """A bug: the server looked for '..' before the copytool decoded the path."""
    (job / "out").write_bytes(DATA)
    storage.path("folder").mkdir()
    storage.own(storage.path("folder"))
    outside = storage.put("outside", DATA)
    url = f"{storage.url('folder')}/{climb}/outside"
    outcomes = [copy_in(storage, transfer(url, job / "in")), copy_out(storage, transfer(url + "2", job / "out"))]
    assert [code_of(outcome) for outcome in outcomes] == [ErrorCode.STAGE_IN_FAILED, ErrorCode.STAGE_OUT_FAILED]
    removal = storage.tool.remove([url], cancel=NEVER)[0]
    for error in [*(outcome.error for outcome in outcomes), removal]:
        assert error is not None and "'..' in the path" in error.detail
    with pytest.raises(PilotageError, match="'..' in the path"):
        storage.tool.exists(url)
    assert storage.tool.exists(outside) and storage.names() == {"folder", "outside"}


def test_a_name_that_only_looks_like_dots_is_a_name(storage: Storage, job: Path) -> None:
    url = storage.put("..a%2e%2e..", DATA)
    assert code_of(copy_in(storage, transfer(url, job / "f"))) is None


def test_folders_are_made(storage: Storage, job: Path) -> None:
    (job / "out").write_bytes(DATA)
    assert code_of(copy_out(storage, transfer(storage.url("new/deep/f"), job / "out"))) is None
    assert code_of(copy_in(storage, transfer(storage.url("new/deep/f"), job / "sub" / "deep" / "in"))) is None
    assert (job / "sub" / "deep" / "in").read_bytes() == DATA


def test_bulk_gives_an_outcome_for_each_in_order(storage: Storage, job: Path) -> None:
    requests = [transfer(storage.put(f"f{i}", b"%d" % i), job / f"f{i}") for i in range(4)]
    storage.path("f1").unlink()
    outcomes = storage.tool.copy_in(requests, cancel=NEVER)
    assert [outcome.request for outcome in outcomes] == requests
    assert [code_of(outcome) for outcome in outcomes] == [None, ErrorCode.NO_SUCH_FILE, None, None]
    assert storage.tool.copy_in([], cancel=NEVER) == []


def test_parallel_transfers_with_one_tool(storage: Storage, job: Path) -> None:
    def round_trip(number: int) -> Optional[ErrorCode]:
        (job / f"out{number}").write_bytes(DATA + b"%d" % number)
        stored = copy_out(storage, transfer(storage.url(f"same/new/folder/f{number}"), job / f"out{number}"))
        fetched = copy_in(storage, transfer(storage.url(f"same/new/folder/f{number}"), job / f"in{number}"))
        return code_of(stored) or code_of(fetched)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(round_trip, range(16))) == [None] * 16
    assert all((job / f"in{i}").read_bytes() == DATA + b"%d" % i for i in range(16))


def test_existing_local_file_is_replaced(storage: Storage, job: Path) -> None:
    (job / "f").write_bytes(b"of an earlier try")
    assert code_of(copy_in(storage, transfer(storage.put("f", DATA), job / "f"))) is None
    assert (job / "f").read_bytes() == DATA


def test_exists_and_remove(storage: Storage) -> None:
    url = storage.put("f", DATA)
    assert storage.tool.exists(url)
    assert not storage.tool.exists(storage.url("absent"))
    assert not storage.tool.exists(storage.url("absent/folder/f"))
    assert storage.tool.remove([url, storage.url("absent"), url], cancel=NEVER) == [None, None, None]
    assert not storage.tool.exists(url)


def test_remove_takes_along_what_a_killed_pilot_left(storage: Storage) -> None:
    """A bug: the sweep removed recorded names, and what had never got its name stayed for ever."""
    url = storage.put("f", DATA)
    left, others = part_name("f"), part_name("another")
    storage.put(left, DATA[:1000])
    storage.put(others, DATA[:1000])
    assert left != part_name("f"), "two transfers of one name share a temporary file"
    assert storage.tool.remove([url], cancel=NEVER) == [None]
    assert storage.names() == {others}
    storage.put(left, DATA[:1000])
    assert storage.tool.remove([url], cancel=NEVER) == [None], "the file itself never came to be"
    assert storage.names() == {others}


# --- wrong content


@pytest.mark.parametrize(
    ("checksum", "code"),
    [
        ("adler32:00000002", ErrorCode.GET_ADLER32_MISMATCH),
        ("ad:2", ErrorCode.GET_ADLER32_MISMATCH),
        ("md5:" + 32 * "0", ErrorCode.GET_MD5_MISMATCH),
        ("sha256:" + 64 * "0", ErrorCode.GET_ADLER32_MISMATCH),
        ("crc32:00000000", ErrorCode.UNKNOWN_CHECKSUM_TYPE),
    ],
)
def test_checksum_mismatch_on_the_way_in(storage: Storage, job: Path, checksum: str, code: ErrorCode) -> None:
    assert code_of(copy_in(storage, transfer(storage.put("f", DATA), job / "f", checksum=checksum))) is code
    assert names(job) == set()


def test_size_mismatch_on_the_way_in(storage: Storage, job: Path) -> None:
    outcome = copy_in(storage, transfer(storage.put("f", DATA), job / "f", size=len(DATA) + 1))
    assert code_of(outcome) is ErrorCode.GET_ADLER32_MISMATCH
    assert outcome.error is not None and f"{len(DATA)} bytes" in outcome.error.detail
    assert names(job) == set()


def test_mismatch_leaves_the_earlier_local_file(storage: Storage, job: Path) -> None:
    (job / "f").write_bytes(b"earlier")
    assert not copy_in(storage, transfer(storage.put("f", DATA), job / "f", checksum="adler32:2")).ok
    assert (job / "f").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("checksum", "code"),
    [("adler32:00000002", ErrorCode.PUT_ADLER32_MISMATCH), ("md5:" + 32 * "0", ErrorCode.PUT_MD5_MISMATCH)],
)
def test_checksum_mismatch_on_the_way_out(storage: Storage, job: Path, checksum: str, code: ErrorCode) -> None:
    (job / "f").write_bytes(DATA)
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f", checksum=checksum))) is code
    assert storage.names() == set()


# --- missing, forbidden, taken


def test_missing_file(storage: Storage, job: Path) -> None:
    assert code_of(copy_in(storage, transfer(storage.url("no/such/f"), job / "f"))) is ErrorCode.NO_SUCH_FILE
    assert names(job) == set()


def test_folder_instead_of_a_file(storage: Storage, job: Path) -> None:
    storage.path("folder").mkdir()
    storage.own(storage.path("folder"))
    assert code_of(copy_in(storage, transfer(storage.url("folder"), job / "f"))) is ErrorCode.NO_SUCH_FILE
    assert names(job) == set()


def test_no_permission_to_read(storage: Storage, job: Path) -> None:
    job.chmod(0o777)
    url = storage.put("f", DATA)
    storage.path("f").chmod(0)
    with storage.ordinary_user():
        outcome = copy_in(storage, transfer(url, job / "f"))
    assert code_of(outcome) is ErrorCode.STAGE_IN_AUTHENTICATION
    assert names(job) == set()


def test_no_permission_to_write(storage: Storage, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    storage.path("closed").mkdir()
    storage.own(storage.path("closed"))
    storage.path("closed").chmod(0o500)
    with storage.ordinary_user():
        outcome = copy_out(storage, transfer(storage.url("closed/f"), job / "f"))
    assert code_of(outcome) is ErrorCode.STAGE_OUT_AUTHENTICATION
    assert names(storage.path("closed")) == set()


def test_existing_destination_with_other_content_is_left_alone(storage: Storage, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    for other in (b"of a winner", DATA[:-1] + b"x"):
        url = storage.put("f", other)
        assert code_of(copy_out(storage, transfer(url, job / "f"))) is ErrorCode.FILE_EXISTS
        assert storage.path("f").read_bytes() == other
        assert storage.names() == {"f"}


def test_repeat_after_a_lost_reply_is_success(storage: Storage, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    first = copy_out(storage, transfer(storage.url("f"), job / "f"))
    written = storage.path("f").stat().st_mtime_ns
    again = copy_out(storage, transfer(storage.url("f"), job / "f"))
    assert (code_of(again), again.size, again.checksum) == (None, first.size, first.checksum)
    assert storage.path("f").stat().st_mtime_ns == written


def test_missing_output(storage: Storage, job: Path) -> None:
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f"))) is ErrorCode.MISSING_OUTPUT


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_regular_files_are_uploaded(storage: Storage, job: Path, kind: str) -> None:
    if kind == "link":
        (job / "token").write_text("secret")
        (job / "f").symlink_to(job / "token")
    elif kind == "pipe":
        os.mkfifo(job / "f")
    else:
        (job / "f").mkdir()
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f"))) is ErrorCode.OUTPUT_NOT_REGULAR
    assert storage.names() == set()


# --- cancelled, late


def test_cancelled_before_it_began(storage: Storage, job: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    (job / "out").write_bytes(DATA)
    url = storage.put("f", DATA)
    assert code_of(copy_in(storage, transfer(url, job / "f"), cancel)) is ErrorCode.STAGE_IN_FAILED
    assert code_of(copy_out(storage, transfer(storage.url("g"), job / "out"), cancel)) is ErrorCode.STAGE_OUT_FAILED
    assert [error and error.code for error in storage.tool.remove([url], cancel=cancel)] == [ErrorCode.STAGE_OUT_FAILED]
    assert (names(job), storage.names()) == ({"out"}, {"f"})


def cancel_when(condition: Callable[[], bool], begin: Callable[[threading.Event], TransferOutcome]) -> TransferOutcome:
    """Begin a transfer, cancel it once the condition holds, and demand that it ends soon after."""
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(begin, cancel)
        wait_until(condition, "the transfer is under way")  # some read the file for its checksum first
        cancel.set()
        cancelled_at = time.monotonic()
        outcome = running.result(timeout=120)
    assert time.monotonic() - cancelled_at < 30
    return outcome


def test_cancel_in_the_middle_of_stage_in(storage: Storage, job: Path) -> None:
    url = storage.put_large("large")
    outcome = cancel_when(bytes_arrive(job), lambda cancel: copy_in(storage, transfer(url, job / "f"), cancel))
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "cancelled" in outcome.error.detail
    assert names(job) == set()


def test_cancel_in_the_middle_of_stage_out(storage: Storage, job: Path) -> None:
    request = transfer(storage.url("f"), large_output(job))
    outcome = cancel_when(bytes_arrive(storage.path("f").parent), lambda cancel: copy_out(storage, request, cancel))
    assert code_of(outcome) is ErrorCode.STAGE_OUT_FAILED
    assert outcome.error is not None and "cancelled" in outcome.error.detail
    assert storage.names() == set()


def test_stage_in_that_takes_too_long(storage: Storage, job: Path) -> None:
    outcome = copy_in(storage, transfer(storage.put_large("large"), job / "f", timeout_s=0.3))
    assert code_of(outcome) is ErrorCode.STAGE_IN_TIMEOUT
    assert outcome.seconds < 3
    assert names(job) == set()


def test_stage_out_that_takes_too_long(storage: Storage, job: Path) -> None:
    outcome = copy_out(storage, transfer(storage.url("f"), large_output(job), timeout_s=0.3))
    assert code_of(outcome) is ErrorCode.STAGE_OUT_TIMEOUT
    assert outcome.seconds < 3
    assert storage.names() == set()


# --- somebody else at the same time


class Interference(threading.Event):
    """A cancel event that is never set, but does something once when it is asked and a condition holds."""

    def __init__(self, condition: Callable[[], bool], act: Callable[[], object]) -> None:
        super().__init__()
        self.done = False
        self._condition = condition
        self._act = act

    def is_set(self) -> bool:
        if not self.done and self._condition():
            self.done = True
            self._act()
        return False


def test_a_twin_that_was_quicker_is_not_overwritten(storage: Storage, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    folder = storage.path("f").parent
    twin = Interference(bytes_arrive(folder), lambda: storage.put("f", b"of a winner"))
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f"), twin)) is ErrorCode.FILE_EXISTS
    assert twin.done
    assert storage.path("f").read_bytes() == b"of a winner"
    assert storage.names() == {"f"}


def test_storage_that_damages_what_it_stores(storage: Storage, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    folder = storage.path("f").parent

    def part() -> Path:
        return next(path for path in folder.iterdir() if path.name.endswith(".part"))

    def damage() -> None:
        with part().open("r+b") as stream:
            stream.seek(1_000_000)
            stream.write(b"damage")

    whole = Interference(lambda: bytes_arrive(folder)() and part().stat().st_size == len(DATA), damage)
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f"), whole)) is ErrorCode.PUT_ADLER32_MISMATCH
    assert whole.done
    assert storage.names() == set()


# --- the file copytool's modes


def test_file_link_leaves_the_data_where_it_is(job: Path, work: Path) -> None:
    tool = load_copytool("file", mode_in="link")
    (work / "f").write_bytes(DATA)
    (job / "f").write_bytes(b"earlier")
    outcome = tool.copy_in([transfer(str(work / "f"), job / "f", size=len(DATA))], cancel=NEVER)[0]
    assert code_of(outcome) is None and tool.links_input
    assert (job / "f").readlink() == work / "f"
    wrong = tool.copy_in([transfer(str(work / "f"), job / "g", checksum="adler32:2")], cancel=NEVER)[0]
    assert code_of(wrong) is ErrorCode.GET_ADLER32_MISMATCH
    assert names(job) == {"f"}


@pytest.mark.parametrize("other_disk", [False, True])
def test_file_move_takes_the_output_away(job: Path, work: Path, other_disk: bool) -> None:
    tool = load_copytool("file", mode_out="move")
    target = Path(tempfile.mkdtemp(dir="/dev/shm" if other_disk else work))
    try:
        (job / "f").write_bytes(DATA)
        checksum = str(file_checksum(job / "f"))
        request = transfer(str(target / "f"), job / "f", size=len(DATA), checksum=checksum)
        assert code_of(tool.copy_out([request], cancel=NEVER)[0]) is None
        assert ((target / "f").read_bytes(), names(job)) == (DATA, set())
        assert code_of(tool.copy_out([request], cancel=NEVER)[0]) is None  # the reply was lost
        (job / "f").write_bytes(b"other")
        assert (
            code_of(tool.copy_out([transfer(str(target / "f"), job / "f")], cancel=NEVER)[0]) is ErrorCode.FILE_EXISTS
        )
        assert ((target / "f").read_bytes(), names(job), names(target)) == (DATA, {"f"}, {"f"})
    finally:
        shutil.rmtree(target)


@pytest.mark.parametrize("url", ["relative/f", "file:relative/f", "file://elsewhere/f", "file:///a%00b"])
def test_file_urls_that_mean_no_place_here(job: Path, url: str) -> None:
    outcome = load_copytool("file").copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "write file:///absolute/path" in outcome.error.detail


# --- an XRootD server that misbehaves


@pytest.fixture
def fragile(services_folder: Path) -> Iterator[XrootdStorage]:
    """An XRootD server of the test's own, to stop and kill."""
    require(install)
    server = XrootdServer(services_folder / f"fragile-{uuid.uuid4().hex}")
    server.start()
    try:
        yield XrootdStorage(server)
    finally:
        with contextlib.suppress(ProcessLookupError):
            if server.running:
                os.kill(server.pid, signal.SIGCONT)
        server.stop()


def test_real_xrootd_refused_connection_costs_seconds(job: Path) -> None:
    tool = load_copytool("xrootd")
    (job / "out").write_bytes(DATA)
    url = f"root://localhost:{free_port()}//f"
    fetched = tool.copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    stored = tool.copy_out([transfer(url, job / "out")], cancel=NEVER)[0]
    assert code_of(fetched) is code_of(stored) is ErrorCode.SERVICE_UNAVAILABLE
    assert fetched.seconds + stored.seconds < 60
    assert names(job) == {"out"}


def test_real_xrootd_unknown_host(job: Path) -> None:
    outcome = load_copytool("xrootd").copy_in([transfer("root://no-such-host.invalid//f", job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.NETWORK_UNREACHABLE


@pytest.mark.parametrize("url", ["root://", "root://localhost", "root://localhost//"])
def test_real_xrootd_urls_without_a_file(job: Path, url: str) -> None:
    outcome = load_copytool("xrootd").copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "is no URL" in outcome.error.detail


@pytest.mark.parametrize("name", ["what%3Fauthz=x", "two%0Alines"])
def test_real_xrootd_names_that_it_cannot_carry(job: Path, name: str) -> None:
    """What is decoded would be read as the start of a query, or break the request."""
    outcome = load_copytool("xrootd").copy_in([transfer(f"root://localhost//{name}", job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "rename the file" in outcome.error.detail


def test_real_xrootd_server_killed_in_the_middle(fragile: XrootdStorage, job: Path) -> None:
    url = fragile.put_large("large")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(copy_in, fragile, transfer(url, job / "f"))
        wait_until(bytes_arrive(job), "the transfer is under way")
        os.kill(fragile.server.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        outcome = running.result(timeout=240)
    assert time.monotonic() - killed_at < 120
    assert code_of(outcome) is ErrorCode.SERVICE_UNAVAILABLE
    assert names(job) == set()
    fragile.server.stop()
    fragile.server.start()  # and it is used again at once
    assert code_of(copy_in(fragile, transfer(fragile.put("f", DATA), job / "f"))) is None


def test_real_xrootd_server_killed_during_stage_out(fragile: XrootdStorage, job: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(copy_out, fragile, transfer(fragile.url("f"), large_output(job)))
        wait_until(bytes_arrive(fragile.path("f").parent), "the transfer is under way")
        os.kill(fragile.server.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        outcome = running.result(timeout=240)
    assert time.monotonic() - killed_at < 120
    assert code_of(outcome) is ErrorCode.SERVICE_UNAVAILABLE
    assert "f" not in fragile.names()


def test_real_xrootd_stalled_server_is_left_on_cancel(fragile: XrootdStorage, job: Path) -> None:
    url = fragile.put_large("large")

    def stalled() -> bool:
        if bytes_arrive(job)():
            os.kill(fragile.server.pid, signal.SIGSTOP)
            return True
        return False

    outcome = cancel_when(stalled, lambda cancel: copy_in(fragile, transfer(url, job / "f"), cancel))
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert names(job) == set()


def test_real_xrootd_stalled_server_times_out(fragile: XrootdStorage, job: Path) -> None:
    (job / "out").write_bytes(DATA)
    url = fragile.put("f", DATA)
    os.kill(fragile.server.pid, signal.SIGSTOP)
    fetched = copy_in(fragile, transfer(url, job / "f", timeout_s=1))
    stored = copy_out(fragile, transfer(fragile.url("g"), job / "out", timeout_s=1))
    assert code_of(fetched) is ErrorCode.STAGE_IN_TIMEOUT
    assert code_of(stored) is ErrorCode.STAGE_OUT_TIMEOUT
    assert fetched.seconds < 30 and stored.seconds < 30
    assert names(job) == {"out"}


def test_real_xrootd_stalled_transfer_does_not_keep_the_process(fragile: XrootdStorage, job: Path) -> None:
    url = fragile.put("f", DATA)
    os.kill(fragile.server.pid, signal.SIGSTOP)
    script = (
        "import sys, threading; from pathlib import Path\n"
        "from pilot.copytool import TransferRequest, load_copytool\n"
        "request = TransferRequest(sys.argv[1], Path(sys.argv[2]), None, None, 'f', 1.0)\n"
        "print(load_copytool('xrootd').copy_in([request], cancel=threading.Event())[0].error.code.name)\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, url, str(job / "f")], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert (done.stdout.strip(), done.returncode) == ("STAGE_IN_TIMEOUT", 0), done.stderr
    assert time.monotonic() - begun < 50


@pytest.fixture
def forgetful(services_folder: Path) -> Iterator[XrootdStorage]:
    """An XRootD server that holds what a lost client did not close for a second only (ten minutes by default)."""
    require(install)
    server = XrootdServer(services_folder / f"forgetful-{uuid.uuid4().hex}", ["ofs.persist manual hold 1"])
    server.start()
    try:
        yield XrootdStorage(server)
    finally:
        server.stop()


def test_real_xrootd_server_drops_the_upload_of_a_pilot_that_died(forgetful: XrootdStorage, job: Path) -> None:
    storage = forgetful
    script = (
        "import sys, threading; from pathlib import Path\n"
        "from pilot.copytool import TransferRequest, load_copytool\n"
        "request = TransferRequest(sys.argv[1], Path(sys.argv[2]), None, None, 'f', 60.0)\n"
        "load_copytool('xrootd').copy_out([request], cancel=threading.Event())\n"
    )
    pilot = subprocess.Popen([sys.executable, "-c", script, storage.url("f"), str(large_output(job))], cwd=ROOT)
    try:
        wait_until(bytes_arrive(storage.path("f").parent), "the transfer is under way")
    finally:
        pilot.kill()
        pilot.wait()
    wait_until(lambda: storage.names() == set(), "the server drops the upload", 20)


def test_real_xrootd_many_checksums_are_not_sent_away_for_30_seconds(xrootd: XrootdServer, job: Path) -> None:
    """A server with more checksums to compute than its limit makes clients wait: so one process asks for few."""
    storage = XrootdStorage(xrootd)
    for path in [job / "f", *(storage.path(f"f{i}") for i in range(8))]:
        with path.open("wb") as stream:
            stream.truncate(200_000_000)
        storage.own(path)
    requests = [transfer(storage.url(f"f{i}"), job / "f") for i in range(8)]  # there already: only compared
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda request: copy_out(storage, request), requests))
    assert [code_of(outcome) for outcome in outcomes] == [None] * 8
    assert max(outcome.seconds for outcome in outcomes) < 20


def test_real_xrootd_damaged_replica_without_a_recorded_checksum(xrootd: XrootdServer, job: Path) -> None:
    """What the server remembers as checksum and what it sends differ: somebody must notice."""
    storage = XrootdStorage(xrootd)
    (job / "out").write_bytes(DATA)
    assert copy_out(storage, transfer(storage.url("f"), job / "out")).ok  # the server computes and keeps adler32
    path, kept = storage.path("f"), storage.path("f").stat()
    with path.open("r+b") as stream:
        stream.write(b"damage")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert code_of(copy_in(storage, transfer(storage.url("f"), job / "f"))) is ErrorCode.GET_ADLER32_MISMATCH
    assert names(job) == {"out"}


def test_real_xrootd_tokens_in_urls_are_not_told(
    xrootd: XrootdServer, job: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = XrootdStorage(xrootd)
    caplog.set_level("DEBUG")
    (job / "out").write_bytes(DATA)
    query = "?authz=Bearer%20s3cr3t"
    missing = copy_in(storage, transfer(storage.url("f") + query, job / "f"))
    assert code_of(missing) is ErrorCode.NO_SUCH_FILE and "s3cr3t" not in str(missing.error)
    assert copy_out(storage, transfer(storage.url("f") + query, job / "out")).ok
    assert copy_in(storage, transfer(storage.url("f") + query, job / "f")).ok
    assert storage.names() == {"f"}
    assert "s3cr3t" not in caplog.text
