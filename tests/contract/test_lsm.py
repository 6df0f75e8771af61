"""The lsm copytool beyond the contract: what a site's commands may do, and what their exit codes mean."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import pytest

from common.errors import ERRORS, ErrorCode, PilotageError
from pilot.copytool import Copytool, TransferOutcome, TransferRequest, load_copytool
from pilot.copytool.base import Direction
from pilot.copytool.credentials import Credential
from pilot.copytool.lsm_errors import EXIT_CODES, exit_error
from tests.contract.storages_other import site_commands
from tests.contract.storages_secure import Source
from tests.services.base import wait_until

DATA = bytes(range(256)) * 12_289
NEVER = threading.Event()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture
def site(tmp_path: Path) -> dict[str, Any]:
    return site_commands(tmp_path / "site")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "out").write_bytes(DATA)
    return tmp_path / "job" / "out"


def script(folder: Path, name: str, text: str) -> str:
    """A site's own command."""
    command = folder / name
    command.write_text(f"#!/bin/sh\n{text}\n")
    command.chmod(0o755)
    return str(command)


def get(tool: Copytool, url: str, path: Path) -> TransferOutcome:
    return tool.copy_in([TransferRequest(url, path, None, None, "test:f", 30)], cancel=NEVER)[0]


def put(tool: Copytool, path: Path, url: str, cancel: threading.Event = NEVER) -> TransferOutcome:
    return tool.copy_out([TransferRequest(url, path, None, None, "test:f", 30)], cancel=cancel)[0]


def code_of(outcome: TransferOutcome) -> Optional[ErrorCode]:
    return outcome.error.code if outcome.error else None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def part_of(disk: Path) -> Path:
    return next(path for path in disk.iterdir() if path.name.endswith(".part"))


def written(disk: Path) -> bool:
    return any(path.name.endswith(".part") and path.stat().st_size == len(DATA) for path in disk.iterdir())


# --- somebody else at the same time


def held(site: dict[str, Any], hold: Path) -> Copytool:
    """A tool whose ``lsm-put`` waits before it gives a file its name."""
    hold.touch()
    return load_copytool("lsm", **{**site, "put": [site["put"], "--hold", str(hold)]})


def test_twin_that_was_quicker_is_not_overwritten(site: dict[str, Any], disk: Path, out: Path, tmp_path: Path) -> None:
    tool = held(site, tmp_path / "hold")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(put, tool, out, (disk / "f").as_uri())
        wait_until(lambda: written(disk), "the file is written", 20)
        (disk / "f").write_bytes(b"of a winner")
        (tmp_path / "hold").unlink()
        assert code_of(running.result(timeout=20)) is ErrorCode.FILE_EXISTS
    assert (names(disk), (disk / "f").read_bytes()) == ({"f"}, b"of a winner")


def test_storage_that_damages_what_it_stores(site: dict[str, Any], disk: Path, out: Path, tmp_path: Path) -> None:
    tool = held(site, tmp_path / "hold")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(put, tool, out, (disk / "f").as_uri())
        wait_until(lambda: written(disk), "the file is written", 20)
        with part_of(disk).open("r+b") as stream:
            stream.write(b"damage")
        (tmp_path / "hold").unlink()
        assert code_of(running.result(timeout=20)) is ErrorCode.PUT_ADLER32_MISMATCH
    assert names(disk) == set()


def test_cancel_ends_all_that_the_command_started(site: dict[str, Any], disk: Path, out: Path, tmp_path: Path) -> None:
    tool, cancel = held(site, tmp_path / "hold"), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(put, tool, out, (disk / "f").as_uri(), cancel)
        wait_until(lambda: written(disk), "the file is written", 20)
        cancel.set()
        outcome = running.result(timeout=3)
    assert code_of(outcome) is ErrorCode.STAGE_OUT_FAILED
    assert (names(disk), names(out.parent)) == (set(), {"out"})


# --- commands that are careless


def careless_put(folder: Path) -> str:
    """One that keeps the first half only, says that all is well, and overwrites."""
    return script(folder, "careless-put", 'shift 4\nhead -c 1000 "$1" > "${2#file://}"')


