"""Accounts that payloads run as, and the guard behind a payload's supervisor."""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ErrorCode, PilotageError
from pilot import accounts
from pilot.accounts import Accounts
from pilot.guard import SCRIPT, Guard
from pilot.payload import JobFolder
from pilot.supervised import PayloadSpec, SupervisedProcess

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run payloads as other users")


def entry(name: str, uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/false"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users a, b, c and root; c shares its group with a. None of them has processes."""
    people = {"a": entry("a", 4100001, 4100001), "b": entry("b", 4100002, 4100002), "c": entry("c", 4100003, 4100001)}
    people["root"] = entry("root", 0, 0)
    monkeypatch.setattr(accounts.pwd, "getpwnam", lambda name: people[name])
    monkeypatch.setattr(accounts.os, "getgrouplist", lambda _name, gid: [gid, 0])
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 0)


@pytest.mark.parametrize(
    ("names", "why"),
    [(["nobody-there"], "no user"), (["root"], "is root"), (["a", "c"], "shares"), (["a", "a"], "shares")],
)
def test_accounts_that_would_not_keep_jobs_apart_are_refused(
    known: None, tmp_path: Path, names: list[str], why: str
) -> None:
    with pytest.raises(PilotageError, match=why) as caught:
        Accounts(names, tmp_path)
    assert caught.value.code is ErrorCode.BAD_CONFIGURATION and "payload_users" in caught.value.detail


def test_accounts_are_for_a_pilot_that_is_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 1000)
    with pytest.raises(PilotageError, match="only a pilot that is root"):
        Accounts(["a"], tmp_path)


def test_accounts_that_cannot_reach_their_jobs_are_refused_when_the_pilot_starts(known: None, tmp_path: Path) -> None:
    """A harvester's folders are closed: each job failed, with nothing but "Permission denied"."""
    (tmp_path / "closed" / "work").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    with pytest.raises(PilotageError, match="cannot pass .*: give it mode 0711, or choose another work_dir"):
        Accounts(["a"], tmp_path / "closed" / "work")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can get at, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="pilotage-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@needs_root
def test_each_job_has_an_account_of_its_own_and_its_folder_for_the_time(known: None, open_folder: Path) -> None:
    tmp_path = open_folder
    (tmp_path / "jobs").mkdir()
    (tmp_path / "pilot.json").touch(0o644)
    lent = Accounts(["a", "b"], tmp_path, tmp_path / "locks")
    assert (tmp_path / "pilot.json").stat().st_mode & 0o077 == 0 and tmp_path.stat().st_mode & 0o777 == 0o711
    folders = [JobFolder.create(tmp_path / "jobs", str(number)) for number in range(3)]
    target = tmp_path / "elsewhere"
    target.touch()
    os.link(target, folders[0].work / "linked")
    (folders[0].work / "link").symlink_to(target)
    (folders[0].work / "in.dat").touch()
    first, second = lent.borrow(folders[0]), lent.borrow(folders[1])
    assert {first.name, second.name} == {"a", "b"} and 0 not in first.groups
    with pytest.raises(PilotageError, match="all accounts are in use"):
        lent.borrow(folders[2])
    assert (folders[0].work / "in.dat").stat().st_uid == first.uid == folders[0].work.stat().st_uid
    assert target.stat().st_uid == 0, "nothing is given away through a link or a second name"
    assert folders[0].bin.stat().st_uid == 0 and folders[0].root.stat().st_mode & 0o777 == 0o710
    first.give_back()
    assert (folders[0].work / "in.dat").stat().st_uid == 0 and folders[0].root.stat().st_mode & 0o777 == 0o700
    assert lent.borrow(folders[2]).name == first.name


@needs_root
def test_all_processes_of_an_account_end_with_its_job(tmp_path: Path) -> None:
    """A number that no user has: this test must end nobody's processes."""
    uid = 4100009
    folder = JobFolder.create(tmp_path, "1")
    account = accounts.Account("test", uid, uid, (), folder, os.open(tmp_path, os.O_RDONLY))
    with subprocess.Popen(["sleep", "300"], user=uid, group=uid, extra_groups=[], start_new_session=True) as process:
        account.give_back()
        assert process.wait(120) == -signal.SIGKILL


