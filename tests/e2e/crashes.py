"""What the crash tests share: a task of many units that can be checked to the byte, and kills at chosen moments."""

from __future__ import annotations

import os
import re
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional
from urllib.parse import unquote, urlsplit

import psutil

from common.checksums import file_checksum
from common.states import FINAL_WORKER_STATES, JobState, TaskState, UnitState, WorkerState
from common.wire import OutputView
from tests.e2e.system import System, gone

UNITS = 200
FILES_PER_JOB = 4
WORK_S = 0.1
DONE_S = 90.0
"""How long a task may take from a crash to its end."""
SWEPT_S = 40.0
"""How long the storage may take to hold nothing but confirmed files: the sweep's delay, its period and some patience."""
JOBSCRIPT = f"""#!/bin/sh
set -e
# Leaves its process group, its session and its environment, and would outlive the test.
env -i CRASH_MARK="$CRASH_MARK-$PILOTAGE_JOB_ID" setsid sleep 3000 &
sleep {WORK_S}
for file in in-*.txt; do
    {{ echo "$PILOTAGE_JOB_ID"; tr a-z A-Z < "$file"; }} > "out-${{file#in-}}"
done
"""
ENTERED = re.compile(rb" pilot\.jobs: job (\d+): ([a-z_]+)\n")
REGISTERED = re.compile(rb" pilot (\d+) of worker (\w+) in queue ")
GLANCE_S = 0.0002
AWAIT_S = 0.5


class Campaign:
    """A task of :data:`UNITS` files in a running system; each job leaves an output a unit, and a process behind."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.mark = f"crash-{uuid.uuid4().hex}"
        self.inputs = system.storage("inputs")
        self.disk = system.storage("disk")
        self._given = {f"{number:04}": f"unit {number} of {self.mark}\n" for number in range(UNITS)}
        self.task_id = system.task(
            jobscript=JOBSCRIPT,
            environment={"CRASH_MARK": self.mark},
            input={"kind": "files", "files": [self._input(number) for number in self._given]},
            outputs=[{"pattern": "out-*.txt", "storage": "disk"}],
            files_per_job=FILES_PER_JOB,
        )

    def _input(self, number: str) -> dict[str, object]:
        path = self.inputs / self.mark / f"in-{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(self._given[number])
        return {
            "did": f"test:{path.name}",
            "size": path.stat().st_size,
            "checksum": str(file_checksum(path)),
            "replicas": [{"storage": "inputs", "path": f"{self.mark}/{path.name}"}],
        }

    # ------------------------------------------------------------ while it runs

    def done(self) -> int:
        """Units that are done."""
        return self.system.view(self.task_id).units.get(UnitState.DONE.value, 0)

    def wait_done(self, count: int, deadline: float = DONE_S) -> int:
        """Units that are done, once there are ``count``."""
        self.system.wait(lambda: self.done() >= count, f"{count} units done of task {self.task_id}", deadline)
        return self.done()

    def wait_middle(self) -> int:
        """Units that are done, once it is well under way; fails when it is over already."""
        done = self.wait_done(UNITS // 5)
        assert done < UNITS * 4 // 5, f"{done} of {UNITS} units are done: too late to crash in the middle"
        return done

    def assert_none_forgotten(self) -> None:
        """The sum of unit states is the task's input, at any moment."""
        counts = self.system.view(self.task_id).units
        assert sum(counts.values()) == UNITS, counts

    def finish(self) -> float:
        """Wait for the task's end and check everything; how long that end took from now, in seconds."""
        began = time.monotonic()
        self.system.wait_task(self.task_id, TaskState.DONE.value, DONE_S)
        took = time.monotonic() - began
        self.check()
        return took

    # ------------------------------------------------------------ when it is over

    def check(self) -> None:
        """Every unit done exactly once, no output twice, no process, no file and no worker too many."""
        self.system.assert_sums(self.task_id, UNITS)
        units = self.system.units(self.task_id)
        assert {unit.state for unit in units} == {UnitState.DONE}, self.system.describe(self.task_id)
        jobs = {job.id: job for job in self.system.jobs(self.task_id)}
        assert all(job.state in (JobState.FINISHED, JobState.FAILED) for job in jobs.values()), list(jobs.values())
        winners = Counter(unit.job_id for unit in units)
        for job_id, count in winners.items():
            assert job_id is not None and jobs[job_id].state is JobState.FINISHED, f"units of job {job_id} are done"
            assert jobs[job_id].n_units == count, f"job {job_id} had {jobs[job_id].n_units} units, {count} are its own"
        finished = {job.id for job in jobs.values() if job.state is JobState.FINISHED}
        assert finished == winners.keys(), "a job finished without a unit"
        self._check_outputs(finished)
        assert payloads(self.mark) == [], "payload processes left behind"
        self._check_storage()

    def _check_outputs(self, finished: set[int]) -> None:
        """One confirmed output for each unit, with what its input says, by the job that it names."""
        outputs = self.system.outputs(self.task_id)
        names = Counter(output.did.rpartition("-")[2].removesuffix(".txt") for output in outputs)
        assert names == Counter(list(self._given)), f"not one output a unit: {(names - Counter(list(self._given)))}"
        for output in outputs:
            assert output.job_id in finished, f"{output.did} is visible, but its job {output.job_id} has not finished"
            number = output.did.rpartition("-")[2].removesuffix(".txt")
            path = local(output)
            assert path.read_text() == f"{output.job_id}\n{self._given[number].upper()}", output
            assert (path.stat().st_size, str(file_checksum(path))) == (output.size, output.checksum), output

    def _check_storage(self) -> None:
        """In the end only confirmed files lie on the storage, whatever was recorded or begun to be uploaded."""
        confirmed = {str(local(output)) for output in self.system.outputs(self.task_id, role=None)}
        left: list[str] = []

        def swept() -> bool:
            left[:] = sorted(self.files() - confirmed)
            return not left

        self.system.wait(swept, lambda: f"files that nobody confirmed are swept: {left}", SWEPT_S)
        assert confirmed - self.files() == set(), "confirmed files were lost"

    def files(self) -> set[str]:
        """All files of this task on the storages, half-written ones included."""
        roots = [root / "test" / str(self.task_id) for root in (self.disk, self.inputs)]
        return {str(path) for root in roots for path in root.rglob("*") if not path.is_dir()}

    def uploaded(self, job_id: int) -> list[str]:
        """The names of the files that a job has on the storages now, whole ones only."""
        folders = [root / "test" / str(self.task_id) / str(job_id) for root in (self.disk, self.inputs)]
        return [path.name for folder in folders for path in folder.glob(f"{self.task_id}.{job_id}.*")]

    def lost_jobs(self) -> dict[int, float]:
        """The jobs that were given up, and when (seconds since the epoch)."""
        events = self.system.events(task=self.task_id)
        return {event.job_id: event.time for event in events if event.kind == "JOB_LOST" and event.job_id is not None}


