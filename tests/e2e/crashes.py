"""What the crash tests share: a task of many units that can be checked to the byte, and kills at chosen moments."""

from __future__ import annotations

import os
import re
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
DONE_S = 300.0
"""How long a task may take from a crash to its end."""
SWEPT_S = 120.0
"""How long the storage may take to hold nothing but confirmed files: the sweep's delay, its period and some patience."""
JOBSCRIPT = f"""#!/bin/sh
set -e
# Leaves its process group, its session and its environment, and would outlive the test.
env -i CRASH_MARK="$CRASH_MARK-$PILOTAGE_JOB_ID" setsid sleep 3000 &
sleep {WORK_S}
if mv "$CRASH_HOLD/in-the-payload" "$CRASH_HOLD/taken" 2>/dev/null; then
    echo "$$ $PILOTAGE_JOB_ID" > "$CRASH_HOLD/taken"
    mv "$CRASH_HOLD/taken" "$CRASH_HOLD/held"
    sleep 3000
fi
for file in in-*.txt; do
    {{ echo "$PILOTAGE_JOB_ID"; tr a-z A-Z < "$file"; }} > "out-${{file#in-}}"
done
"""
REGISTERED = re.compile(rb" pilot (\d+) of worker (\w+) in queue ")


class Campaign:
    """A task of :data:`UNITS` files in a running system; each job leaves an output a unit, and a process behind."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.mark = f"crash-{uuid.uuid4().hex}"
        self.inputs = system.storage("inputs")
        self.disk = system.storage("disk")
        self.hold = system.folder / "hold"
        self.hold.mkdir(exist_ok=True)
        self._given = {f"{number:04}": f"unit {number} of {self.mark}\n" for number in range(UNITS)}
        self.task_id = system.task(
            jobscript=JOBSCRIPT,
            environment={"CRASH_MARK": self.mark, "CRASH_HOLD": str(self.hold)},
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

    def finish(self, since: float) -> str:
        """Wait for the task's end, and check everything; says how many seconds after ``since`` (monotonic) it came."""
        self.system.wait_task(self.task_id, TaskState.DONE.value, DONE_S)
        ended = time.monotonic() - since
        self.check()
        swept = time.monotonic() - since
        return f"task {self.task_id} done after {ended:.1f} s, storage clean after {swept:.1f} s"

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
        # Not by rglob, which stumbles over folders that are removed while it looks.
        return {f"{folder}/{name}" for root in roots for folder, _, names in os.walk(root) for name in names}

    def uploaded(self, job_id: int) -> list[str]:
        """The names of the files that a job has on the storages now, whole ones only."""
        folders = [root / "test" / str(self.task_id) / str(job_id) for root in (self.disk, self.inputs)]
        return [path.name for folder in folders for path in folder.glob(f"{self.task_id}.{job_id}.*")]

    def half_written(self, job_id: int) -> list[str]:
        """The temporary files of a job's uploads on the storages now."""
        folder = self.disk / "test" / str(self.task_id) / str(job_id)
        return [path.name for path in folder.glob(".pilotage-*")]

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

MOMENTS = {
    "in-stage-in": r"/jobs/job-(\d+)/",
    "in-the-payload": r"^(\d+)$",
    "between-record-and-upload": r"/test/\d+/(\d+)/",
    "in-the-upload": r"/test/\d+/(\d+)/",
    "between-upload-and-confirm": r"/jobs/(\d+):finish$",
}
"""The points at which ``hold/sitecustomize.py`` or the payload can hold a pilot, and where they name the job."""


def hold_environment(folder: Path) -> dict[str, str]:
    """Variables of pilots that can be held, for a system in ``folder``."""
    paths = [str(Path(__file__).with_name("hold")), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "CRASH_HOLD": str(folder / "system" / "hold")}


@dataclass(frozen=True)
class Kill:
    """A pilot that was killed while it was about ``job_id``."""

    job_id: int
    worker: str
    time: float
    """Seconds since the epoch."""


def kill_pilot(campaign: Campaign, moment: str) -> Kill:
    """Kill -9 the first pilot that comes to a moment of its next job."""
    held = campaign.hold / "held"
    (campaign.hold / moment).touch()
    campaign.system.wait(held.exists, f"a pilot comes to {moment}")
    pid, _, what = held.read_text().strip().partition(" ")
    held.unlink()
    found = re.search(MOMENTS[moment], what)
    assert found, f"{moment}: {what!r} names no job"
    job_id = int(found[1])
    process = _pilot_of(psutil.Process(int(pid)))
    worker = _worker_of(process)
    assert worker
    process.kill()
    campaign.system.wait(lambda: gone(process), f"{process} dies")
    return Kill(job_id, worker, time.time())


def _pilot_of(process: psutil.Process) -> psutil.Process:
    """The pilot that a process is, or that its payload belongs to."""
    found = next((one for one in [process, *process.parents()] if _worker_of(one)), None)
    assert found, f"{process} belongs to no pilot"
    return found


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

    system.wait(agree, lambda: f"workers as harvester knows them: {problems}")


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
    started = Counter(str(event.detail["worker"]) for event in system.events() if event.kind == "PILOT_REGISTERED")
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
