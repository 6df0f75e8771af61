"""Where a pilot is measured: a server with one queue and one storage in a folder, and pilots that are started there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import psutil

from common.cli import demo_world as world
from common.cli.api import QUEUE, Api
from common.cli.demo import LISTENING
from common.cli.demo_processes import DemoError, Processes, ended_by_signals
from common.cli.demo_world import DemoFolder, pilotage
from common.http import HttpClient
from common.states import FINAL_JOB_STATES, JobState, WorkerState
from common.tokens import hash_secret, new_secret, read_secret_file, write_secret_file
from common.wire import (
    JobView,
    QueueSpec,
    Shape,
    StageSpec,
    TaskCommand,
    WorkerReport,
    WorkersReportReply,
    WorkersReportRequest,
    WorkflowRequest,
)

_WRONG = FINAL_JOB_STATES - {JobState.FINISHED, JobState.CLOSED}
CORES = 8
LOOK_S = 0.1
PATIENCE_S = 300.0
"""How long any one thing may take."""


@dataclass
class Place:
    """A server that runs, and what is needed to use it."""

    folder: DemoFolder
    processes: Processes
    api: Api
    url: str
    harvester: HttpClient
    _pilots: int = field(default=0)

    def submit(self, stage: StageSpec) -> int:
        """Submit a workflow of one stage; its task's id."""
        request = WorkflowRequest(name="bench", scope="bench", stages=[stage])
        return self.api.submit(request).tasks[0].id

    def jobs(self, task_id: int) -> list[JobView]:
        """The jobs of a task, in the order of their claims."""
        return sorted(self.api.jobs(10_000, task=task_id), key=lambda view: view.claimed)

    def kill(self, task_id: int) -> None:
        """End a task and its jobs."""
        self.api.command(task_id, TaskCommand("kill"))

    def rss_mb(self, name: str) -> float:
        """Resident memory of one program, without its children, in MB (2**20 bytes)."""
        return round(psutil.Process(self.processes.pid(name)).memory_info().rss / 2**20, 1)

    def wait_for_jobs(
        self, task_id: int, count: int, state: Optional[JobState] = None, *, all_good: bool = False
    ) -> list[JobView]:
        """Until so many jobs of a task are in a state, or over.

        Raises:
            DemoError: a program died, this takes too long, or, if they are to be ``all_good``, a job went wrong.
        """

        def there() -> Optional[list[JobView]]:
            views = self.jobs(task_id)
            bad = [view for view in views if all_good and view.state in _WRONG]
            if bad:
                raise DemoError(f"job {bad[0].id} is {bad[0].state.value}: {bad[0].error_detail}")
            good = [view for view in views if view.state == state or (state is None and view.state in FINAL_JOB_STATES)]
            return views if len(good) >= count else None

        what = f"{count} jobs {state.value if state is not None else 'over'}"
        deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while time.monotonic() < deadline:
            found = there()
            if found is not None:
                return found
            if self.processes.wait(0.0):
                raise DemoError(self.processes.obituary())
            pause.wait(LOOK_S)
        raise DemoError(f"not within {PATIENCE_S:.0f} s: {what}; {self._why(task_id)}")

    def _why(self, task_id: int) -> str:
        """Why no slot takes what is left of a task."""
        refused = [refusal for reply in self.api.why_task(task_id) for refusal in reply.refusals]
        return "; ".join(f"{each.filter}: {each.detail}" for each in refused[:3]) or "nothing refuses its units"

    @contextmanager
    def pilot(self, cores: int) -> Iterator[str]:
        """A pilot with so many cores; its name among the processes. It is stopped at the end."""
        self._pilots += 1
        name = f"bench-pilot-{self._pilots}"
        secret_file = self._plan_worker(name, cores)
        self.processes.start(
            name,
            pilotage(
                *("pilot", "run", "--server", self.url, "--worker", name, "--secret-file", str(secret_file)),
                *("--work-dir", str(self.folder.root / name), "--idle-exit", "3600"),
            ),
            more={"PILOTAGE_PILOT_CORES": str(cores)},
        )
        yield name
        self.processes.end(name)

    def _plan_worker(self, mark: str, cores: int) -> Path:
        """Write a worker down as harvester would; the file with its secret."""
        secret, secret_file = new_secret(), self.folder.root / f"{mark}.secret"
        write_secret_file(secret_file, secret + "\n")
        report = WorkerReport(
            mark=mark,
            queue=world.QUEUE_NAME,
            state=WorkerState.PLANNED,
            shape=Shape(cores=cores),
            secret_hash=hash_secret(secret),
            valid_s=86400.0,
        )
        request = WorkersReportRequest(harvester="bench", workers=[report])
        outcome = self.harvester.call("POST", "/v1/workers:report", request, WorkersReportReply).workers[0]
        if not outcome.accepted:
            raise DemoError(f"the server refused the worker: {outcome.reason}")
        return secret_file


@contextmanager
def place(root: Path, binds: list[str]) -> Iterator[Place]:
    """A server in the folder ``root``, with a queue whose containers have ``binds``."""
    folder = DemoFolder(root)
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    with ended_by_signals(), Processes(environment, root) as processes:
        world.write_server_config(folder)
        url = processes.start("server", pilotage("--config", str(folder.server_config), "server"), LISTENING)
        processes.run(
            pilotage(
                *("--config", str(folder.server_config), "server", "token", "--role", "harvester"),
                *("--subject", "bench", "--output", str(folder.harvester_token)),
            ),
            root / "token.log",
        )
        admin = HttpClient(url, token=lambda: read_secret_file(folder.admin_token), retries=1)
        harvester = HttpClient(url, token=lambda: read_secret_file(folder.harvester_token), retries=1)
        with closing(admin), closing(harvester):
            api = Api(admin)
            world.describe_world(api, folder)
            queue = QueueSpec(
                name=world.QUEUE_NAME,
                site=world.SITE_NAME,
                cores=CORES,
                trusted=True,  # the payloads are our own
                copytools=["file"],
                container_binds=binds,
            )
            api.put_resource(QUEUE, world.QUEUE_NAME, queue)
            yield Place(folder, processes, api, url, harvester)