def local(output: OutputView) -> Path:
    """Where an output lies."""
    return Path(unquote(urlsplit(output.url).path))


def payloads(mark: str) -> list[str]:
    """The living processes that have ``mark`` among their arguments or in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes()
            if mark.encode() in words + b"\0" + (folder / "environ").read_bytes():
                found.append(f"{folder.name} {words.replace(bytes(1), b' ').decode(errors='replace')}")
        except OSError:  # it has ended
            continue
    return found


# ---------------------------------------------------------------- pilots


@dataclass
class _Follower:
    """A pilot, and how far its log was read."""

    process: psutil.Process
    folder: Path
    descriptor: int
    offset: int = 0
    rest: bytes = b""

    def entered(self) -> list[tuple[int, str]]:
        """The jobs that have entered a phase since the last call, with that phase."""
        more = os.pread(self.descriptor, 1 << 20, self.offset)
        self.offset += len(more)
        whole, newline, self.rest = (self.rest + more).rpartition(b"\n")
        return [(int(job), phase.decode()) for job, phase in ENTERED.findall(whole + newline)]


@dataclass
class Kill:
    """A pilot that was killed with ``job_id`` in the phase that was wanted."""

    job_id: int
    worker: str
    time: float
    """Seconds since the epoch."""
    tries: int
    """How many pilots were stopped for it, those let go again included."""


class Assassin:
    """Kills a pilot whose job is in a phase, and in no other: it is stopped first, looked at, and killed or let go."""

    def __init__(self, campaign: Campaign, deadline: float = 60.0) -> None:
        self._campaign = campaign
        self._deadline = deadline
        self._followers: dict[int, _Follower] = {}

    def kill(self, phase: str, good: Callable[[int], bool], *, await_good: bool = False) -> Kill:
        """Kill -9 a pilot while a job of it is in ``phase`` and ``good`` holds for that job.

        ``await_good``: it comes true a moment after the phase has begun, so it is waited for before the pilot is stopped.
        """
        end = time.monotonic() + self._deadline
        look = 0.0
        tries = 0
        try:
            while time.monotonic() < end:
                if time.monotonic() > look:
                    self._find_pilots()
                    look = time.monotonic() + 0.5
                for follower in list(self._followers.values()):
                    jobs = [job_id for job_id, entered in follower.entered() if entered == phase]
                    if not jobs:
                        continue
                    tries += 1
                    if await_good:
                        _wait_briefly(lambda: good(jobs[-1]))
                    if self._stopped(follower, jobs[-1], phase, good):
                        return Kill(jobs[-1], follower.folder.parent.name, time.time(), tries)
                time.sleep(GLANCE_S)
        finally:
            for follower in self._followers.values():
                os.close(follower.descriptor)
            self._followers.clear()
        raise AssertionError(
            f"no pilot could be killed in {phase} within {self._deadline:g} s; {tries} were stopped and let go\n"
            f"{self._campaign.system.describe(self._campaign.task_id)}"
        )

    def _find_pilots(self) -> None:
        for process in self._campaign.system.pilots:
            if process.pid in self._followers:
                continue
            words = process.cmdline()
            folder = Path(words[words.index("--work-dir") + 1])
            if (folder / "pilot.log").exists():
                descriptor = os.open(folder / "pilot.log", os.O_RDONLY)
                self._followers[process.pid] = _Follower(process, folder, descriptor, os.fstat(descriptor).st_size)

    def _stopped(self, follower: _Follower, job_id: int, phase: str, good: Callable[[int], bool]) -> bool:
        process = follower.process
        if gone(process):
            return False
        process.suspend()
        try:
            self._campaign.system.wait(lambda: process.status() == psutil.STATUS_STOPPED, f"{process} stops", 5.0)
            moved_on = any(entered == job_id for entered, _ in follower.entered())
            landed = not moved_on and good(job_id)
            if landed:
                process.kill()
        finally:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        if landed:
            self._campaign.system.wait(lambda: gone(process), f"{process} dies", 10.0)
        return landed


def _wait_briefly(condition: Callable[[], bool]) -> None:
    """Until it holds; it may never."""
    end = time.monotonic() + AWAIT_S
    while not condition() and time.monotonic() < end:
        time.sleep(GLANCE_S)


# ---------------------------------------------------------------- workers


def known_workers(system: System) -> dict[str, WorkerState]:
    """The workers in harvester's own memory; none when it was killed before it had one."""
    path = system.folder / "harvester" / "harvester.db"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'worker'").fetchone():
            return {}
        return {mark: WorkerState(state) for mark, state in connection.execute("SELECT mark, state FROM worker")}


