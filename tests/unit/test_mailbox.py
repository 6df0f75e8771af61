"""get-file: the real script in a real shell against the pilot's side of the mailbox."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import ErrorCode, PilotageError
from pilot.payload import GetFileReply, GetFileRequest, Mailbox, read_processed
from pilot.payload.mailbox import MAX_CALLS
from pilot.payload.prepare import GET_FILE

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


class Job:
    """A job's folder with a mailbox and the script beside it."""

    def __init__(self, folder: Path) -> None:
        self.box = folder / "mailbox"
        self.box.mkdir()
        (folder / "bin").mkdir()
        self.script = folder / "bin" / "pilotage-get-file"
        shutil.copy(GET_FILE, self.script)
        self.requests: list[GetFileRequest] = []
        self.answer: Callable[[GetFileRequest], GetFileReply] = lambda _request: GetFileReply.no_more()
        self.mailbox: Mailbox

    def handle(self, request: GetFileRequest) -> GetFileReply:
        self.requests.append(request)
        return self.answer(request)

    def open(self, seconds_left: float = 3600.0) -> Mailbox:
        self.mailbox = Mailbox(self.box, self.handle, lambda: seconds_left)
        return self.mailbox

    def start(self, *arguments: str, shell: str = "sh") -> subprocess.Popen[str]:
        words = ["busybox", "sh"] if shell == "busybox" else [shell]
        return subprocess.Popen(
            [*words, str(self.script), *arguments],
            env={"PILOTAGE_MAILBOX": str(self.box), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, shell: str = "sh") -> tuple[int, str, str]:
        process = self.start(*arguments, shell=shell)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err


@pytest.fixture(params=["fifo", "files"])
def job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Once with FIFOs, once on a file system that has none."""
    if request.param == "files":

        def refuse(*_arguments: object, **_names: object) -> None:
            raise PermissionError("no FIFOs here")

        monkeypatch.setattr(os, "mkfifo", refuse)
    job = Job(tmp_path)
    job.open()
    yield job
    job.mailbox.close()


@pytest.fixture
def fifo_job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    job.open()
    yield job
    job.mailbox.close()


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        select.select([], [], [], 0.01)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_is_printed_as_did_path_rse(job: Job) -> None:
    job.answer = lambda _request: GetFileReply.file("s:a.root", "/data/with two  blanks\\n", "SITE_DISK")
    assert job.call() == (0, "s:a.root /data/with two  blanks\\n SITE_DISK\n", "")


def test_no_more_files_is_exit_1_and_silence(job: Job) -> None:
    assert job.call() == (1, "", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_posix_shell_will_do(fifo_job: Job, shell: str) -> None:
    fifo_job.answer = lambda _request: GetFileReply.file("s:a", "/a", "R")
    assert fifo_job.call("--seconds-needed", "5", shell=shell) == (0, "s:a /a R\n", "")
    assert fifo_job.requests[0].seconds_needed == 5


def test_no_program_but_the_shell_is_needed(fifo_job: Job) -> None:
    fifo_job.answer = lambda _request: GetFileReply.file("s:a", "/a", "R")
    answer = subprocess.run(
        ["/bin/sh", str(fifo_job.script)], env={"PATH": "/nowhere"}, capture_output=True, text=True, timeout=20
    )
    assert (answer.returncode, answer.stdout) == (0, "s:a /a R\n")


def test_the_mailbox_is_found_beside_the_script_without_any_environment(fifo_job: Job) -> None:
    answer = subprocess.run(["/bin/sh", str(fifo_job.script)], env={}, capture_output=True, timeout=20)
    assert answer.returncode == 1


def test_too_little_time_left_is_exit_5_and_asks_nobody(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open(seconds_left=60):
        assert job.call("--seconds-needed=61") == (5, "", "")
        assert job.requests == []
        assert job.call("--seconds-needed=60")[0] == 1


@pytest.mark.parametrize("arguments", [["--seconds-needed"], ["--seconds-needed", "1h"], ["--no-such-option"]])
def test_wrong_arguments_are_exit_2_with_words(fifo_job: Job, arguments: list[str]) -> None:
    code, out, err = fifo_job.call(*arguments)
    assert (code, out) == (2, "") and arguments[-1].lstrip("-") in err and fifo_job.requests == []


def test_an_error_of_the_pilot_is_exit_2_with_its_words(job: Job) -> None:
    def fail(_request: GetFileRequest) -> GetFileReply:
        raise PilotageError(ErrorCode.COMMUNICATION_FAILED, "server\nis away")

    job.answer = fail
    code, out, err = job.call()
    assert (code, out) == (2, "") and "server is away" in err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_the_handler_still_answers_the_script(fifo_job: Job) -> None:
    def mistake(_request: GetFileRequest) -> GetFileReply:
        raise ZeroDivisionError

    fifo_job.answer = mistake
    assert fifo_job.call()[0] == 2
    fifo_job.answer = lambda _request: GetFileReply.no_more()
    assert fifo_job.call()[0] == 1


def test_a_reply_that_is_no_line_becomes_an_error(fifo_job: Job) -> None:
    for did in ("a\nb", "x" * 5000):
        fifo_job.answer = lambda _request, did=did: GetFileReply.file(did, "/a", "R")  # type: ignore[misc]
        assert fifo_job.call()[0] == 2


def test_simultaneous_calls_get_each_their_own_answer(job: Job) -> None:
    numbers = iter(range(100))
    together = threading.Barrier(8)
    lock = threading.Lock()

    def answer(_request: GetFileRequest) -> GetFileReply:
        together.wait(120)  # all eight are in the handler at once
        with lock:
            return GetFileReply.file(f"s:{next(numbers)}", "/x", "R")

    job.answer = answer
    processes = [job.start() for _ in range(8)]
    lines = [process.communicate(timeout=180)[0] for process in processes]
    assert sorted(lines) == [f"s:{n} /x R\n" for n in range(8)]


def test_what_belongs_to_an_answered_call_is_removed(fifo_job: Job) -> None:
    before = open_descriptors()
    for _ in range(20):
        fifo_job.call()
    until(lambda: [path.name for path in fifo_job.box.iterdir()] == ["requests"])
    assert open_descriptors() <= before


def test_garbage_does_not_disturb_later_calls(fifo_job: Job) -> None:
    fd = os.open(fifo_job.box / "requests", os.O_WRONLY)
    for junk in (
        b"\0\xff\n",
        b"get-file ../../x 0\n",
        b"x" * 60_000,
        b"y" * 60_000,
        b"get-file 3.3 0\n",
        b"get-file 1.1 0 0\n",
        b"done 9.9\n",
    ):
        os.write(fd, junk)
    os.write(fd, b"half a line")
    os.close(fd)
    assert fifo_job.call()[0] == 1
    assert len(fifo_job.requests) == 1


def test_scripts_that_vanish_before_they_read_never_block_the_pilot(fifo_job: Job) -> None:
    before = open_descriptors()
    fd = os.open(fifo_job.box / "requests", os.O_WRONLY)
    for number in range(MAX_CALLS + 20):
        os.write(fd, f"get-file 77.{number} 0\n".encode())
        until(lambda n=number: len(fifo_job.requests) > n)  # type: ignore[misc]
    os.close(fd)
    assert fifo_job.call()[0] == 1
    assert open_descriptors() < before + MAX_CALLS + 10, "each that vanished keeps one"


def test_a_script_that_is_killed_while_it_waits(fifo_job: Job) -> None:
    release = threading.Event()

    def answer(_request: GetFileRequest) -> GetFileReply:
        release.wait(120)
        return GetFileReply.no_more()

    fifo_job.answer = answer
    process = fifo_job.start()
    until(lambda: fifo_job.requests)
    process.kill()
    process.communicate()
    release.set()
    assert fifo_job.call()[0] == 1


def test_a_prepared_link_under_the_replys_name_is_not_followed(fifo_job: Job, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (fifo_job.box / "reply.5.0").symlink_to(victim)
    fd = os.open(fifo_job.box / "requests", os.O_WRONLY)
    os.write(fd, b"get-file 5.0 0\n")
    os.close(fd)
    assert fifo_job.call()[0] == 1
    assert victim.read_text() == "precious" and len(fifo_job.requests) == 1


def test_a_mailbox_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mailbox").symlink_to("elsewhere")
    with pytest.raises(PilotageError, match="SETUP_FAILED"):
        Mailbox(tmp_path / "mailbox", lambda _request: GetFileReply.no_more())


def test_closing_ends_the_scripts_that_wait(job: Job) -> None:
    release = threading.Event()

    def answer(_request: GetFileRequest) -> GetFileReply:
        release.wait(120)
        return GetFileReply.no_more()

    job.answer = answer
    process = job.start()
    until(lambda: job.requests)
    job.mailbox.close()
    out, err = process.communicate(timeout=180)
    release.set()
    assert (process.returncode, out) == (2, "") and "closed" in err
    assert job.call()[0] == 2
    job.mailbox.close()


def test_processed_lists_are_read_from_all_names_once_each(tmp_path: Path) -> None:
    (tmp_path / "pilotage-processed-dids.txt").write_text("s:a\ns:b\r\n\n  s:a \n")
    (tmp_path / "justin-processed-dids.txt").write_text("s:b\ns:c")
    (tmp_path / "justin-processed-pfns.txt").write_bytes(b"root://h//x\n\xff\n")
    processed = read_processed(tmp_path)
    assert processed.dids == ["s:a", "s:b", "s:c"]
    assert processed.pfns == ["root://h//x", "\ufffd"]
    assert processed.problems == []


def test_processed_lists_are_not_read_through_links_or_fifos(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    (tmp_path / "pilotage-processed-dids.txt").symlink_to("secret")
    os.link(tmp_path / "secret", tmp_path / "justin-processed-dids.txt")
    os.mkfifo(tmp_path / "pilotage-processed-pfns.txt")
    processed = read_processed(tmp_path)
    assert processed.dids == [] and processed.pfns == []
    assert [problem.split()[0] for problem in processed.problems] == [
        "pilotage-processed-dids.txt",
        "justin-processed-dids.txt",
        "pilotage-processed-pfns.txt",
    ]
