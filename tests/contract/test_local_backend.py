"""What only the backend of local processes does."""

from __future__ import annotations

import json
import os
import selectors
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.clock import FrozenClock
from common.config import ConfigError
from harvester.backends import local_wrapper
from harvester.backends.base import (
    MARK_VARIABLE,
    BackendError,
    Observation,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
)
from harvester.backends.local import LocalBackend
from harvester.backends.processes import ProcessId, find_by_variable, identify, is_alive, send_signal, session_members
from tests.contract.backends import DEADLINE_S, LocalRig, W, new_mark


def test_local_secret_is_a_file_of_mode_0600_and_nowhere_else(local_rig: LocalRig) -> None:
    (ref,) = local_rig.submit(local_rig.spec())
    local_rig.until(ref, W.RUNNING)
    secret = local_rig.folder(ref.mark) / "secret"
    assert (secret.read_text().strip(), stat.S_IMODE(secret.stat().st_mode)) == ("pls_test-secret-value", 0o600)
    assert stat.S_IMODE(local_rig.folder(ref.mark).stat().st_mode) == 0o700
    for member in session_members(local_rig.process(ref.mark)):
        shown = Path(f"/proc/{member.pid}/cmdline").read_bytes() + Path(f"/proc/{member.pid}/environ").read_bytes()
        assert b"pls_" not in shown