def check_workers(system: System, slots: int) -> None:
    """None submitted twice, none orphaned: harvester's memory, its workers' folders and the processes agree."""
    problems: list[str] = []

    def agree() -> bool:
        problems[:] = _disagreements(system, slots)
        return not problems

    system.wait(agree, lambda: f"workers as harvester knows them: {problems}", 20.0)


def _disagreements(system: System, slots: int) -> Iterator[str]:
    known = known_workers(system)
    live = {mark for mark, state in known.items() if state not in FINAL_WORKER_STATES}
    if len(live) > slots:
        yield f"{len(live)} workers live in {slots} slots"
    folders = {folder.name: folder for folder in system.workers.iterdir()}
    for mark in folders.keys() - known.keys():
        yield f"worker {mark} was started and is not known"
    for mark, state in known.items():
        if state in (WorkerState.PLANNED, WorkerState.SUBMITTING):
            yield f"worker {mark} is still {state.value}"
        elif mark not in folders:
            yield f"worker {mark} is {state.value} and was never started"
    for mark, folder in folders.items():
        log = folder / "work" / "pilot.log"
        pilots = set(REGISTERED.findall(log.read_bytes())) if log.exists() else set()
        if len(pilots) > 1:
            yield f"worker {mark} had pilots {sorted(pilots)}"
    running = Counter(mark for process in system.pilots for mark in [_worker_of(process)] if mark)
    for mark, count in running.items():
        if count > 1 or mark not in live:
            yield f"{count} pilots run for worker {mark}, which is {known.get(mark)}"
    started = Counter(event.detail.get("worker") for event in system.events() if event.kind == "PILOT_REGISTERED")
    for mark, count in started.items():
        if count > 1:
            yield f"{count} pilots registered for worker {mark}"


def _worker_of(process: psutil.Process) -> Optional[str]:
    try:
        words = process.cmdline()
        return words[words.index("--worker") + 1]
    except (psutil.NoSuchProcess, ValueError):
        return None


def submitting(system: System) -> set[str]:
    """The workers whose submission harvester has written down and not heard of."""
    return {mark for mark, state in known_workers(system).items() if state is WorkerState.SUBMITTING}


@contextmanager
def new_folders(folder: Path) -> Iterator[Callable[[], bool]]:
    """Says whether something new lies in a folder, quickly enough to act upon it."""
    before = set(os.listdir(folder)) if folder.exists() else set()  # noqa: PTH208 - a hundred times a second

    def appeared() -> bool:
        return folder.exists() and bool(set(os.listdir(folder)) - before)  # noqa: PTH208

    yield appeared


# ---------------------------------------------------------------- the server


def serving(pid: int) -> list[psutil.Process]:
    """The children of a server that serve requests: those that hold its listening socket."""
    children = psutil.Process(pid).children()
    return [child for child in children if any(each.status == psutil.CONN_LISTEN for each in child.net_connections())]
