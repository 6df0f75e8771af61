"""What people are shown of a running job, and what they never are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from common.wire import PeekAnswer, PeekOrder
from common.wire.peeks import MOST_TEXT
from pilot.client import ServerAway
from pilot.debug import Debugger, Sight, own_lines
from pilot.payload import JobFolder
from pilot.watch.processes import read_process, tree_of
from pilot.watch.stacks import find_gdb, stack_of
from tests.unit.pilot_fakes import FakeServer, make_assignment
from tests.unit.test_pilot_agent import running

JOB = 7


class Person:
    """Asks a pilot about a job, and gets the answer."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = JobFolder.create(tmp_path, str(JOB))
        self.answers: list[PeekAnswer] = []
        self.away = 0
        self.debugger = Debugger(self, tmp_path / "pilot.log")
        self.debugger.show(JOB, Sight(self.folder, list, ["hunter22"]))
        self._number = 0

    def answer_peek(self, job_id: int, peek_id: int, answer: PeekAnswer) -> None:
        if self.away:
            self.away -= 1
            raise ServerAway("the test's outage")
        self.answers.append(answer)

    def ask(self, kind: str, **more: Any) -> PeekAnswer:
        """As if the heartbeat's reply had said so."""
        self._number += 1
        order = PeekOrder(peek_id=self._number, kind=kind, **more)
        answer = self.debugger._seen(JOB, order, self.debugger._sights.get(JOB))
        assert len(answer.text) <= MOST_TEXT
        return answer

    def text(self, kind: str, **more: Any) -> str:
        answer = self.ask(kind, **more)
        assert not answer.error, answer.error
        return answer.text


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


# ---------------------------------------------------------------- files


def test_the_end_of_a_file(person: Person) -> None:
    person.folder.stdout.write_text("".join(f"line {number}\n" for number in range(100)))
    answer = person.ask("tail", path="stdout", lines=2)
    assert (answer.text, answer.cut, answer.end) == ("line 98\nline 99\n", True, person.folder.stdout.stat().st_size)
    (person.folder.work / "logs").mkdir()
    (person.folder.work / "logs" / "a.txt").write_text("one\n")
    assert person.ask("tail", path="logs/a.txt") == PeekAnswer(text="one\n", end=4)


def test_what_was_added_to_a_file(person: Person) -> None:
    path = person.folder.work / "a.log"
    path.write_text("one\ntwo\n")
    assert person.ask("tail", path="a.log", after=4) == PeekAnswer(text="two\n", end=8)
    assert person.ask("tail", path="a.log", after=8) == PeekAnswer(text="", end=8)
    path.write_text("new\n")  # it was begun anew
    assert person.ask("tail", path="a.log", after=8) == PeekAnswer(text="new\n", end=4)
    path.write_bytes(b"x" * (MOST_TEXT + 10))
    answer = person.ask("tail", path="a.log", after=0)
    assert (len(answer.text), answer.end, answer.cut) == (MOST_TEXT, MOST_TEXT, True)


def test_a_huge_line_is_cut(person: Person) -> None:
    person.folder.stdout.write_bytes(b"a" * 3_000_000 + b"end\n")
    answer = person.ask("tail")
    assert answer.cut and answer.text.endswith("aend\n") and len(answer.text) == MOST_TEXT


@pytest.mark.parametrize(
    "path",
    [
        "../stdout",
        "/etc/passwd",
        "a/../../bin/secrets",
        "link",
        "folder-link/passwd",
        "pipe",
        "other-name",
        "no",
        "sub",
    ],
)
def test_nothing_outside_of_the_payloads_folder_is_shown(person: Person, path: str) -> None:
    """``ln -s ~/.globus/userkey.pem out.log`` showed the pilot's key to whoever asked for the job's log."""
    work = person.folder.work
    (work / "link").symlink_to("/etc/passwd")
    (work / "folder-link").symlink_to("/etc")
    os.mkfifo(work / "pipe")
    (work / "sub").mkdir()
    (work.parent / "bin" / "secret").write_text("x")
    os.link(work.parent / "bin" / "secret", work / "other-name")
    answer = person.ask("tail", path=path)
    assert answer.text == "" and answer.error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_a_payload_with_an_account_of_its_own(person: Person) -> None:
    mine, other = person.folder.work / "mine", person.folder.work / "other"
    for path in (mine, other):
        path.write_text("text\n")
    for path, user in ((person.folder.work, 4711), (mine, 4711), (other, 4712)):
        os.chown(path, user, -1)
    assert person.text("tail", path="mine") == "text\n"
    assert "another user" in person.ask("tail", path="other").error


def test_listing(person: Person) -> None:
    work = person.folder.work
    (work / "sub").mkdir()
    (work / "sub" / "data.root").write_bytes(b"x" * 1234)
    (work / "sub" / "key").symlink_to("/root/key")
    (work / "sub" / "evil\x1b[2J").touch()
    text = person.text("ls", path="sub")
    assert " 1234 " in text and "data.root\n" in text and "key -> /root/key\n" in text and "\x1b" not in text
    assert person.text("ls").endswith(" sub\n")
    (work / "out").symlink_to("/etc")
    for path in ("out", "..", "no", "sub/data.root"):
        assert person.ask("ls", path=path).error


def test_a_folder_with_too_many_files(person: Person) -> None:
    for number in range(1500):
        (person.folder.work / f"{number:05d}").touch()
    answer = person.ask("ls")
    assert answer.cut and answer.text.count("\n") == 1000