def test_local_pilot_gets_its_places_and_its_environment(local_rig: LocalRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTAGE_HARVESTER_TOKEN_FILE", "/harvester/only")
    monkeypatch.setenv("SITE_SETTING", "inherited")
    script = 'echo "$1 $2 $PWD"; env; grep Sig /proc/self/status >&2'
    spec = local_rig.spec(EXTRA="given")
    (ref,) = local_rig.submit(WorkerSpec(**{**vars(spec), "command": [*spec.command[:2], script, *spec.command[3:]]}))
    local_rig.until(ref, W.FINISHED)
    home = local_rig.workers_dir.parent / "home"
    home.mkdir()
    assert local_rig.backend.fetch_logs({ref: home}) == {}
    folder = local_rig.folder(ref.mark)
    lines = (home / "stdout").read_text().splitlines()
    assert lines[0] == f"{folder}/secret {folder}/work {folder}/work"
    assert {f"{MARK_VARIABLE}={ref.mark}", "EXTRA=given", "SITE_SETTING=inherited"} <= set(lines)
    assert "PILOTAGE_HARVESTER_TOKEN_FILE=/harvester/only" not in lines
    masks = dict(line.split(":\t") for line in (home / "stderr").read_text().splitlines() if "\t" in line)
    assert int(masks["SigBlk"], 16) == 0
    assert int(masks["SigIgn"], 16) & 1 << (signal.SIGPIPE - 1) == 0, "Python's own settings must not be inherited"


def test_local_command_that_is_not_there_fails_with_its_name(local_rig: LocalRig) -> None:
    spec = local_rig.spec()
    (ref,) = local_rig.submit(WorkerSpec(**{**vars(spec), "command": ["/no/such/pilot", "{secret_file}"]}))
    outcome = local_rig.until(ref, W.FAILED)
    assert (outcome.exit_code, outcome.reason) == (127, "/no/such/pilot: No such file or directory")


def test_local_folder_that_cannot_be_made_is_a_refusal(local_rig: LocalRig) -> None:
    local_rig.workers_dir.mkdir()
    spec = local_rig.spec()
    local_rig.folder(spec.mark).write_text("in the way")
    (outcome,) = local_rig.backend.submit([spec])
    assert outcome.result is SubmitResult.REFUSED
    assert spec.mark in outcome.reason


def test_local_term_reaches_the_pilot_alone_which_ends_in_its_own_way(local_rig: LocalRig) -> None:
    script = "sleep 300 & trap 'exit 7' TERM; echo ready; wait"
    spec = local_rig.spec()
    (ref,) = local_rig.submit(WorkerSpec(**{**vars(spec), "command": ["/bin/sh", "-c", script]}))
    _wait_for(lambda: (local_rig.folder(ref.mark) / "stdout").exists())
    _wait_for(lambda: "ready" in (local_rig.folder(ref.mark) / "stdout").read_text())
    local_rig.backend.kill([ref])
    outcome = local_rig.until(ref, W.FAILED)
    assert outcome.exit_code == 7
    assert len(session_members(local_rig.process(ref.mark))) == 1, "its payload was not touched"


def test_local_stubborn_worker_is_killed_after_the_grace_with_its_whole_session(tmp_path: Path) -> None:
    clock = FrozenClock()
    rig = LocalRig(tmp_path, clock)
    script = 'trap "" TERM; sleep 300 & echo ready; wait'
    spec = rig.spec()
    (ref,) = rig.submit(WorkerSpec(**{**vars(spec), "command": ["/bin/sh", "-c", script]}))
    _wait_for(
        lambda: (rig.folder(ref.mark) / "stdout").exists() and (rig.folder(ref.mark) / "stdout").read_text() != ""
    )
    rig.backend.kill([ref])
    clock.advance(29)
    rig.backend.kill([ref])
    assert rig.backend.status([ref])[ref.mark].state is W.RUNNING
    process = rig.process(ref.mark)
    assert len(session_members(process)) == 3
    clock.advance(2)
    rig.backend.kill([ref])
    rig.until(ref, W.FAILED)
    _wait_for(lambda: not session_members(process))


def test_local_end_is_known_although_harvester_was_away(local_rig: LocalRig) -> None:
    """Harvester is killed right after the submission; nobody waits for the worker; it ends; harvester comes back."""
    spec = local_rig.spec("good")

    def harvester() -> None:
        local_rig.backend.submit([spec])

    _killed_after(harvester)
    found = _wait_for(lambda: local_rig.restarted().find_by_marks([spec.mark]))
    outcome = local_rig.until(found[spec.mark], W.FINISHED, backend=local_rig.restarted())
    assert outcome.exit_code == 0


def test_local_workers_outlive_harvester(local_rig: LocalRig) -> None:
    spec = local_rig.spec()

    def harvester() -> None:
        (ref,) = local_rig.submit(spec)
        local_rig.until(ref, W.RUNNING)

    _killed_after(harvester)
    (ref,) = local_rig.restarted().find_by_marks([spec.mark]).values()
    process = local_rig.process(spec.mark)
    assert is_alive(process)
    assert os.getsid(process.pid) == process.pid, "in a session of its own, out of reach of a terminal's signals"
    assert local_rig.restarted().status([ref])[ref.mark].state is W.RUNNING


def test_local_leaves_no_zombies(local_rig: LocalRig) -> None:
    refs = local_rig.submit(*(local_rig.spec("good") for _ in range(3)))
    for ref in refs:
        local_rig.until(ref, W.FINISHED)
    pids = [local_rig.process(ref.mark).pid for ref in refs]

    def reaped() -> bool:
        local_rig.backend.status(refs)
        return not any(Path(f"/proc/{pid}").exists() for pid in pids)

    _wait_for(reaped)


def test_local_recycled_pid_is_not_trusted(local_rig: LocalRig) -> None:
    """The file names a pid that somebody else has got since."""
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        mark = new_mark()
        local_rig.folder(mark).mkdir(parents=True)
        other = {"pid": bystander.pid, "ticks": 1, "boot": local_wrapper.boot_id()}
        (local_rig.folder(mark) / "process").write_text(json.dumps(other))
        ref = WorkerRef(mark, f"{bystander.pid}:1:{local_wrapper.boot_id()}")
        outcome = local_rig.backend.status([ref])[mark]
        assert (outcome.state, outcome.native) == (W.FAILED, "vanished")
        clock_later = LocalRig(local_rig.workers_dir.parent, kill_grace_s=0.0)
        for _ in range(2):
            assert clock_later.backend.kill([ref]) == {}
        assert bystander.poll() is None
        now = identify(bystander.pid)
        assert now is not None
        assert not send_signal(ProcessId(1, bystander.pid, now.boot), signal.SIGKILL)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_local_worker_of_an_earlier_boot_is_not_alive(local_rig: LocalRig) -> None:
    (ref,) = local_rig.submit(local_rig.spec())
    local_rig.until(ref, W.RUNNING)
    process = local_rig.process(ref.mark)
    earlier = ProcessId(process.ticks, process.pid, "earlier")
    assert not is_alive(earlier)
    assert session_members(earlier) == []


def test_local_crash_between_the_spawn_and_the_process_file(local_rig: LocalRig) -> None:
    """The wrapper runs and has not written its file yet: it is found by the mark in its environment."""
    mark = new_mark()
    early = subprocess.Popen(["sleep", "300"], env={**os.environ, MARK_VARIABLE: mark}, start_new_session=True)
    try:
        found = local_rig.backend.find_by_marks([mark, new_mark()])
        assert set(found) == {mark}
        local_rig.folder(mark).mkdir(parents=True)
        assert local_rig.backend.status([found[mark]])[mark].state is W.SUBMITTED
    finally:
        early.kill()
        early.wait()
    outcome = local_rig.backend.status([found[mark]])[mark]
    assert (outcome.state, outcome.native) == (W.FAILED, "vanished")


def test_local_oldest_process_with_the_mark_is_the_worker() -> None:
    mark = new_mark()
    older = subprocess.Popen(["sleep", "300"], env={**os.environ, MARK_VARIABLE: mark})
    started = local_wrapper.identity(older.pid)[0]
    try:
        # Start times come in ticks of 10 ms: the second must not fall into the first's.
        _wait_for(lambda: local_wrapper.identity(os.getpid()) and _ticks_now() > started + 1)
        younger = subprocess.Popen(["sleep", "300"], env={**os.environ, MARK_VARIABLE: mark})
        try:
            assert find_by_variable(MARK_VARIABLE, {mark})[mark].pid == older.pid
        finally:
            younger.kill()
            younger.wait()
    finally:
        older.kill()
        older.wait()


def test_local_second_wrapper_of_a_worker_runs_nothing(local_rig: LocalRig, tmp_path: Path) -> None:
    """However a worker came to be started twice, its pilot runs once."""
    folder = tmp_path / "worker"
    folder.mkdir()
    command = ["/bin/sh", "-c", f"echo run >>{tmp_path}/runs"]
    wrappers = [
        subprocess.Popen([sys.executable, "-I", "-S", local_wrapper.__file__, str(folder), *command]) for _ in range(5)
    ]
    assert [wrapper.wait(DEADLINE_S) for wrapper in wrappers] == [0] * 5
    assert (tmp_path / "runs").read_text() == "run\n"
    assert sorted(path.name for path in folder.iterdir()) == ["exit", "process", "stderr", "stdout"]


def test_local_submission_of_a_worker_that_is_there_starts_no_second_one(local_rig: LocalRig) -> None:
    spec = local_rig.spec()
    (ref,) = local_rig.submit(spec)
    local_rig.until(ref, W.RUNNING)
    assert LocalRig(local_rig.workers_dir.parent).submit(spec) == [ref]
    assert len(find_by_variable(MARK_VARIABLE, {spec.mark})) == 1


def test_local_worker_whose_wrapper_was_killed_runs_as_long_as_its_pilot(local_rig: LocalRig) -> None:
    (ref,) = local_rig.submit(local_rig.spec())
    local_rig.until(ref, W.RUNNING)
    wrapper = local_rig.process(ref.mark)
    _wait_for(lambda: len(session_members(wrapper)) == 2)
    assert send_signal(wrapper, signal.SIGKILL)
    _wait_for(lambda: not is_alive(wrapper))
    assert local_rig.backend.status([ref])[ref.mark].state is W.RUNNING
    for member in session_members(wrapper):
        send_signal(member, signal.SIGKILL)
    _wait_for(lambda: not session_members(wrapper))
    outcome = local_rig.backend.status([ref])[ref.mark]
    assert (outcome.state, outcome.native) == (W.FAILED, "vanished")


def test_local_pilot_ended_by_a_signal_says_which(local_rig: LocalRig) -> None:
    spec = local_rig.spec()
    (ref,) = local_rig.submit(WorkerSpec(**{**vars(spec), "command": ["/bin/sh", "-c", "kill -SEGV $$"]}))
    outcome = local_rig.until(ref, W.FAILED)
    assert (outcome.exit_code, outcome.reason) == (-11, "its pilot was ended by SIGSEGV")


def test_local_damaged_file_is_no_fact(local_rig: LocalRig) -> None:
    (ref,) = local_rig.submit(local_rig.spec())
    local_rig.until(ref, W.RUNNING)
    (local_rig.folder(ref.mark) / "exit").write_text("not json")
    assert local_rig.backend.status([ref])[ref.mark].observation is Observation.UNKNOWN
    (local_rig.folder(ref.mark) / "exit").unlink()
    saved = (local_rig.folder(ref.mark) / "process").read_bytes()
    (local_rig.folder(ref.mark) / "process").write_text("")
    with pytest.raises(BackendError, match="damaged"):
        local_rig.backend.find_by_marks([ref.mark])
    (local_rig.folder(ref.mark) / "process").write_bytes(saved)


def test_local_folders_of_ended_workers_are_cleaned(local_rig: LocalRig) -> None:
    (ref,) = local_rig.submit(local_rig.spec("good"))
    local_rig.until(ref, W.FINISHED)
    local_rig.backend.clean([ref, WorkerRef(new_mark(), "")])
    assert not local_rig.folder(ref.mark).exists()


def test_local_workers_dir_must_be_absolute(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="options.workers_dir"):
        LocalBackend.create({"workers_dir": "relative"}, tmp_path, FrozenClock())


def _ticks_now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _wait_for(found: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + DEADLINE_S
    while not (value := found()):
        assert time.monotonic() < give_up
        threading.Event().wait(0.02)
    return value


def _killed_after(work: Callable[[], None]) -> None:
    """Do ``work`` in a process that is then killed with SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    with selectors.DefaultSelector() as selector:
        descriptor = os.pidfd_open(pid)
        selector.register(descriptor, selectors.EVENT_READ)
        assert selector.select(DEADLINE_S)
        os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
