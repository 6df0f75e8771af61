"""One contract for every backend, on simulated and on real batch systems; then what only local processes do."""

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
import uuid
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from common.clock import Clock, FrozenClock, SystemClock
from common.config import ConfigError
from common.states import WorkerState, allowed
from common.wire import Shape
from harvester.backends import fake, local, local_wrapper
from harvester.backends.base import (
    MARK_VARIABLE,
    Backend,
    BackendError,
    BackendFactory,
    Observation,
    StatusOutcome,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
)
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.backends.local import LocalBackend
from harvester.backends.processes import ProcessId, find_by_variable, identify, is_alive, send_signal, session_members
from tests.harvester_world import end_local_workers

W = WorkerState
DEADLINE_S = 20.0
LIVE = {W.SUBMITTED, W.RUNNING}


def new_mark() -> str:
    return uuid.uuid4().hex


class Rig:
    """A backend, workers for it that end well, end badly or stay, and a way to let time pass."""

    backend: Backend
    killable = True

    def spec(self, how: str = "stay", mark: str | None = None, **environment: str) -> WorkerSpec:
        return WorkerSpec(
            mark=mark or new_mark(),
            queue="q1",
            shape=Shape(cores=1),
            command=["/bin/sh", "-c", self.script(how), "pilot", "{secret_file}", "{work_dir}"],
            environment=environment,
            secret="pls_test-secret-value",
        )

    def script(self, how: str) -> str:
        return {"stay": "exec sleep 300", "good": "exit 0", "bad": "exit 1"}[how]

    def submit(self, *specs: WorkerSpec) -> list[WorkerRef]:
        outcomes = self.backend.submit(specs)
        assert [outcome.mark for outcome in outcomes] == [spec.mark for spec in specs]
        assert all(outcome.result is SubmitResult.ACCEPTED and outcome.batch_id for outcome in outcomes), outcomes
        return [WorkerRef(outcome.mark, outcome.batch_id) for outcome in outcomes]

    def restarted(self) -> Backend:
        """Another client of the same batch system, as after a crash of harvester."""
        raise NotImplementedError

    def passes(self) -> None:
        """A moment."""
        raise NotImplementedError

    def until(self, ref: WorkerRef, *states: WorkerState, backend: Backend | None = None) -> StatusOutcome:
        """The status of a worker once it is in one of ``states``."""
        give_up = time.monotonic() + DEADLINE_S
        while True:
            outcome = (backend or self.backend).status([ref])[ref.mark]
            if outcome.state in states:
                return outcome
            assert time.monotonic() < give_up, f"{ref} is {outcome}, not in {states}"
            self.passes()


class LocalRig(Rig):
    def __init__(self, folder: Path, clock: Clock | None = None, kill_grace_s: float = 30.0) -> None:
        self.workers_dir = folder / "workers"
        self.clock = clock or SystemClock()
        self.kill_grace_s = kill_grace_s
        self.backend: LocalBackend = self.restarted()

    def restarted(self) -> LocalBackend:
        return LocalBackend(self.workers_dir, self.clock, self.kill_grace_s)

    def passes(self) -> None:
        threading.Event().wait(0.02)

    def folder(self, mark: str) -> Path:
        return self.workers_dir / mark

    def process(self, mark: str) -> ProcessId:
        read = json.loads((self.folder(mark) / "process").read_bytes())
        return ProcessId(read["ticks"], read["pid"], read["boot"])

    def close(self) -> None:
        end_local_workers(self.workers_dir)


class FakeRig(Rig):
    """``good`` and ``bad`` are told apart by a failure rate of one half: marks are drawn until one suits."""

    def __init__(self, folder: Path) -> None:
        self.clock = FrozenClock()
        self.options = FakeOptions(start_delay_s=5, run_s=30, failure_rate=0.5, journal=str(folder / "journal"))
        self.backend: FakeBackend = self.restarted()

    def restarted(self) -> FakeBackend:
        return FakeBackend(FakeBatchSystem(self.options, self.clock))

    def spec(self, how: str = "stay", mark: str | None = None, **environment: str) -> WorkerSpec:
        while mark is None:
            mark = new_mark()
            if how != "stay" and (fake._chance("fail", mark) < 0.5) != (how == "bad"):
                mark = None
        return super().spec(how, mark, **environment)

    def passes(self) -> None:
        self.clock.advance(5)


