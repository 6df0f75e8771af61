"""A task on real batch systems: pilots started there from the bundle by harvester, as nobody special, do every unit once.

Input comes from a real XRootD server and output goes there; payloads run in a real Apptainer. With PILOTAGE_TEST_UNITS=300
the same is done on a larger scale; ``-s`` shows the figures.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.wire import WorkerView
from pilot.bundle.build import Bundle
from tests.e2e.batch_systems import (
    GATE,
    IDLE_S,
    STORE,
    WORKERS,
    Arc,
    BatchSystem,
    BatchWorld,
    Condor,
    Slurm,
    processes_of_workers,
    served_files,
)
from tests.services.xrootd import XrootdServer

UNITS_EACH, UNITS_TOGETHER = 8, 24
UNITS = int(os.environ.get("PILOTAGE_TEST_UNITS", "0"))
UNITS_PER_JOB = 2
DEADLINE_S = 400.0 + 3.0 * UNITS
NAMES = ("CONDOR", "ARC", "SLURM")

SUMS = f"""#!/bin/sh
while [ ! -e {GATE}/open ]; do sleep 0.2; done
for file in $(cat "$PILOTAGE_INPUT_FILES"); do
  name=$(basename "$file")
  {{
    md5sum <"$file" | cut -d' ' -f1
    id -u
    test -n "$APPTAINER_NAME" && echo container
  }} >"sum-$name.txt" || exit 3
done
"""


@pytest.fixture
def batch_system(request: pytest.FixtureRequest) -> Callable[[str], BatchSystem]:
    """Gives a running batch system by the name of its queue."""

    def get(name: str) -> BatchSystem:
        if name == "CONDOR":
            return Condor(request.getfixturevalue("condor_pool"))
        if name == "ARC":
            return Arc(request.getfixturevalue("arc_ce"))
        request.getfixturevalue("node_bindings")
        return Slurm(request.getfixturevalue("slurm"), request.getfixturevalue("sshd"))

    return get


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), NAMES], ids=[*NAMES, "all-three"])
def test_real_batch_systems_do_a_task_with_pilots_from_the_bundle(
    names: Sequence[str],
    batch_system: Callable[[str], BatchSystem],
    bundle: Bundle,
    xrootd: XrootdServer,
    busybox_image: Path,
    services_folder: Path,
    tmp_path: Path,
) -> None:
    systems = [batch_system(name) for name in names]
    total = UNITS or (UNITS_EACH if len(names) == 1 else UNITS_TOGETHER)
    folder = f"/batch-{uuid.uuid4().hex[:8]}"
    files, sums = served_files(xrootd, folder, total, tmp_path / "source")
    gate = services_folder / f"gate-{uuid.uuid4().hex[:8]}"
    gate.mkdir()
    with BatchWorld(tmp_path, systems, bundle.path, gate) as world:
        world.storage("xrd", f"{xrootd.url}{folder}", site=STORE)
        begun = time.monotonic()
        task = world.task(
            input={"kind": "files", "files": files},
            jobscript=SUMS,
            image=str(busybox_image),
            outputs=[{"pattern": "sum-*.txt", "storage": "xrd"}],
            requirements={"cores": 1, "memory_mb": 200, "disk_mb": 50},
            files_per_job=UNITS_PER_JOB,
            scouts=False,
        )
        # There are as many jobs as workers, so those of one system can't do what the others are there for.
        world.wait(lambda: {job.queue for job in world.jobs(task)} == set(names), "all systems have jobs", DEADLINE_S)
        (gate / "open").touch()
        world.wait_task(task, "done", DEADLINE_S)
        done_s = time.monotonic() - begun
        check_units(world, task, xrootd, sums)
        if len(names) == 1:
            world.put_queue(status="draining")  # else they wait for work until they have waited long enough
        world.wait(world.all_ended, lambda: f"all workers end: {world.workers_seen()}", IDLE_S + 180.0)
        workers = world.workers_seen()
        check_workers(world, task, workers)
        world.wait(lambda: logs_are_home(world, workers), "the output of all workers is home")
        check_harvester(world, workers)
        print(figures(world, task, workers, done_s, time.monotonic() - begun))


def check_units(world: BatchWorld, task: int, xrootd: XrootdServer, sums: set[str]) -> None:
    """All done, once, by pilots of all the systems, in containers, as whom their jobs run as; logs of all jobs are there."""
    world.assert_sums(task, len(sums))
    assert {unit.state for unit in world.units(task)} == {"done"}
    jobs = world.jobs(task)
    assert {job.state for job in jobs} == {"finished"}, world.describe(task)
    assert sum(job.n_units for job in jobs) == len(sums), "no unit was done twice"
    users = {system.name: system.user_id for system in world.systems}
    assert {job.queue for job in jobs} == set(users)
    queues = {job.id: job.queue for job in jobs}
    found = []
    for output in world.outputs(task):
        said = xrootd.local_path("/" + output.url.removeprefix(xrootd.url).lstrip("/")).read_text().split()
        assert said[1:] == [str(users[queues[output.job_id]]), "container"]
        found.append(said[0])
    assert sorted(found) == sorted(sums)
    assert {log.job_id for log in world.outputs(task, "log")} == set(queues)


def check_workers(world: BatchWorld, task: int, workers: Sequence[WorkerView]) -> None:
    """Each had its pilot and ended well; nothing of any is left."""
    assert Counter(worker.state.value for worker in workers) == {"finished": len(workers)}, workers
    assert {worker.pilots for worker in workers} == {1}, workers
    pilots = {job.pilot_id for job in world.jobs(task)}
    assert len(pilots) <= len(workers)
    assert {worker.queue for worker in workers} == {system.name for system in world.systems}
    world.wait(
        lambda: not any(system.jobs_left() for system in world.systems),
        lambda: f"nothing is left: {[(system.name, system.jobs_left()) for system in world.systems]}",
    )
    marks = [worker.mark for worker in workers]
    world.wait(lambda: not processes_of_workers(marks), lambda: f"processes end: {processes_of_workers(marks)}")


def logs_are_home(world: BatchWorld, workers: Sequence[WorkerView]) -> bool:
    told = {path.parent.name: text for path, text in world.worker_logs()}
    return all("pilot" in told.get(worker.mark, "") for worker in workers)


def check_harvester(world: BatchWorld, workers: Sequence[WorkerView]) -> None:
    """It says itself that nothing is left and nothing is wrong."""
    status = world.harvester_says("status")
    assert status["running"] and status["last_cycle"]["problems"] == []
    counts = {name: queue["workers"] for name, queue in status["queues"].items()}
    for system in world.systems:
        ours = len([worker for worker in workers if worker.queue == system.name])
        assert {state: number for state, number in counts[system.name].items() if number} == {"finished": ours}
    assert world.harvester_says("workers") == []
    swept = world.cli("harvester", "sweep")
    assert swept.stdout == "nothing is left over\n", swept.stdout + swept.stderr


def figures(world: BatchWorld, task: int, workers: Sequence[WorkerView], done_s: float, over_s: float) -> str:
    """One line for people."""
    jobs = Counter(job.queue for job in world.jobs(task))
    by = ", ".join(
        f"{name}: {count} jobs by {Counter(w.queue for w in workers)[name]} workers" for name, count in jobs.items()
    )
    units = len(world.units(task))
    return f"\n{units} units done in {done_s:.1f} s, workers gone and logs home after {over_s:.1f} s ({WORKERS} workers a queue): {by}"
