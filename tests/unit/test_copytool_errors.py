"""Finding copytools, and their errors in our numbers (the contract itself: tests/contract/test_copytools.py)."""

from __future__ import annotations

import errno
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import ErrorCode, PilotageError
from pilot.copytool import BUILT_IN, copytool_class, load_copytool, xrootd_client, xrootd_errors
from pilot.copytool import file as file_tool
from pilot.copytool.base import Direction, local_error, safe_url
from pilot.copytool.xrootd_errors import CLIENT_ERRORS, SERVER_ERRORS, Kind, status_code, status_error

ROOT = Path(__file__).parents[2]


def status(code: int, number: int = 0, message: str = "[ERROR] said so") -> Any:
    """What the bindings would give."""
    return SimpleNamespace(ok=False, code=code, errno=number, message=message)


# --- finding


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_copytools_agree_with_the_entry_points(name: str) -> None:
    assert copytool_class(name).name == name
    lines = [line.split() for line in (ROOT / "setup.cfg").read_text().splitlines()]
    assert [name, "=", BUILT_IN[name]] in lines


def test_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("tape", "pilot.copytool.file:FileCopytool", "pilotage.copytools")
    found: Any = [entry] if sys.version_info >= (3, 10) else {"pilotage.copytools": [entry]}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **group: found)
    assert isinstance(load_copytool("tape"), file_tool.FileCopytool)
    with pytest.raises(PilotageError, match="this pilot knows file, .*tape, xrootd"):
        load_copytool("disc")


def test_plugin_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN, "tape", "no_such_module:Tool")
    with pytest.raises(PilotageError, match="no_such_module") as raised:
        load_copytool("tape")
    assert raised.value.code is ErrorCode.MIDDLEWARE_IMPORT_FAILED


def test_missing_bindings_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "XRootD.client", None)
    xrootd_client.bindings.cache_clear()
    with pytest.raises(PilotageError, match="XRootD bindings cannot be imported") as raised:
        load_copytool("xrootd")
    assert raised.value.code is ErrorCode.MIDDLEWARE_IMPORT_FAILED


@pytest.mark.parametrize("options", [{"mode_in": "move"}, {"mode_out": "link"}])
def test_options_that_are_none_say_which_are(options: dict[str, str]) -> None:
    with pytest.raises(PilotageError, match="write copy or "):
        load_copytool("file", **options)


