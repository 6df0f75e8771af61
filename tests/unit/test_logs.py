"""The log archive of a job."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from common.errors import PilotageError
from pilot.logs import MAX_EXTRA_COUNT, LogContent, end_of_logs, light_log, make_log_archive
from pilot.payload import JobFolder


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
    archive = make_log_archive(job, tmp_path / "log.tgz", LogContent(texts={"pilot.log": "claimed"}))
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
    stdout = contents(make_log_archive(job, tmp_path / "log.tgz", LogContent(max_file=1000)))["stdout"]
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
    archive = make_log_archive(job, job / "log.tgz", LogContent(texts={"pilot-job.log": "claimed"}))
    assert contents(archive)["pilot-job.log"] == b"claimed"
    assert not archive.is_symlink()
    assert (tmp_path / "token").read_text() == "secret"


def test_a_destination_that_cannot_be_written_is_an_error(job: Path, tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="LOG_CREATION_FAILED"):
        make_log_archive(job, tmp_path / "no" / "log.tgz")


# ---------------------------------------------------------------- what is asked for


def test_files_that_are_asked_for_are_taken_whole_and_by_path(job: Path, tmp_path: Path) -> None:
    (job / "work" / "logs" / "deep").mkdir(parents=True)
    (job / "work" / "logs" / "a.bin").write_bytes(b"a" * 5_000_000)
    (job / "work" / "logs" / "deep" / "b.bin").write_bytes(b"b")
    (job / "work" / "run.conf").write_text("x = 1")
    content = LogContent(patterns=["logs/*", "*.conf", "notes.txt"])
    found = contents(make_log_archive(job, tmp_path / "log.tgz", content))
    assert len(found["work/logs/a.bin"]) == 5_000_000 and found["work/run.conf"] == b"x = 1"
    assert "work/logs/deep/b.bin" not in found, "a * stops at a slash"
    assert found["work/notes.txt"] == b"notes"


def test_what_is_redundant_stays_away(job: Path, tmp_path: Path) -> None:
    (job / "work" / "x.tmp").write_text("x")
    content = LogContent(patterns=["*.tmp"], without=["*.tmp", "notes.*"])
    assert not any(name.startswith("work/") for name in contents(make_log_archive(job, tmp_path / "log.tgz", content)))


def test_too_much_is_named_and_left_out(job: Path, tmp_path: Path) -> None:
    for name, size in (("a.bin", 2000), ("b.bin", 800), ("c.bin", 800)):
        (job / "work" / name).write_bytes(b"x" * size)
    content = LogContent(patterns=["*.bin"], max_asked=1000, max_total=1500)
    found = contents(make_log_archive(job, tmp_path / "log.tgz", content))
    assert "work/a.bin" not in found and "work/b.bin" in found and "work/c.bin" not in found
    left_out = found["left-out.txt"].decode()
    assert "a.bin': 2000 bytes are too much" in left_out and "c.bin': 800 bytes are too much" in left_out


def test_no_pattern_leads_through_a_link(job: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("secret")
    (job / "work" / "home").symlink_to(tmp_path / "home")
    (job / "work" / "key").symlink_to(tmp_path / "token")
    found = contents(make_log_archive(job, tmp_path / "log.tgz", LogContent(patterns=["home/*", "key", "../*"])))
    assert b"secret" not in b"".join(found.values()) and "key" in found["left-out.txt"].decode()


def test_a_core_dump_goes_into_the_archive_only_if_it_is_asked_for(job: Path, tmp_path: Path) -> None:
    (job / "work" / "core.1").write_bytes(b"core")
    assert "work/core.1" not in contents(make_log_archive(job, tmp_path / "a.tgz"))
    assert "work/core.1" in contents(make_log_archive(job, tmp_path / "b.tgz", LogContent(patterns=["core*"])))


def test_the_pilots_own_files_and_those_of_processes_are_there(job: Path, tmp_path: Path) -> None:
    (job / "evidence").mkdir()
    (job / "evidence" / "stacks.txt").write_text("main()")
    (job / "process-before-1.stderr").write_text("warning")
    found = contents(make_log_archive(job, tmp_path / "log.tgz", LogContent(files=[job / "evidence" / "stacks.txt"])))
    assert found["evidence/stacks.txt"] == b"main()" and found["process-before-1.stderr"] == b"warning"


def test_the_ends_of_all_logs_are_told(tmp_path: Path) -> None:
    folder = JobFolder.create(tmp_path, "1")
    folder.stdout.write_text("out")
    folder.process_log("after-1", "stderr").write_text("oops")
    folder.stderr.touch()
    assert end_of_logs(folder) == "--- process-after-1.stderr ---\noops\n--- stdout ---\nout\n"


def test_the_server_gets_the_log_without_its_heavy_parts(job: Path, tmp_path: Path) -> None:
    small = make_log_archive(job, tmp_path / "small.tgz")
    assert light_log(small) == small
    (job / "work" / "core.1").write_bytes(os.urandom(2_000_000))
    (job / "stdout").write_bytes(os.urandom(2_000_000))
    heavy = make_log_archive(job, tmp_path / "heavy.tgz", LogContent(patterns=["core.1", "out.root"]))
    light = light_log(heavy)
    assert light != heavy and set(contents(heavy)) - set(contents(light)) == {"work/core.1"}
    assert contents(light)["stdout"] == (job / "stdout").read_bytes()
