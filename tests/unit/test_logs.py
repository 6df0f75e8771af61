"""The log archive of a job."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from common.errors import PilotageError
from pilot.logs import MAX_EXTRA_COUNT, make_log_archive


@pytest.fixture
def job(tmp_path: Path) -> Path:
    job = tmp_path / "job-1"
    for name in ("work", "bin"):
        (job / name).mkdir(parents=True)
    (job / "stdout").write_text("hello\n")
    (job / "stderr").write_text("")
    (job / "bin" / "jobscript").write_text("#!/bin/sh\n")
    (job / "work" / "notes.txt").write_text("notes")
    (job / "work" / "out.root").write_bytes(b"\0" * 100)
    (tmp_path / "token").write_text("secret")
    return job


def contents(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        found = {}
        for member in tar.getmembers():
            assert member.isreg()
            stream = tar.extractfile(member)
            assert stream is not None
            found[member.name.removeprefix("job-1/")] = stream.read()
        return found


def test_the_archive_holds_logs_jobscript_and_small_texts(job: Path, tmp_path: Path) -> None:
    archive = make_log_archive(job, tmp_path / "log.tgz", {"pilot.log": "claimed"})
    found = contents(archive)
    assert found == {
        "stdout": b"hello\n",
        "stderr": b"",
        "bin/jobscript": b"#!/bin/sh\n",
        "pilot.log": b"claimed",
        "work/notes.txt": b"notes",
    }
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.partial"))


def test_links_are_left_out_and_named(job: Path, tmp_path: Path) -> None:
    (job / "stdout").unlink()
    (job / "stdout").symlink_to(tmp_path / "token")
    (job / "work" / "x.txt").symlink_to(tmp_path / "token")
    os.link(tmp_path / "token", job / "work" / "y.txt")
    found = contents(make_log_archive(job, tmp_path / "log.tgz"))
    assert "stdout" not in found and "work/x.txt" not in found and "work/y.txt" not in found
    assert b"secret" not in b"".join(found.values())
    assert b"stdout" in found["left-out.txt"] and b"x.txt" in found["left-out.txt"]


def test_of_a_large_file_head_and_tail_are_kept(job: Path, tmp_path: Path) -> None:
    (job / "stdout").write_bytes(b"HEAD" + b"." * 5_000_000 + b"TAIL")
    stdout = contents(make_log_archive(job, tmp_path / "log.tgz", max_file=1000))["stdout"]
    assert stdout.startswith(b"HEAD") and stdout.endswith(b"TAIL") and len(stdout) < 1100
    assert b"4999008 bytes left out" in stdout


def test_the_number_and_size_of_extra_texts_is_bounded(job: Path, tmp_path: Path) -> None:
    for number in range(MAX_EXTRA_COUNT + 50):
        (job / "work" / f"{number}.log").write_text("x")
    (job / "work" / "0-huge.txt").write_bytes(b"x" * 2_000_000)
    found = contents(make_log_archive(job, tmp_path / "log.tgz"))
    assert sum(name.startswith("work/") for name in found) == MAX_EXTRA_COUNT and "work/0-huge.txt" not in found


def test_a_work_folder_that_became_a_link_is_not_followed(job: Path, tmp_path: Path) -> None:
    (job / "work").rename(job / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "private.txt").write_text("private")
    (job / "work").symlink_to(tmp_path / "elsewhere")
    assert "work/private.txt" not in contents(make_log_archive(job, tmp_path / "log.tgz"))


def test_the_archive_is_not_written_through_what_the_payload_left(job: Path, tmp_path: Path) -> None:
    """A bug: a hard link under the temporary name had its file overwritten, and a pipe made the pilot wait."""
    os.link(tmp_path / "token", job / "log.tgz.partial")
    (job / "log.tgz").symlink_to(tmp_path / "token")
    archive = make_log_archive(job, job / "log.tgz", {"pilot-job.log": "claimed"})
    assert contents(archive)["pilot-job.log"] == b"claimed"
    assert not archive.is_symlink()
    assert (tmp_path / "token").read_text() == "secret"


def test_a_destination_that_cannot_be_written_is_an_error(job: Path, tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="LOG_CREATION_FAILED"):
        make_log_archive(job, tmp_path / "no" / "log.tgz")
