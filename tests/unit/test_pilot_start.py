"""A pilot that cannot start says so to the server, whatever the reason: a batch log far away is read by nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.cli import Frame
from common.errors import ErrorCode
from pilot.cli import run
from tests.unit.pilot_fakes import SECRET, FakeServer, HttpFake


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """The program sets up logging for its process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("in_the_way", ["work", "work/pilot.log", "work/jobs"])
def test_a_pilot_that_cannot_start_is_reported(tmp_path: Path, in_the_way: str) -> None:
    """One whose log could not be opened ended with a traceback in the batch system's log, and the server never knew."""
    (tmp_path / "store").mkdir()
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    place = tmp_path / in_the_way
    place.parent.mkdir(exist_ok=True)
    if in_the_way == "work/pilot.log":
        place.mkdir()
    else:
        place.write_text("a file")
    fake = FakeServer(tmp_path / "store")
    with HttpFake(fake) as server:
        options = ["--server", server.url, "--worker", "mark", "--secret-file", str(secret)]
        result = CliRunner().invoke(run, [*options, "--work-dir", str(tmp_path / "work")], obj=Frame(config_file=None))
    assert result.exception is not None
    end = fake.pilots[1].end
    assert end is not None and end.reason.startswith("the pilot could not start: ")
    assert end.error_code in (ErrorCode.MKDIR_FAILED, ErrorCode.SETUP_FAILED, ErrorCode.FILE_HANDLING_FAILED)
    assert str(tmp_path / "work") in end.log_tail