def spec(folder: Path, *argv: str) -> PayloadSpec:
    return PayloadSpec(list(argv), folder, folder / "out", folder / "err", {"PATH": "/usr/bin:/bin"})


def test_a_payload_holds_nothing_of_its_supervisor_but_its_logs(tmp_path: Path) -> None:
    """The pipes of the guard and of the pilot stay with the supervisor."""
    end = SupervisedProcess.start(
        spec(tmp_path, "/bin/sh", "-c", "for f in /proc/$$/fd/*; do readlink $f; done; exit 0")
    ).wait(120)
    assert end.ok
    held = [line for line in (tmp_path / "out").read_text().splitlines() if "/fd" not in line]
    assert held == ["/dev/null", str(tmp_path / "out"), str(tmp_path / "err")]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


@pytest.mark.parametrize("word", [b"", b"done\n"])
def test_the_guard_kills_the_session_and_the_marked_unless_told_that_all_is_over(word: bytes) -> None:
    mark = f"MARK_{time.monotonic_ns()}=1"
    # The leader has gone, as a killed supervisor has; one process is left of its session, one has left it.
    script = "sleep 300 >&- 2>&- & echo $!; " + f"env {mark} setsid sleep 301 >&- 2>&- & echo $!; echo $$"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        member, marked, session = (int(line) for line in leader.stdout.read().split())
    read, write = os.pipe()
    guard = Guard(read, write)
    guard.start(session, mark)
    assert guard._process is not None
    os.write(write, word)
    os.close(write)
    guard._process.wait(120)
    os.close(read)
    try:
        deadline = time.monotonic() + 120
        while not word and (running(member) or running(marked)) and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
        assert running(member) is running(marked) is bool(word)
    finally:
        for pid in (member, marked):
            if running(pid):
                os.kill(pid, signal.SIGKILL)


def test_the_guard_kills_the_session_of_a_supervisor_that_is_still_a_zombie() -> None:
    """It saw the zombie's number in /proc and left the process that serves a SIF, which has no mark."""
    script = "sleep 300 >&- 2>&- & echo $!; exec >&-; sleep 300"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.read())
        read, write = os.pipe()
        guard = Guard(read, write)
        guard.start(leader.pid, "no such mark")
        assert guard._process is not None
        leader.kill()
        os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
        os.close(write)
        guard._process.wait(120)
        os.close(read)
        assert not running(member)


def test_the_guard_leaves_a_session_whose_number_was_given_to_somebody_else() -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as living:
        arguments = [str(living.pid), "no such mark", "1"]
        with subprocess.Popen(["/bin/sh", "-c", SCRIPT, "guard", *arguments], stdin=subprocess.PIPE) as guard:
            guard.communicate(b"", 120)
        assert living.poll() is None
        living.kill()


def test_the_pilot_and_its_supervisor_killed_at_once_leave_no_payload(tmp_path: Path) -> None:
    """The kernel kills the payload's main process only."""
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from tests.unit.test_accounts_and_guard import spec\n"
        "from pilot.supervised import SupervisedProcess\n"
        "p = SupervisedProcess.start(spec(Path(sys.argv[2]), '/bin/sh', '-c', 'setsid sleep 300 & echo $! >pid.tmp; mv pid.tmp pid; wait'))\n"
        "p.wait_started(); print(p.supervisor_pid, flush=True); time.sleep(300)\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", script, root, str(tmp_path)], stdout=subprocess.PIPE) as pilot:
        assert pilot.stdout is not None
        supervisor = int(pilot.stdout.readline())
        deadline = time.monotonic() + 120
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
        orphan = int((tmp_path / "pid").read_text())
        os.kill(supervisor, signal.SIGKILL)
        pilot.kill()
    deadline = time.monotonic() + 120
    while running(orphan) and time.monotonic() < deadline:
        select.select([], [], [], 0.02)
    assert not running(orphan)