def test_what_a_careless_command_stored_is_noticed_by_stat(site: dict[str, Any], disk: Path, out: Path) -> None:
    tool = load_copytool("lsm", **{**site, "put": careless_put(disk.parent)})
    assert code_of(put(tool, out, (disk / "f").as_uri())) is ErrorCode.PUT_ADLER32_MISMATCH
    assert names(disk) == set(), "and removed"


def test_what_a_careless_command_stored_is_noticed_by_reading_back(site: dict[str, Any], disk: Path, out: Path) -> None:
    options = {"get": [site["get"], "--careless"], "put": careless_put(disk.parent), "rm": site["rm"]}
    tool = load_copytool("lsm", **options, read_back=True)
    assert code_of(put(tool, out, (disk / "f").as_uri())) is ErrorCode.PUT_ADLER32_MISMATCH
    assert (names(disk), names(out.parent)) == (set(), {"out"})
    tool = load_copytool("lsm", get=site["get"], put=site["put"], read_back=True)
    assert code_of(put(tool, out, (disk / "f").as_uri())) is None
    assert code_of(put(tool, out, (disk / "f").as_uri())) is None, "212: there already, the same"


def test_what_a_careless_command_fetched_is_noticed(site: dict[str, Any], disk: Path, out: Path) -> None:
    (disk / "f").write_bytes(DATA)
    tool = load_copytool("lsm", **{**site, "get": [site["get"], "--careless"]})
    request = TransferRequest((disk / "f").as_uri(), out.parent / "in", None, "adler32:2", "test:f", 30)
    assert code_of(tool.copy_in([request], cancel=NEVER)[0]) is ErrorCode.GET_ADLER32_MISMATCH
    nothing = load_copytool("lsm", **{**site, "get": "true"})
    outcome = get(nothing, (disk / "f").as_uri(), out.parent / "in")
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "left no file" in outcome.error.detail
    assert names(out.parent) == {"out"}


def test_command_that_swaps_the_output_for_a_link_gets_nothing(site: dict[str, Any], disk: Path, out: Path) -> None:
    """A payload that is still there could do it: what is uploaded is what was opened."""
    (out.parent / "token").write_text("secret")
    swap = script(disk.parent, "swap-put", f'ln -sf "{out.parent}/token" "{out}"\nexec {site["put"]} "$@"')
    tool = load_copytool("lsm", **{**site, "put": swap})
    assert code_of(put(tool, out, (disk / "f").as_uri())) is None
    assert (disk / "f").read_bytes() == DATA


# --- what commands are given


