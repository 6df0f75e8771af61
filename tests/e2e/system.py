"""The whole system as real processes on loopback, in one folder: server, harvester with the local backend, and its pilots.

::

    with System(tmp_path) as system:
        system.storage("disk")
        task = system.task(input={"kind": "counter", "count": 3}, jobscript="#!/bin/sh\\n")
        system.wait_task(task, "done")

However a test ends, everything is stopped by its own pid, and a process that is left is a failure of the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Self, TypeVar, Union

import psutil

from common.cli.api import Api
from common.http import HttpClient, HttpError
from common.states import FINAL_TASK_STATES, FINAL_UNIT_STATES, JobState, TaskState
from common.tokens import read_secret_file, write_secret_file
from common.wire import (
    EventView,
    Health,
    JobView,
    OutputView,
    TaskCommand,
    TaskView,
    UnitView,
    WorkflowView,
)
from tests.e2e.program import (
    STOP_S,
    Deadline,
    Program,
    gone,
    pilotage,
    processes_of,
    wait_for,
    without_forks,
    words_of,
)
from tests.services.base import free_port

__all__ = ["Deadline", "Program", "System", "gone", "wait_for"]

T = TypeVar("T")

SITE_NAME = "here"
QUEUE_NAME = "local"
FAST = {
    "heartbeat_s": 1.0,
    "worker_end_grace_s": 2.0,
    "sweep_after_s": 2.0,
    "idle_exit_s": 120.0,
    "acquire_wait_s": 2.0,
    # Everything runs on one host, and much of it is made to fail.
    "host_failures": 10_000,
}
"""The knobs of a small system that is in a hurry; ``settings`` overrides them."""
PILOT_FAST = {"PILOTAGE_PILOT_WATCH_S": "0.2", "PILOTAGE_PILOT_MEMORY_GRACE_S": "0.3"}
"""Configuration of the pilots; ``pilot_environment`` overrides it."""
DEADLINE_S = 180.0
ALL = 100_000


class System:
    """Server, harvester and pilots in ``folder``, with a site ``here`` and a queue ``local`` of ``slots`` slots of one core.

    ``database_url``: SQLite in the folder when None. ``settings``: knobs, over :data:`FAST`. ``queue``: fields of its
    QueueSpec. ``pilot_environment``: variables of the workers, over :data:`PILOT_FAST`. ``harvester=False`` starts none.
    ``configuration``: more sections of the configuration file, or more fields of those that there are.
    As a context manager it starts everything and, at the end, stops it and asserts that no process is left.
    """

    def __init__(
        self,
        folder: Path,
        database_url: Optional[str] = None,
        settings: Optional[Mapping[str, object]] = None,
        *,
        slots: int = 2,
        queue: Optional[Mapping[str, Any]] = None,
        pilot_environment: Optional[Mapping[str, str]] = None,
        harvester: bool = True,
        configuration: Optional[Mapping[str, Mapping[str, Any]]] = None,
    ) -> None:
        self.folder = folder / "system"
        self.folder.mkdir(parents=True)
        self.database_url = database_url
        self._settings = {**FAST, **(settings or {})}
        self._slots = slots
        self._queue = dict(queue or {})
        self._pilot_environment = {**PILOT_FAST, **(pilot_environment or {})}
        self._with_harvester = harvester
        self._configuration = configuration or {}
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = _environment(self.folder)
        ours = ("--config", str(self._config))
        self.server = Program("server", pilotage(*ours, "server"), self.folder, self.environment, self._answers)
        self.harvester = Program(
            "harvester", pilotage(*ours, "harvester", "run"), self.folder, self.environment, lambda: True
        )
        self.api = HttpClient(self.url, token=lambda: read_secret_file(self.admin_token))
        self.calls = Api(self.api)
        self.storages: dict[str, str] = {}
        self._distances: dict[str, int] = {}

    # ------------------------------------------------------------ start and stop

    def __enter__(self) -> Self:
        self._write_config()
        try:
            self.server.start()
            for key, value in self._settings.items():
                self.set(key, value)
            self.put(f"/v1/sites/{SITE_NAME}", {"name": SITE_NAME})
            self.put_queue()
            if self._with_harvester:
                self._make_harvester_token()
                self.harvester.start()
        except BaseException:
            self._destroy()
            raise
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if error is not None:
            error.add_note(self.logs())
            self._destroy()
            return
        try:
            self.stop()
        finally:
            left = self._destroy()
        assert not left, f"processes left behind: {left}\n{self.logs()}"

    def stop(self) -> None:
        """Stop harvester, the pilots and the server, in this order. Fails when one does not end in time."""
        for program in (self.harvester, self.server):
            program.thaw()
        if self.harvester.running:
            self.harvester.stop()
        pilots = self.pilots
        for pilot in pilots:
            with suppress(psutil.NoSuchProcess):
                pilot.terminate()
        wait_for(lambda: all(map(gone, pilots)), lambda: f"pilots end: {pilots}\n{self.logs()}", STOP_S)
        if self.server.running:
            self.server.stop()
        # The wrappers around the pilots write down how these ended.
        with suppress(Deadline):
            wait_for(lambda: not processes_of(self.folder), "the last processes end", STOP_S)

    def _destroy(self) -> list[str]:
        """Kill whatever is left; what that was."""
        self.api.close()
        left = [f"{process.pid} {' '.join(words_of(process))}" for process in processes_of(self.folder)]
        for program in (self.harvester, self.server):
            program.destroy()
        end = time.monotonic() + STOP_S
        while (rest := processes_of(self.folder)) and time.monotonic() < end:
            for process in rest:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(rest, timeout=1.0)
        return left

    def logs(self) -> str:
        """The ends of the logs of server, harvester and pilots."""
        pilots = [path for path in self.workers.glob("*/stderr") if path.stat().st_size]
        tails = [f"--- {path}\n{path.read_text(errors='replace')[-2500:]}" for path in pilots]
        return "\n".join([self.server.tail(), self.harvester.tail(), *tails])

    # ------------------------------------------------------------ the world

    @property
    def admin_token(self) -> Path:
        """Written by the server."""
        return self.folder / "server" / "admin.token"

    @property
    def workers(self) -> Path:
        """The folders of the local backend's workers."""
        return self.folder / "workers"

    def put(self, path: str, body: Mapping[str, Any]) -> None:
        """Describe something to the server, as an admin does."""
        self.api.call("PUT", path, body, type(None))

    def set(self, key: str, value: object) -> None:
        """Turn a knob of the server."""
        self.put(f"/v1/settings/{key}", {"value": value})

    def put_queue(self, **changes: Any) -> None:
        """Describe the queue again, with other fields."""
        self._queue.update(changes)
        fields = {
            "trusted": True,
            "cores": 1,
            "memory_mb": 1500,
            "disk_mb": 1500,
            "copytools": ["file", "xrootd"],
            **self._queue,
        }
        self.put(f"/v1/queues/{QUEUE_NAME}", {"name": QUEUE_NAME, "site": SITE_NAME, **fields})

    def storage(self, name: str, url: Optional[str] = None, *, site: str = SITE_NAME, distance: int = 0) -> Path:
        """Describe a storage: at ``url``, else a folder of this machine; the folder, which is empty.

        With another ``site`` that is made too, at ``distance`` from the queue's.
        """
        folder = self.folder / "storages" / name
        folder.mkdir(parents=True, exist_ok=True)
        if site != SITE_NAME:
            self.put(f"/v1/sites/{site}", {"name": site})
        self.storages[name] = url or folder.as_uri()
        self.put(f"/v1/storages/{name}", {"name": name, "site": site, "endpoints": [{"url": self.storages[name]}]})
        if distance:
            self._distances[name] = distance
            self.put(f"/v1/sites/{SITE_NAME}", {"name": SITE_NAME, "distances": self._distances})
        return folder

    # ------------------------------------------------------------ work

    def submit(self, workflow: Mapping[str, Any]) -> WorkflowView:
        """Submit a workflow, given as the JSON of a WorkflowRequest. Raises common.http.ProblemError."""
        return self.api.call("POST", "/v1/workflows", {"name": "test", "scope": "test", **workflow}, WorkflowView)

    def task(self, **stage: Any) -> int:
        """Submit a workflow of one stage, given by the fields of a StageSpec; its task's id."""
        needs = {"requirements": {"cores": 1, "memory_mb": 500, "disk_mb": 50}, "input": {"kind": "single"}}
        return self.submit({"stages": [{"name": "stage", **needs, **stage}]}).tasks[0].id

    def command(self, task_id: int, command: str) -> TaskView:
        """Pause, resume, kill or retry a task."""
        return self.calls.command(task_id, TaskCommand(command=command))

    def view(self, task_id: int) -> TaskView:
        """The task as it is now."""
        return self.calls.task(task_id)

    def wait_task(
        self,
        task_id: int,
        states: Union[str, Iterable[str]] = tuple(FINAL_TASK_STATES),
        deadline: float = DEADLINE_S,
    ) -> TaskView:
        """The task, once it is in one of ``states``; fails at once when it has ended in another."""
        wanted = {TaskState(state) for state in ([states] if isinstance(states, str) else states)}
        last: list[TaskView] = []

        def look() -> Optional[TaskView]:
            last[:] = [self.view(task_id)]
            over = last[0].state in FINAL_TASK_STATES or last[0].state in wanted
            return last[0] if over else None

        view = wait_for(look, lambda: f"task {task_id} {sorted(wanted)}: {self.describe(task_id)}", deadline)
        assert view.state in wanted, f"task {task_id} is {view.state.value}: {self.describe(task_id)}"
        return view

    def wait_jobs(
        self, task_id: int, states: Union[str, Iterable[str]], count: int = 1, deadline: float = DEADLINE_S
    ) -> list[JobView]:
        """The jobs of a task in ``states``, once there are at least ``count``."""
        wanted = {JobState(state) for state in ([states] if isinstance(states, str) else states)}

        def look() -> Optional[list[JobView]]:
            found = [job for job in self.jobs(task_id) if job.state in wanted]
            return found if len(found) >= count else None

        return wait_for(look, lambda: f"{count} jobs {sorted(wanted)}: {self.describe(task_id)}", deadline)

    def wait(
        self, condition: Callable[[], Optional[T]], what: Union[str, Callable[[], str]], deadline: float = DEADLINE_S
    ) -> T:
        """What ``condition`` gives, as soon as it is true."""
        return wait_for(condition, what, deadline)

    def units(self, task_id: int, **filters: Any) -> list[UnitView]:
        """All units of a task."""
        return self.calls.units(task_id, ALL, **filters)

    def jobs(self, task_id: int) -> list[JobView]:
        """All jobs of a task, with all that the server tells of each."""
        return [self.calls.job(job.id) for job in self.calls.jobs(ALL, task=task_id)]

    def outputs(self, task_id: int, role: Optional[str] = "output") -> list[OutputView]:
        """The confirmed outputs of a task, of one role or (None) of all."""
        found = self.calls.outputs(task_id, ALL)
        return [output for output in found if role is None or output.role == role]

    def events(self, **filters: Any) -> list[EventView]:
        """Events, of one ``task`` or ``job``."""
        return self.calls.events(ALL, **filters)

    def assert_sums(self, task_id: int, total: int) -> None:
        """Unit sums hold: the counts of the task are those of its units, and none is forgotten or twice there."""
        units = self.units(task_id)
        assert len({unit.id for unit in units}) == len(units) == total, self.describe(task_id)
        counts: dict[str, int] = {}
        for unit in units:
            counts[unit.state.value] = counts.get(unit.state.value, 0) + 1
        assert {state: number for state, number in self.view(task_id).units.items() if number} == counts
        assert sum(counts.values()) == total

    def assert_over(self, task_id: int) -> None:
        """Nothing of the task is under way any more."""
        assert all(unit.state in FINAL_UNIT_STATES for unit in self.units(task_id)), self.describe(task_id)

    def describe(self, task_id: int) -> str:
        """What is known of a task, for the message of a test that failed."""
        view = self.view(task_id)
        lines = [f"{view.state.value} ({view.state_reason}) units {view.units} jobs {view.jobs}"]
        for job in self.jobs(task_id)[:10]:
            lines.append(f"  job {job.id} {job.state.value} exit {job.exit_code} {job.error_code} {job.error_detail}")
        for unit in self.units(task_id)[:10]:
            lines.append(f"  unit {unit.seq} {unit.state.value} {unit.error_code} {unit.error_detail}")
        return "\n".join(lines)

    # ------------------------------------------------------------ processes

    @property
    def pilots(self) -> list[psutil.Process]:
        """The living pilots (not the wrappers around them), those of a harvester that was killed too."""
        return without_forks([process for process in processes_of(self.workers) if _is_pilot(words_of(process))])

    def pilot_logs(self) -> str:
        """All that the pilots have logged, those that have ended too."""
        return "".join(path.read_text(errors="replace") for path in self.workers.glob("*/stderr"))

    def payloads(self, text: str) -> list[psutil.Process]:
        """The living processes of this system whose command line holds ``text``, pilots and programs left out."""
        return without_forks(
            [
                process
                for process in processes_of(self.folder)
                if any(text in word for word in words_of(process)) and "common.cli.main" not in words_of(process)
            ]
        )

    def payload(self, text: str) -> psutil.Process:
        """The one living process of :meth:`payloads`, once it is there: a job runs a moment before its program does."""

        def found() -> Optional[psutil.Process]:
            processes = self.payloads(text)
            return processes[0] if len(processes) == 1 else None

        return self.wait(found, f"one process of {text} runs")

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``pilotage`` as the admin to its end."""
        return subprocess.run(
            pilotage("--config", str(self._config), *arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    # ------------------------------------------------------------ configuration

    @property
    def _config(self) -> Path:
        return self.folder / "pilotage.toml"

    def _answers(self) -> bool:
        if not self.admin_token.exists():
            return False
        try:
            self.api.call("GET", "/healthz", None, Health, retry=False)
        except HttpError:
            return False
        return True

    def _write_config(self) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        sections: dict[str, dict[str, object]] = {
            "server": {
                "state_dir": str(self.folder / "server"),
                "host": host,
                "port": int(port),
            },
            "client": {"server_url": self.url, "token_file": str(self.admin_token)},
            "harvester": {
                "name": "test",
                "server_url": self.url,
                "token_file": str(self.folder / "harvester.token"),
                "state_dir": str(self.folder / "harvester"),
                "cycle_s": 0.3,
            },
            **{f"harvester.queues.{name}": dict(_dotted(queue)) for name, queue in self.harvester_queues().items()},
        }
        if self.database_url:
            sections["server"]["database"] = self.database_url
        for section, more in self._configuration.items():
            sections.setdefault(section, {}).update(_dotted(more))
        lines: list[str] = []
        for section, fields in sections.items():
            # JSON's strings, numbers and lists of them are TOML's too.
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in fields.items()), ""]
        self._config.write_text("\n".join(lines), encoding="utf-8")

    def harvester_queues(self) -> dict[str, dict[str, Any]]:
        """The queues that harvester serves, by name: tables of its configuration."""
        command = pilotage(
            *("pilot", "run", "--server", "{server}", "--worker", "{mark}"),
            *("--secret-file", "{secret_file}", "--work-dir", "{work_dir}"),
        )
        queue = {
            "backend": "local",
            "max_workers": self._slots,
            "max_queued": self._slots,
            "per_cycle": self._slots,
            "command": command,
            "options": {"workers_dir": str(self.workers)},
            "environment": self._pilot_environment,
        }
        return {QUEUE_NAME: queue}

    def _make_harvester_token(self) -> None:
        done = self.cli("server", "token", "--role", "harvester", "--subject", "test", "--ttl", "1d")
        assert done.returncode == 0, done.stderr
        write_secret_file(self.folder / "harvester.token", done.stdout.strip())


def _dotted(table: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """A table's keys and values, those of tables in it with dotted keys: JSON's objects are not TOML's."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value


def _is_pilot(words: list[str]) -> bool:
    return "--secret-file" in words and "run" in words and not any("local_wrapper" in word for word in words)


def _environment(folder: Path) -> dict[str, str]:
    """The environment of all programs: nothing that configures another installation, and no proxy to ourselves."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    return {
        **own,
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "PYTHONUNBUFFERED": "1",
        # Else the folders ``server`` and ``harvester`` where they are started would stand before our packages.
        "PYTHONSAFEPATH": "1",
    }