@pytest.fixture(params=["fake", "local"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "fake":
        yield FakeRig(tmp_path)
    else:
        yield from _local(tmp_path)


@pytest.fixture
def local_rig(tmp_path: Path) -> Iterator[LocalRig]:
    yield from _local(tmp_path)


def _local(folder: Path) -> Iterator[LocalRig]:
    made = LocalRig(folder)
    yield made
    made.close()


# ---------------------------------------------------------------- the contract


def test_submitted_workers_run(rig: Rig) -> None:
    refs = rig.submit(rig.spec(), rig.spec(), rig.spec())
    assert len({ref.batch_id for ref in refs}) == 3
    for ref in refs:
        assert rig.until(ref, W.RUNNING).observation is Observation.STATE


def test_nothing_to_do_is_no_error(rig: Rig) -> None:
    assert rig.backend.submit([]) == []
    assert rig.backend.status([]) == {}
    assert rig.backend.find_by_marks([]) == {}


def test_a_good_end(rig: Rig) -> None:
    (ref,) = rig.submit(rig.spec("good"))
    outcome = rig.until(ref, W.FINISHED, W.FAILED)
    assert (outcome.state, outcome.exit_code) == (W.FINISHED, 0)


def test_a_bad_end(rig: Rig) -> None:
    (ref,) = rig.submit(rig.spec("bad"))
    outcome = rig.until(ref, W.FINISHED, W.FAILED)
    assert (outcome.state, outcome.exit_code) == (W.FAILED, 1)


def test_a_worker_that_it_does_not_know_is_denied(rig: Rig) -> None:
    (known,) = rig.submit(rig.spec())
    stranger = WorkerRef(new_mark(), known.batch_id + "0")
    statuses = rig.backend.status([stranger, known])
    assert statuses[stranger.mark].observation is Observation.DENIED
    assert statuses[stranger.mark].state is None
    assert statuses[known.mark].observation is Observation.STATE


def test_workers_are_found_by_their_marks_and_others_are_not(rig: Rig) -> None:
    refs = rig.submit(rig.spec(), rig.spec())
    found = rig.backend.find_by_marks([*(ref.mark for ref in refs), new_mark()])
    assert found == {ref.mark: ref for ref in refs}


def test_after_a_crash_everything_is_known_still(rig: Rig) -> None:
    stay, good = rig.submit(rig.spec(), rig.spec("good"))
    rig.until(stay, W.RUNNING)
    rig.until(good, W.FINISHED)
    later = rig.restarted()
    assert later.find_by_marks([stay.mark, good.mark]) == {stay.mark: stay, good.mark: good}
    assert later.status([good])[good.mark].state is W.FINISHED
    assert later.status([stay])[stay.mark].state in (W.RUNNING, W.FINISHED, W.FAILED)


def test_workers_can_be_ended(rig: Rig) -> None:
    stay, other = rig.submit(rig.spec(), rig.spec())
    rig.until(stay, W.RUNNING)
    assert rig.backend.kill([stay]) == {}  # type: ignore[attr-defined]
    assert rig.backend.kill([stay]) == {}, "a repeat is harmless"  # type: ignore[attr-defined]
    rig.until(stay, W.FAILED, W.CANCELLED)
    assert rig.backend.kill([stay]) == {}, "and so is one after the end"  # type: ignore[attr-defined]
    assert rig.backend.status([other])[other.mark].state in LIVE


def test_an_end_stays_the_same(rig: Rig) -> None:
    (ref,) = rig.submit(rig.spec("good"))
    rig.until(ref, W.FINISHED)
    rig.backend.kill([ref])  # type: ignore[attr-defined]
    assert rig.backend.status([ref])[ref.mark].state is W.FINISHED


@pytest.mark.parametrize(
    ("native", "table"), [(fake.FakeState, fake.STATES), (local.LocalState, local.STATES)], ids=["fake", "local"]
)
def test_every_foreign_state_has_a_meaning_that_a_worker_can_take(
    native: type[Enum], table: dict[Any, WorkerState]
) -> None:
    assert set(table) == set(native)
    assert all(allowed(W.MISSING, state) for state in table.values())


@pytest.mark.parametrize("factory", [FakeBackend, LocalBackend])
def test_an_unknown_option_is_named(factory: BackendFactory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colour"):
        factory.create({"colour": "red"}, tmp_path, FrozenClock())


# ---------------------------------------------------------------- the fake one


def test_fake_down_knows_nothing(tmp_path: Path) -> None:
    rig = FakeRig(tmp_path)
    (ref,) = rig.submit(rig.spec())
    rig.backend.system.down = True
    for call in (
        lambda: rig.backend.status([ref]),
        lambda: rig.backend.find_by_marks([ref.mark]),
        lambda: rig.backend.submit([rig.spec()]),
        lambda: rig.backend.kill([ref]),
    ):
        with pytest.raises(BackendError):
            call()


def test_fake_remembers_only_with_a_journal(tmp_path: Path) -> None:
    rig = FakeRig(tmp_path)
    rig.options.journal = None
    rig.backend = rig.restarted()
    (ref,) = rig.submit(rig.spec())
    assert rig.backend.find_by_marks([ref.mark]) == {ref.mark: ref}
    assert rig.restarted().find_by_marks([ref.mark]) == {}


# ---------------------------------------------------------------- local processes


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
    logs = local_rig.backend.logs(ref)
    folder = local_rig.folder(ref.mark)
    lines = logs["stdout"].read_text().splitlines()
    assert lines[0] == f"{folder}/secret {folder}/work {folder}/work"
    assert {f"{MARK_VARIABLE}={ref.mark}", "EXTRA=given", "SITE_SETTING=inherited"} <= set(lines)
    assert "PILOTAGE_HARVESTER_TOKEN_FILE=/harvester/only" not in lines
    masks = dict(line.split(":\t") for line in logs["stderr"].read_text().splitlines() if "\t" in line)
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