def test_bindings_are_imported_only_when_used() -> None:
    script = (
        "import sys, pilot.staging; pilot.staging.StageInClient(['xrootd', 'file']); print('XRootD' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- errors


def test_every_status_of_the_xrootd_client_is_in_the_table() -> None:
    responses = pytest.importorskip("XRootD.client.responses")
    known = {
        value
        for name, value in vars(responses.XRootDStatus).items()
        if name.startswith("err") and isinstance(value, int) and value != 0
    }
    assert known - {xrootd_errors.ERROR_RESPONSE} == set(CLIENT_ERRORS)


def test_every_answer_of_an_xrootd_server_is_in_the_table() -> None:
    assert sorted(SERVER_ERRORS) == list(range(3000, 3036))  # XProtocol.hh, XErrorCode


@pytest.mark.parametrize("direction", list(Direction))
def test_every_row_gives_a_number(direction: Direction) -> None:
    for table, as_status in ((SERVER_ERRORS, lambda n: status(400, n)), (CLIENT_ERRORS, status)):
        for number, row in table.items():
            code = status_code(as_status(number), direction)
            if isinstance(row, Kind):
                assert code is row.code(direction)
            elif number not in xrootd_errors.LOCAL_CODES:
                assert code is row


@pytest.mark.parametrize(
    ("failed", "code_in", "code_out"),
    [
        (status(400, 3011), ErrorCode.NO_SUCH_FILE, ErrorCode.NO_SUCH_FILE),
        (status(400, 3010), ErrorCode.STAGE_IN_AUTHENTICATION, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (status(204), ErrorCode.STAGE_IN_AUTHENTICATION, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (status(206), ErrorCode.STAGE_IN_TIMEOUT, ErrorCode.STAGE_OUT_TIMEOUT),
        (status(400, 3009), ErrorCode.NO_REMOTE_SPACE, ErrorCode.NO_REMOTE_SPACE),
        (status(400, 3018), ErrorCode.FILE_EXISTS, ErrorCode.FILE_EXISTS),
        (status(108), ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.SERVICE_UNAVAILABLE),
        (status(102, errno.ECONNRESET), ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.SERVICE_UNAVAILABLE),
        (status(108, errno.ENETUNREACH), ErrorCode.NETWORK_UNREACHABLE, ErrorCode.NETWORK_UNREACHABLE),
        (status(305), ErrorCode.GET_ADLER32_MISMATCH, ErrorCode.PUT_ADLER32_MISMATCH),
        (status(402, errno.ENOSPC), ErrorCode.NO_LOCAL_SPACE, ErrorCode.NO_LOCAL_SPACE),
        (status(402, errno.EIO), ErrorCode.FILE_HANDLING_FAILED, ErrorCode.FILE_HANDLING_FAILED),
        (status(400, 3999), ErrorCode.STAGE_IN_FAILED, ErrorCode.STAGE_OUT_FAILED),
        (status(999), ErrorCode.STAGE_IN_FAILED, ErrorCode.STAGE_OUT_FAILED),
    ],
)
def test_xrootd_errors_that_people_meet(failed: Any, code_in: ErrorCode, code_out: ErrorCode) -> None:
    assert status_code(failed, Direction.IN) is code_in
    assert status_code(failed, Direction.OUT) is code_out


def test_a_token_is_taken_out_of_what_a_server_says() -> None:
    error = status_error(status(400, 3011, "Unable to open /f?authz=x; gone\n"), Direction.IN, "root://h//f", "authz=x")
    assert error.detail == "root://h//f: Unable to open /f?…; gone"
    assert safe_url("root://h//f?authz=x") == "root://h//f"
    assert safe_url("/odd?name") == "/odd?name"


@pytest.mark.parametrize(
    ("number", "code_in", "code_out"),
    [
        (errno.ENOENT, ErrorCode.NO_SUCH_FILE, ErrorCode.STAGE_OUT_FAILED),
        (errno.EACCES, ErrorCode.STAGE_IN_AUTHENTICATION, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (errno.EROFS, ErrorCode.STAGE_IN_AUTHENTICATION, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (errno.ENOSPC, ErrorCode.NO_REMOTE_SPACE, ErrorCode.NO_REMOTE_SPACE),
        (errno.EDQUOT, ErrorCode.NO_REMOTE_SPACE, ErrorCode.NO_REMOTE_SPACE),
        (errno.ETIMEDOUT, ErrorCode.STAGE_IN_TIMEOUT, ErrorCode.STAGE_OUT_TIMEOUT),
        (errno.ESTALE, ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.SERVICE_UNAVAILABLE),
        (errno.ELOOP, ErrorCode.STAGE_IN_FAILED, ErrorCode.STAGE_OUT_FAILED),
    ],
)
def test_errors_of_a_mounted_storage(number: int, code_in: ErrorCode, code_out: ErrorCode) -> None:
    error = OSError(number, "said so")
    assert file_tool.storage_error(error, Path("/f"), Direction.IN).code is code_in
    assert file_tool.storage_error(error, Path("/f"), Direction.OUT).code is code_out


def test_errors_of_the_local_disk() -> None:
    assert local_error(OSError(errno.ENOSPC, "full"), "f").code is ErrorCode.NO_LOCAL_SPACE
    assert local_error(OSError(errno.ENAMETOOLONG, "long"), "f").code is ErrorCode.NAME_TOO_LONG
    assert local_error(OSError(errno.EIO, "broken"), "f").code is ErrorCode.FILE_HANDLING_FAILED
