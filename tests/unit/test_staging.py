"""The staging clients: which replica, which tool, how often, and what is said in the end."""

from __future__ import annotations

import doctest
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

import pilot.copytool
import pilot.copytool.base
import pilot.staging
import pilot.staging_names
from common.checksums import file_checksum
from common.errors import ErrorCode, PilotageError
from pilot.copytool import Copytool, TransferRequest, load_copytool
from pilot.copytool.base import Transferred
from pilot.staging import Backoff, Destination, InputFile, OutputFile, Replica, StageInClient, StageOutClient
from pilot.staging_names import local_names

AT_ONCE = Backoff(first_s=0.0)
CONTENT = b"Wikipedia"
ADLER32 = "adler32:11e60398"


class ScriptedTool(Copytool):
    """A copytool whose URLs say what happens: each call takes the next item of the URL's script, the last one for ever.

    An item is an error code, or ``None`` for success.
    """

    name = "scripted"
    schemes = frozenset({"fake"})

    def __init__(
        self, scripts: dict[str, list[Optional[ErrorCode]]], on_call: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.scripts = scripts
        self.calls: list[str] = []
        self.requests: list[TransferRequest] = []
        self._on_call = on_call
        self._lock = threading.Lock()

    def exists(self, url: str) -> bool:
        raise NotImplementedError

    def _next(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        with self._lock:
            script = self.scripts[request.url]
            code = script.pop(0) if len(script) > 1 else script[0]
            self.calls.append(request.url)
            self.requests.append(request)
        self._on_call()
        if code is not None:
            raise PilotageError(code, "as scripted")
        request.path.write_bytes(CONTENT)
        return Transferred(len(CONTENT), file_checksum(request.path))

    _fetch = _store = _next

    def _delete(self, url: str, cancel: threading.Event) -> None:
        self.calls.append(url)


class OtherTool(ScriptedTool):
    """A second tool for the same URLs."""

    name = "other"


def some_input(*urls: str, did: str = "test:f", size: Optional[int] = None) -> InputFile:
    return InputFile(did, size, None, [Replica(url.split("/")[2].upper(), url, n) for n, url in enumerate(urls)])


def some_output(path: Path, *urls: str) -> OutputFile:
    return OutputFile(path.name, path, None, None, [Destination(url.split("/")[2].upper(), url) for url in urls])


def stage_in(tools: list[Any], file: InputFile, into: Path, **options: Any) -> Any:
    return StageInClient(tools, backoff=AT_ONCE, **options).stage_in([file], into)[0]


def stored(folder: Path, name: str, content: bytes = CONTENT) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return f"file://{folder / name}"


# --- stage-in


def test_nearest_replica_first(tmp_path: Path) -> None:
    tool = ScriptedTool({f"fake://{storage}/f": [None] for storage in "abc"})
    replicas = [Replica("A", "fake://a/f", 50), Replica("B", "fake://b/f", 0), Replica("C", "fake://c/f", 101)]
    result = stage_in([tool], InputFile("test:f", 9, ADLER32, replicas), tmp_path / "new" / "job")
    assert (result.ok, result.storage, result.bytes) == (True, "B", 9)
    assert result.path == tmp_path / "new" / "job" / "f"
    assert tool.calls == ["fake://b/f"]


@pytest.mark.parametrize(
    "code",
    [ErrorCode.NO_SUCH_FILE, ErrorCode.MISSING_INPUT, ErrorCode.GET_ADLER32_MISMATCH, ErrorCode.GET_MD5_MISMATCH],
)
def test_bad_replica_is_reported_and_not_tried_again(tmp_path: Path, code: ErrorCode) -> None:
    scripts: dict[str, list[Optional[ErrorCode]]] = {
        "fake://a/f": [code],
        "fake://b/f": [ErrorCode.SERVICE_UNAVAILABLE, None],
    }
    tool, other = (
        ScriptedTool(scripts),
        OtherTool({"fake://a/f": [None], "fake://b/f": [ErrorCode.SERVICE_UNAVAILABLE]}),
    )
    result = stage_in([tool, other], some_input("fake://a/f", "fake://b/f"), tmp_path)
    assert result.ok and result.storage == "B"
    assert [tuple(bad) for bad in result.bad_replicas] == [("A", "fake://a/f", code, "as scripted")]
    assert (tool.calls, other.calls) == (["fake://a/f", "fake://b/f", "fake://b/f"], ["fake://b/f"])


def test_falls_through_to_the_next_tool(tmp_path: Path) -> None:
    tool = ScriptedTool({"fake://a/f": [ErrorCode.STAGE_IN_AUTHENTICATION]})
    other = OtherTool({"fake://a/f": [None]})
    assert stage_in([tool, other], some_input("fake://a/f"), tmp_path).ok
    assert (len(tool.calls), len(other.calls)) == (1, 1)


@pytest.mark.parametrize(
    ("scripts", "code"),
    [
        ([[ErrorCode.NO_SUCH_FILE], [ErrorCode.MISSING_INPUT]], ErrorCode.NO_SUCH_FILE),
        ([[ErrorCode.NO_SUCH_FILE], [ErrorCode.GET_ADLER32_MISMATCH]], ErrorCode.GET_ADLER32_MISMATCH),
        ([[ErrorCode.GET_MD5_MISMATCH], [ErrorCode.NO_SUCH_FILE]], ErrorCode.GET_MD5_MISMATCH),
        ([[ErrorCode.NO_SUCH_FILE], [ErrorCode.STAGE_IN_TIMEOUT]], ErrorCode.STAGE_IN_FAILED),
        ([[ErrorCode.STAGE_IN_AUTHENTICATION], [ErrorCode.NO_SUCH_FILE]], ErrorCode.STAGE_IN_FAILED),
        ([[ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.NO_SUCH_FILE], [ErrorCode.NO_SUCH_FILE]], ErrorCode.NO_SUCH_FILE),
    ],
)
def test_the_error_tells_lost_from_failing(tmp_path: Path, scripts: list[Any], code: ErrorCode) -> None:
    tool = ScriptedTool({"fake://a/f": scripts[0], "fake://b/f": scripts[1]})
    result = stage_in([tool], some_input("fake://a/f", "fake://b/f"), tmp_path)
    assert not result.ok and result.path is None
    assert result.error.code is code
    assert "A (scripted): " in result.error.detail and "B (scripted): " in result.error.detail
    assert isinstance(result.error.__cause__, PilotageError)


def test_a_replica_that_could_not_be_tried_is_not_lost(tmp_path: Path) -> None:
    tool = ScriptedTool({"fake://a/f": [ErrorCode.NO_SUCH_FILE]})
    result = stage_in([tool], some_input("fake://a/f", "davs://b/f"), tmp_path)
    assert result.error.code is ErrorCode.STAGE_IN_FAILED


def test_no_replica(tmp_path: Path) -> None:
    result = stage_in(["file"], InputFile("test:f", 1, None, []), tmp_path)
    assert result.error.code is ErrorCode.REPLICA_NOT_FOUND


def test_distance_101_means_never(tmp_path: Path) -> None:
    tool = ScriptedTool({"fake://a/f": [None]})
    result = stage_in([tool], InputFile("test:f", 9, None, [Replica("A", "fake://a/f", 101)]), tmp_path)
    assert result.error.code is ErrorCode.REPLICA_NOT_FOUND
    assert tool.calls == []


def test_no_protocol(tmp_path: Path) -> None:
    result = stage_in(["file"], some_input("davs://a/f?token=secret"), tmp_path)
    assert result.error.code is ErrorCode.REPLICA_NOT_FOUND
    assert result.error.detail == "test:f: no copytool of file speaks davs://a/f"


def test_transient_errors_are_tried_again_after_all_replicas_had_their_turn(tmp_path: Path) -> None:
    tool = ScriptedTool(
        {"fake://a/f": [ErrorCode.SERVICE_UNAVAILABLE, None], "fake://b/f": [ErrorCode.STAGE_IN_TIMEOUT]}
    )
    assert stage_in([tool], some_input("fake://a/f", "fake://b/f"), tmp_path).ok
    assert tool.calls == ["fake://a/f", "fake://b/f", "fake://a/f"]


def test_attempts_are_counted(tmp_path: Path) -> None:
    tool = ScriptedTool({"fake://a/f": [ErrorCode.SERVICE_UNAVAILABLE]})
    assert (
        stage_in([tool], some_input("fake://a/f"), tmp_path, attempts_per_replica=3).error.code
        is ErrorCode.STAGE_IN_FAILED
    )
    assert len(tool.calls) == 3


def test_backoff_ends_at_once_on_cancel(tmp_path: Path) -> None:
    cancel = threading.Event()
    tool = ScriptedTool({"fake://a/f": [ErrorCode.SERVICE_UNAVAILABLE]}, on_call=threading.Timer(0.1, cancel.set).start)
    begun = time.monotonic()
    client = StageInClient([tool], cancel=cancel, backoff=Backoff(first_s=60))
    assert not client.stage_in([some_input("fake://a/f")], tmp_path)[0].ok
    assert time.monotonic() - begun < 50
    assert len(tool.calls) == 1


def test_cancelled_before_the_first_transfer(tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    tool = ScriptedTool({"fake://a/f": [None]})
    result = stage_in([tool], some_input("fake://a/f"), tmp_path, cancel=cancel)
    assert (result.error.code, result.error.detail) == (ErrorCode.STAGE_IN_FAILED, "cancelled")
    assert tool.calls == []


def test_deadline_bounds_retries_and_transfers(tmp_path: Path) -> None:
    now = [0.0]
    tool = ScriptedTool(
        {"fake://a/f": [ErrorCode.SERVICE_UNAVAILABLE]}, on_call=lambda: now.__setitem__(0, now[0] + 40)
    )
    result = stage_in(
        [tool],
        some_input("fake://a/f", size=0),
        tmp_path,
        attempts_per_replica=9,
        deadline_s=100.0,
        clock=lambda: now[0],
    )
    assert result.error.code is ErrorCode.STAGE_IN_FAILED
    assert [request.timeout_s for request in tool.requests] == [100, 60, 20]
    assert result.seconds == 120


def test_backoff_grows_up_to_its_longest() -> None:
    backoff = Backoff(first_s=2, factor=3, longest_s=10)
    waits = [backoff.wait_s(number) for number in range(5)]
    for wait, longest in zip(waits, (2, 6, 10, 10, 10)):
        assert longest / 2 <= wait <= longest


def test_full_disk_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    url = stored(tmp_path / "store", "f")
    files = [some_input(url, did=f"test:f{i}", size=400) for i in range(3)]
    results = StageInClient(["file"]).stage_in(files, tmp_path / "job")
    assert [result.error.code if result.error else None for result in results] == [ErrorCode.NO_LOCAL_SPACE] * 3
    assert results[0].error is not None and "needs 1.20 kB, but only 1.00 kB are free" in results[0].error.detail
    assert list((tmp_path / "job").iterdir()) == []
    linked = StageInClient([load_copytool("file", mode_in="link")])
    huge = some_input(stored(tmp_path / "store", "g"), did="test:g", size=9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1))
    assert linked.stage_in([huge], tmp_path / "job")[0].ok  # needs no room


def test_local_trouble_ends_it_without_other_replicas(tmp_path: Path) -> None:
    tool = ScriptedTool({"fake://a/f": [ErrorCode.NO_LOCAL_SPACE], "fake://b/f": [None]})
    result = stage_in([tool], some_input("fake://a/f", "fake://b/f"), tmp_path)
    assert result.error.code is ErrorCode.NO_LOCAL_SPACE
    assert tool.calls == ["fake://a/f"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    result = stage_in(["file"], some_input(stored(tmp_path / "store", "f")), tmp_path / "taken" / "job")
    assert result.error.code is ErrorCode.MKDIR_FAILED


def test_same_name_in_two_scopes_does_not_collide(tmp_path: Path) -> None:
    files = [
        InputFile(f"{scope}:f", None, None, [Replica("A", stored(tmp_path / "store" / scope, "f", scope.encode()))])
        for scope in ("mc", "data", "user.x")
    ]
    results = StageInClient(["file"]).stage_in([*files, files[0]], tmp_path / "job")
    assert [result.path and str(result.path.relative_to(tmp_path / "job")) for result in results] == [
        "f",
        "data/f",
        "user.x/f",
        "f",
    ]
    contents = [result.path.read_bytes() for result in results if result.path]
    assert contents == [b"mc", b"data", b"user.x", b"mc"]


def test_scope_folder_never_takes_a_files_name() -> None:
    names = local_names(["a:f", "b:f", "a:b", "b_:f", "f"])
    assert [str(name) for name in names] == ["f", "b_/f", "b", "b__/f", "_/f"]


@pytest.mark.parametrize(
    "did", ["s:..", "s:.", "s:", "s:a/b", "../s:f", "..:f", "s:a\\b", "s:a\nb", "s:a\0b", "", "/etc/passwd"]
)
def test_unsafe_names_are_refused(tmp_path: Path, did: str) -> None:
    good = some_input(stored(tmp_path / "store", "f"))
    results = StageInClient(["file"]).stage_in([some_input("fake://a/f", did=did), good], tmp_path / "job")
    assert results[0].error is not None and results[0].error.code is ErrorCode.FILE_HANDLING_FAILED
    assert "no plain file name" in results[0].error.detail
    assert results[1].ok


def test_too_long_names_are_refused(tmp_path: Path) -> None:
    result = stage_in(["file"], some_input("fake://a/f", did="s:" + 128 * "é"), tmp_path)
    assert result.error.code is ErrorCode.NAME_TOO_LONG


def test_parallel_up_to_the_cap(tmp_path: Path) -> None:
    running, most, lock = Counter[str](), [0], threading.Lock()
    together = threading.Barrier(3, timeout=120)

    def on_call() -> None:
        with lock:
            running["now"] += 1
            most[0] = max(most[0], running["now"])
        together.wait()
        with lock:
            running["now"] -= 1

    tool = ScriptedTool({f"fake://a/{i}": [None] for i in range(6)}, on_call)
    files = [some_input(f"fake://a/{i}", did=f"test:{i}") for i in range(6)]
    results = StageInClient([tool], max_parallel=3).stage_in(files, tmp_path)
    assert [result.file.did for result in results if result.ok] == [f"test:{i}" for i in range(6)]
    assert most == [3]


def test_real_files_through_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    damaged = stored(tmp_path / "near", "f", b"Wikipedie")
    good = stored(tmp_path / "far", "f")
    file = InputFile("test:f", 9, ADLER32, [Replica("NEAR", damaged, 0), Replica("FAR", good, 9)])
    result = stage_in(["file"], file, tmp_path / "job")
    assert result.ok and result.path.read_bytes() == CONTENT
    assert [(bad.storage, bad.code) for bad in result.bad_replicas] == [("NEAR", ErrorCode.GET_ADLER32_MISMATCH)]
    assert "stage-in of test:f, FAR: 9 B in " in caplog.text and "/s)" in caplog.text


# --- stage-out


def test_output_is_measured_and_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "out").write_bytes(CONTENT)
    url = f"file://{tmp_path}/store/new/out"
    result = StageOutClient(["file"]).stage_out([some_output(tmp_path / "out", url)])[0]
    assert (result.ok, result.url, result.size, result.checksum) == (True, url, 9, ADLER32)
    assert (tmp_path / "store" / "new" / "out").read_bytes() == CONTENT
    assert "stage-out of out" in caplog.text


def test_next_destination_when_one_does_not_take_it(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(CONTENT)
    tool = ScriptedTool(
        {"fake://a/f": [ErrorCode.NO_REMOTE_SPACE], "fake://b/f": [ErrorCode.SERVICE_UNAVAILABLE, None]}
    )
    client = StageOutClient([tool], backoff=AT_ONCE)
    result = client.stage_out([some_output(tmp_path / "out", "fake://a/f", "fake://b/f")])[0]
    assert (result.ok, result.storage) == (True, "B")
    assert tool.calls == ["fake://a/f", "fake://b/f", "fake://b/f"]


def test_anothers_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(CONTENT)
    taken = stored(tmp_path / "a", "f", b"of another")
    file = some_output(tmp_path / "out", taken)
    result = StageOutClient(["file"], backoff=AT_ONCE).stage_out([file])[0]
    assert result.error is not None and result.error.code is ErrorCode.FILE_EXISTS
    assert (tmp_path / "a" / "f").read_bytes() == b"of another"


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([ErrorCode.NO_REMOTE_SPACE, ErrorCode.NO_REMOTE_SPACE], ErrorCode.NO_REMOTE_SPACE),
        ([ErrorCode.NO_REMOTE_SPACE, ErrorCode.STAGE_OUT_TIMEOUT], ErrorCode.STAGE_OUT_FAILED),
    ],
)
def test_the_error_of_all_destinations(tmp_path: Path, codes: list[ErrorCode], code: ErrorCode) -> None:
    (tmp_path / "out").write_bytes(CONTENT)
    tool = ScriptedTool({"fake://a/f": [codes[0]], "fake://b/f": [codes[1]]})
    client = StageOutClient([tool], backoff=AT_ONCE)
    result = client.stage_out([some_output(tmp_path / "out", "fake://a/f", "fake://b/f")])[0]
    assert result.error is not None and result.error.code is code
    assert "A (scripted): 1333" in result.error.detail


def test_outputs_without_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    url = f"file://{tmp_path}/store/f"
    files = [
        some_output(tmp_path / "out"),
        some_output(tmp_path / "out", "davs://a/f"),
        some_output(tmp_path / "absent", url),
        some_output(tmp_path / "link", url),
    ]
    results = StageOutClient(["file"]).stage_out(files)
    assert [result.error.code if result.error else None for result in results] == [
        ErrorCode.NO_STORAGE,
        ErrorCode.NO_STORAGE_PROTOCOL,
        ErrorCode.MISSING_OUTPUT,
        ErrorCode.OUTPUT_NOT_REGULAR,
    ]
    assert not (tmp_path / "store").exists()


def test_output_that_changed_since_it_was_measured(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"changed..")
    file = OutputFile("out", tmp_path / "out", 9, ADLER32, [Destination("A", f"{tmp_path}/store/out")])
    result = StageOutClient(["file"], backoff=AT_ONCE).stage_out([file])[0]
    assert result.error is not None and result.error.code is ErrorCode.PUT_ADLER32_MISMATCH
    assert list((tmp_path / "store").iterdir()) == []


def test_remove(tmp_path: Path) -> None:
    url = stored(tmp_path / "store", "f")
    errors = StageOutClient(["file"]).remove([url, url, "davs://a/f"])
    assert [error.code if error else None for error in errors] == [None, None, ErrorCode.NO_STORAGE_PROTOCOL]
    assert not (tmp_path / "store" / "f").exists()


# --- both


def test_unknown_copytool_is_told_at_once() -> None:
    with pytest.raises(PilotageError, match="'gridftp' is unknown: this pilot knows file,.* xrootd") as raised:
        StageInClient(["gridftp"])
    assert raised.value.code is ErrorCode.UNKNOWN_COPYTOOL


@pytest.mark.parametrize("copytools", [[], "file"])
def test_copytools_must_be_a_list(copytools: Any) -> None:
    with pytest.raises(PilotageError, match="give a list such as"):
        StageInClient(copytools)


@pytest.mark.parametrize("options", [{"max_parallel": 0}, {"attempts_per_replica": 0}])
def test_numbers_below_one(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        StageOutClient(["file"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [pilot.staging, pilot.staging_names, pilot.copytool, pilot.copytool.base])
def test_the_examples_in_the_docs(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0 and failed == 0