def test_commands_get_credentials_as_files_and_nothing_else_of_ours(
    disk: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", "the pilot's")
    monkeypatch.setenv("PILOTAGE_TOKEN_FILE", "/the/users")
    seen = disk.parent / "seen"
    command = script(
        disk.parent,
        "show-put",
        f'(stat -c %a "$BEARER_TOKEN_FILE"; cat "$BEARER_TOKEN_FILE"; env; echo "$@") > {seen}',
    )
    source = Source(Credential("s3cr3t", disk / "proxy.pem"))
    tool = load_copytool("lsm", credentials=source, get="true", put=command)
    url = (disk / "f").as_uri()
    assert code_of(put(tool, out, url)) is None
    text = seen.read_text()
    assert text.startswith("600\ns3cr3t\n")
    assert f"X509_USER_PROXY={disk}/proxy.pem" in text
    assert "the pilot's" not in text and "/the/users" not in text
    assert text.count("s3cr3t") == 1, "an environment or an argument shows the token"
    assert source.asked == [(url, True)]
    assert text.splitlines()[-1].split()[:4] == ["--size", str(len(DATA)), "--checksum", "adler32:712ae628"]


def test_secrets_in_urls_are_no_arguments(site: dict[str, Any], disk: Path, out: Path) -> None:
    outcome = get(load_copytool("lsm", **site), "https://h/f?x=1&X-Amz-Signature=s3cr3t", out.parent / "in")
    assert code_of(outcome) is ErrorCode.NO_STORAGE_PROTOCOL
    assert "s3cr3t" not in str(outcome.error)


def test_a_site_with_get_and_put_alone(site: dict[str, Any], disk: Path, out: Path) -> None:
    tool = load_copytool("lsm", get=site["get"], put=site["put"])
    url = (disk / "f").as_uri()
    assert code_of(put(tool, out, url)) is code_of(get(tool, url, out.parent / "in")) is None
    assert [error and error.code for error in tool.remove([url], cancel=NEVER)] == [ErrorCode.NO_STORAGE_PROTOCOL]
    with pytest.raises(PilotageError, match="no lsm-stat"):
        tool.exists(url)


def test_a_node_without_the_commands() -> None:
    with pytest.raises(PilotageError, match="name the site's own with the option get") as error:
        load_copytool("lsm", get="no-such-command")
    assert error.value.code is ErrorCode.MIDDLEWARE_IMPORT_FAILED


def test_nobody_would_verify() -> None:
    with pytest.raises(PilotageError, match="set read_back"):
        load_copytool("lsm", get="true", put="true", tells_checksum=False)


# --- exit codes


def test_every_exit_code_has_a_number() -> None:
    for code in [*EXIT_CODES, -9, 1, 2, 3, 13, 28, 110, 255]:
        for direction in Direction:
            assert exit_error(code, "", direction, "adler32", {}) in ERRORS


@pytest.mark.parametrize(
    ("code", "text", "direction", "found"),
    [
        (204, "", Direction.IN, ErrorCode.GET_ADLER32_MISMATCH),
        (205, "", Direction.OUT, ErrorCode.PUT_ADLER32_MISMATCH),
        (207, "", Direction.OUT, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (208, "", Direction.IN, ErrorCode.SERVICE_UNAVAILABLE),
        (211, "", Direction.OUT, ErrorCode.FILE_EXISTS),
        (213, "", Direction.OUT, ErrorCode.NO_REMOTE_SPACE),
        (213, "", Direction.IN, ErrorCode.NO_LOCAL_SPACE),
        (124, "", Direction.IN, ErrorCode.STAGE_IN_TIMEOUT),
        (127, "", Direction.IN, ErrorCode.MIDDLEWARE_IMPORT_FAILED),
        (errno.ENOENT, "", Direction.IN, ErrorCode.NO_SUCH_FILE),
        (1, "cp: f: No such file or directory", Direction.IN, ErrorCode.NO_SUCH_FILE),
        (
            201,
            "[ERROR] Server responded with an error: Permission denied",
            Direction.IN,
            ErrorCode.STAGE_IN_AUTHENTICATION,
        ),
        (200, "who knows", Direction.OUT, ErrorCode.STAGE_OUT_FAILED),
        (-9, "", Direction.IN, ErrorCode.STAGE_IN_FAILED),
    ],
)
def test_what_exit_codes_mean(code: int, text: str, direction: Direction, found: ErrorCode) -> None:
    assert exit_error(code, text, direction, "adler32", {}) is found


def test_exit_codes_of_a_site(disk: Path, out: Path) -> None:
    command = script(disk.parent, "busy-put", "echo try later >&2; exit 75")
    tool = load_copytool("lsm", get="true", put=command, exit_codes={"75": "SERVICE_UNAVAILABLE"})
    outcome = put(tool, out, (disk / "f").as_uri())
    assert code_of(outcome) is ErrorCode.SERVICE_UNAVAILABLE
    assert outcome.error is not None and outcome.error.detail.endswith("ended with 75: try later")
    with pytest.raises(PilotageError, match="names of errors"):
        load_copytool("lsm", get="true", put="true", exit_codes={"75": "BUSY"})


def test_command_that_leaves_a_process_behind(disk: Path, out: Path) -> None:
    """A command that ended is not waited for because its daemon holds its output; and the daemon ends with it."""
    left = disk.parent / "left"
    command = script(disk.parent, "daemon-put", f"sleep 300 & echo $! > {left}")
    outcome = put(load_copytool("lsm", get="true", put=command), out, (disk / "f").as_uri())
    assert code_of(outcome) is None and outcome.seconds < 5
    pid = int(left.read_text())
    wait_until(lambda: not alive(pid), "what the command left is gone", 5)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