def test_usage(person: Person) -> None:
    (person.folder.work / "sub").mkdir()
    (person.folder.work / "sub" / "big").write_bytes(b"x" * 2**20 * 3)
    person.folder.stdout.write_bytes(b"x" * 2**20)
    (person.folder.work / "link").symlink_to("/usr")
    lines = person.text("du").splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["all", "work/sub/", "stdout"]
    assert float(lines[0].split()[0]) < 5


def test_secrets_are_blacked_out(person: Person) -> None:
    person.folder.stdout.write_text("password=hunter22\nAuthorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.abcdefgh\n")
    text = person.text("tail")
    assert "hunter22" not in text and "eyJ" not in text and "password=***" in text


# ---------------------------------------------------------------- processes


@pytest.fixture
def payload(person: Person) -> Iterator[subprocess.Popen[str]]:
    """A tree of processes, as a payload's, below this process."""
    code = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo up; sleep 60; true', 'hunter22'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    person.debugger.show(JOB, Sight(person.folder, lambda: tree_of(process.pid), ["hunter22"]))
    yield process
    os.killpg(process.pid, 9)
    process.stdout.close()
    process.wait()


def test_processes(person: Person, payload: subprocess.Popen[str]) -> None:
    text = person.text("ps")
    assert "sh -c echo up" in text and "hunter22" not in text
    assert f" {os.getpid()} " not in "".join(line[:9] for line in text.splitlines())


def test_stacks_of_the_payloads_own_processes_only(person: Person, payload: subprocess.Popen[str]) -> None:
    """The supervisor, the pilot and other jobs are no business of a person who looks at a job."""
    (shell,) = (seen.pid for seen in tree_of(payload.pid) if seen.parent == payload.pid)
    text = person.text("gdb", pid=shell)
    assert f"process {shell} sh" in text
    assert "#0" in text or "ptrace_scope" in text or find_gdb() is None
    state = Path(f"/proc/{shell}/stat").read_text().rsplit(")", 1)[1].split()[0]
    assert state in "SRD"  # it goes on
    for pid in (os.getpid(), payload.pid, 1, 2**22, None):
        assert "no process of this payload" in person.ask("gdb", pid=pid).error


@pytest.mark.skipif(os.geteuid() != 0 or find_gdb() is None, reason="only root runs gdb as somebody else")
def test_gdb_runs_as_the_payloads_own_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger that runs as root and reads what a payload made is a way to become root."""
    started: list[Any] = []
    popen = subprocess.Popen

    def noting(*arguments: Any, **more: Any) -> Any:
        started.append((more.get("user"), more.get("group"), more.get("extra_groups")))
        return popen(*arguments, **more)

    with popen(["sleep", "60"], user=4711, group=4711, extra_groups=[]) as process:
        monkeypatch.setattr("pilot.watch.stacks.subprocess.Popen", noting)
        text = stack_of(read_process(process.pid), gdb=find_gdb())
        process.kill()
    assert started == [(4711, 4711, [])] and "#0" in text


def test_a_payload_that_does_not_run(person: Person) -> None:
    assert person.ask("ps").error == "the payload does not run"
    person.debugger.hide(JOB)
    assert "no folder" in person.ask("ls").error


# ---------------------------------------------------------------- the pilot


def test_the_pilots_log_says_nothing_of_other_peoples_jobs() -> None:
    lines = [
        "    rest of something",
        "2026-05-04T12:00:00.000Z INFO pilot: the slot has 8 cores",
        "2026-05-04T12:00:01.000Z WARNING pilot.jobs: job 8: 1305 PAYLOAD_FAILED: secret physics",
        "    of another",
        "2026-05-04T12:00:02.000Z INFO pilot.jobs: job 7: running",
        "    and more",
    ]
    assert own_lines(lines, 7, 50) == [lines[1], lines[4], lines[5]]
    assert own_lines(lines, 7, 1) == [lines[5]]


def test_a_question_from_a_newer_server(person: Person) -> None:
    assert "does not know how to show 'strace'" in person.ask("strace").error


@pytest.fixture
def fake(tmp_path: Path) -> FakeServer:
    (tmp_path / "store").mkdir()
    return FakeServer(tmp_path / "store")


def test_a_running_job_is_shown(fake: FakeServer, tmp_path: Path) -> None:
    """Heartbeat, answer, and once only, although the first answer got lost and the server asks again."""
    fake.add(make_assignment(1, "echo hello; while [ ! -e stop ]; do sleep 0.1; done"))
    with running(fake, tmp_path / "work", max_jobs=1) as pilot:
        fake.wait_for(lambda: fake.jobs[1].states and fake.jobs[1].states[-1].value == "running", "it runs")
        fake.faults["answer_peek"] = ["away"]
        fake.peeks = [
            PeekOrder(peek_id=1, kind="tail", path="stdout"),
            PeekOrder(peek_id=2, kind="ps"),
            PeekOrder(peek_id=3, kind="pilot-log", lines=5),
        ]
        fake.wait_for(lambda: len(fake.shown) == 3, "all is shown")
        assert fake.shown[1].text == "hello\n"
        assert "jobscript" in fake.shown[2].text
        shown: Optional[str] = fake.shown[3].error  # this pilot of the test writes no log
        assert shown == "No such file or directory"
        (tmp_path / "work" / "jobs" / "job-1" / "work" / "stop").touch()
        fake.report_of(1)
        pilot.wait()
    assert fake.calls["answer_peek"] == 4
