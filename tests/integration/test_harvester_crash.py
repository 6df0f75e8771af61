"""``kill -9`` of harvester at each of its write points, then a restart: nobody orphaned, nobody submitted twice."""

from __future__ import annotations

import json
import os
import selectors
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.clock import Clock, FrozenClock, SystemClock
from common.wire import WorkersReportReply, WorkersReportRequest
from harvester.backends.base import Backend
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.backends.local import LocalBackend
from harvester.config import QueueConfig
from harvester.cycle import Cycle
from tests.harvester_world import QUEUE, FakeServer, config, end_local_workers, make_cycle

PILOTS = 3
DEADLINE_S = 20.0

WRITES = {
    "secrets": ("write", "remove", "sweep"),
    "store": ("plan", "apply", "mark_reported", "forget"),
    "server": ("report",),
    "backend": ("submit", "kill"),
}
"""The methods at which something outside the process is changed, by the part of the cycle that they belong to."""


class World:
    """What outlives harvester: its files, the server, the batch system."""

    inner: tuple[str, ...]
    """Methods of the batch system's own side, between two workers of one bulk call."""
    cycles = 1
    """How many cycles harvester gets to be killed in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = FakeServer(folder, PILOTS)
        self.queue = QueueConfig(max_workers=10, max_queued=10)
        self.clock: Clock = SystemClock()

    def backend(self) -> Backend:
        raise NotImplementedError

    def inside(self, backend: Backend) -> object:
        """The object that has the ``inner`` methods."""
        raise NotImplementedError

    def starts(self) -> list[str]:
        """The mark of every worker that was ever started, once for each start."""
        raise NotImplementedError

    def passes(self) -> None:
        """Let time pass between two cycles."""

    def close(self) -> None:
        """End what is left."""

    def run(self, cycle: Cycle) -> None:
        """What a harvester does from its start on."""
        cycle.sweep()
        for _ in range(self.cycles):
            cycle.run(threading.Event())
            self.passes()

    def harvester(self) -> tuple[Cycle, dict[str, object]]:
        """A new harvester process's objects, with the parts that write."""
        backend = self.backend()
        cycle, store = make_cycle(config(self.folder, self.queue), backend, self.server, self.clock)
        parts = {
            "secrets": cycle._secrets,
            "store": store,
            "server": self.server,
            "backend": backend,
            "inner": self.inside(backend),
        }
        return cycle, parts


class FakeWorld(World):
    inner = ("take",)
    cycles = 2

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.clock = FrozenClock()
        self.options = FakeOptions(start_delay_s=1, run_s=1000, journal=str(folder / "journal"))

    def backend(self) -> FakeBackend:
        return FakeBackend(FakeBatchSystem(self.options, self.clock))

    def inside(self, backend: Backend) -> object:
        assert isinstance(backend, FakeBackend)
        return backend.system

    def starts(self) -> list[str]:
        return self.backend().system.marks()

    def passes(self) -> None:
        assert isinstance(self.clock, FrozenClock)
        self.clock.advance(2)


class LocalWorld(World):
    inner = ("_submit_one", "_start")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.runs = folder / "runs"
        script = f"echo $PILOTAGE_WORKER_MARK >>{self.runs}; exec sleep 300"
        self.queue = QueueConfig(max_workers=10, max_queued=10, command=["/bin/sh", "-c", script, "{secret_file}"])

    def backend(self) -> LocalBackend:
        return LocalBackend(self.folder / "workers", self.clock)

    def inside(self, backend: Backend) -> object:
        return backend

    def starts(self) -> list[str]:
        """Once every wrapper that was started has got as far as its pilot."""
        folders = list((self.folder / "workers").iterdir())
        _wait_for(lambda: self.runs.exists() and len(self.runs.read_text().split()) >= len(folders))
        return self.runs.read_text().split()

    def close(self) -> None:
        end_local_workers(self.folder / "workers")


WORLDS: dict[str, Callable[[Path], World]] = {"fake": FakeWorld, "local": LocalWorld}


def watch(parts: dict[str, object], inner: tuple[str, ...], at: Callable[[str], None]) -> None:
    """Have ``at`` called before and after every call that writes."""
    for part, methods in {**WRITES, "inner": inner}.items():
        for method in methods:
            if hasattr(parts[part], method):
                setattr(parts[part], method, partial(_watched, getattr(parts[part], method), f"{part}.{method}", at))


def _watched(call: Callable[..., Any], name: str, at: Callable[[str], None], *arguments: Any) -> Any:
    at(f"before {name}")
    result = call(*arguments)
    at(f"after {name}")
    return result


def points_of(make: Callable[[Path], World], folder: Path) -> list[str]:
    """Every point of an undisturbed run at which harvester can be killed."""
    folder.mkdir()
    world = make(folder)
    seen: list[str] = []
    try:
        cycle, parts = world.harvester()
        watch(parts, world.inner, seen.append)
        world.run(cycle)
    finally:
        world.close()
    return seen


def killed_at(world: World, number: int) -> None:
    """Run harvester in a process that kills itself at the point of that number."""
    pid = os.fork()
    if pid == 0:
        try:
            left = [number]

            def at(_name: str) -> None:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            cycle, parts = world.harvester()
            watch(parts, world.inner, at)
            world.run(cycle)
        finally:
            os._exit(1)
    with selectors.DefaultSelector() as selector:
        descriptor = os.pidfd_open(pid)
        selector.register(descriptor, selectors.EVENT_READ)
        ended = selector.select(DEADLINE_S)
        os.close(descriptor)
        if not ended:
            os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGKILL, "it was to be killed, and it ended by itself"


@pytest.mark.parametrize("kind", ["fake", "local"])
def test_kill_at_each_write_point_then_restart(kind: str, tmp_path: Path) -> None:
    points = points_of(WORLDS[kind], tmp_path / "undisturbed")
    assert {name.split()[1] for name in points} >= {
        "secrets.write",
        "store.plan",
        "server.report",
        "store.mark_reported",
        "store.apply",
        "backend.submit",
        "secrets.remove",
    }
    failures: Counter[str] = Counter()
    for number, point in enumerate(points):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = WORLDS[kind](folder)
        try:
            killed_at(world, number)
            problem = _wrong_after_restart(world)
        finally:
            world.close()
        if problem:
            failures[f"{number} {point}: {problem}"] += 1
    print(f"{kind}: {len(points)} points")
    assert not failures


def _wrong_after_restart(world: World) -> str:
    cycle, parts = world.harvester()
    cycle.sweep()
    for _ in range(3):
        cycle.run(threading.Event())
    store = parts["store"]
    live = {worker.mark: worker for worker in store.live()}  # type: ignore[attr-defined]
    starts = world.starts()
    told = {report.mark: report for report in world.server.reports()}
    announced = {report.mark for report in world.server.reports() if report.secret_hash}
    checks = {
        f"{len(live)} workers live": len(live) == PILOTS,
        "a worker ended": not store.ended(100),  # type: ignore[attr-defined]
        f"started twice: {starts}": len(starts) == len(set(starts)),
        "a worker that harvester does not know": set(starts) <= live.keys(),
        "a worker that was lost": live.keys() <= set(starts),
        "submitted before it was announced": set(starts) <= announced,
        "the server does not know the last state": all(told[mark].state is live[mark].state for mark in live),
        "a secret was left": not list((world.folder / "state" / "secrets").iterdir()),
    }
    store.close()  # type: ignore[attr-defined]
    return "; ".join(what for what, good in checks.items() if not good)


# ---------------------------------------------------------------- the program itself


class Server(ThreadingHTTPServer):
    """The two calls of harvester, over HTTP."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.world = FakeServer(folder, PILOTS)
        self.answers = threading.Event()
        self.answers.set()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.world.calls.append("request")
        self.server.answers.wait(DEADLINE_S)
        self._answer(self.server.world.demand(self.path.split("/")[3]))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = msgspec.json.decode(body, type=WorkersReportRequest)
        self._answer(WorkersReportReply(self.server.world.report(request.workers)))

    def _answer(self, message: msgspec.Struct) -> None:
        content = msgspec.json.encode(message)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Program:
    """``pilotage harvester`` with local workers, against a server in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(folder)
        self.world = LocalWorld(folder)
        self.world.server = self.server.world
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        token = folder / "token"
        token.write_text("test-token")
        token.chmod(0o600)
        command = json.dumps(self.world.queue.command)
        (folder / "harvester.toml").write_text(
            f'[harvester]\nname = "h1"\nserver_url = "http://127.0.0.1:{self.server.server_port}"\n'
            f'token_file = "{token}"\nstate_dir = "{folder}/state"\ncycle_s = 0.1\n'
            f'[harvester.queues.{QUEUE}]\nbackend = "local"\ncommand = {command}\n'
            f'[harvester.queues.{QUEUE}.options]\nworkers_dir = "{folder}/workers"\nkill_grace_s = 1.0\n'
        )

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "common.cli.main",
                "--config",
                f"{self.folder}/harvester.toml",
                "harvester",
                *arguments,
            ],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *arguments: str) -> str:
        """The output of a command that must succeed."""
        process = self.popen(*arguments)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, output
        return output

    def states(self) -> Counter[str]:
        with sqlite3.connect(f"{self.folder}/state/harvester.db") as connection:
            return Counter(dict(connection.execute("SELECT state, count(*) FROM worker GROUP BY state")))

    def running(self, count: int) -> bool:
        path = self.folder / "state" / "harvester.db"
        try:
            return path.exists() and self.states()["running"] == count
        except sqlite3.OperationalError:  # just being made
            return False

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.world.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    made.close()


def test_program_killed_and_started_again_keeps_its_workers(program: Program) -> None:
    first = program.popen("run")
    _wait_for(lambda: program.running(PILOTS))
    first.kill()
    first.communicate(timeout=DEADLINE_S)
    before = sorted(program.world.starts())
    second = program.popen("run")
    try:
        calls = len(program.server.world.calls)
        _wait_for(lambda: len(program.server.world.calls) > calls + 5)
        assert sorted(program.world.starts()) == before
        assert program.states() == {"running": PILOTS}
    finally:
        second.terminate()
        output, _ = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0, output


def test_program_stops_within_seconds_and_leaves_its_workers(program: Program) -> None:
    process = program.popen("run")
    _wait_for(lambda: program.running(PILOTS))
    began = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, time.monotonic() - began < 3) == (0, True), output
    assert "Traceback" not in output
    status = json.loads(program.call("status", "--json"))
    assert status["running"] is False
    assert status["queues"][QUEUE]["workers"]["running"] == PILOTS
    workers = json.loads(program.call("workers", "--json"))
    assert sorted(worker["mark"] for worker in workers) == sorted(program.world.starts())
    assert program.call("kill-workers").splitlines() == ["no worker is left"]
    assert program.states() == {"cancelled": PILOTS}
    last = {report.mark: report.state.value for report in program.server.world.reports()}
    assert set(last.values()) == {"cancelled"}


def test_program_stops_within_seconds_although_the_server_hangs(program: Program) -> None:
    program.server.answers.clear()
    process = program.popen("run")
    try:
        _wait_for(lambda: program.server.world.calls)
        began = time.monotonic()
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, time.monotonic() - began < 6) == (0, True), output
        assert "Traceback" not in output
    finally:
        process.kill()
        program.server.answers.set()


def test_program_ends_its_workers_on_demand_while_it_runs(program: Program) -> None:
    process = program.popen("run")
    try:
        _wait_for(lambda: program.running(PILOTS))
        program.call("drain", QUEUE)
        program.call("kill-workers", QUEUE)
        assert program.states() == {"cancelled": PILOTS}
        assert "drained" in program.call("status")
        explained = program.call("explain", QUEUE)
        assert "the queue is drained" in explained
        assert "0 new workers" in explained
        program.call("drain", "--off")
        _wait_for(lambda: program.running(PILOTS))
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def test_program_runs_once_on_each_state_dir(program: Program) -> None:
    process = program.popen("run")
    try:
        _wait_for(lambda: program.running(PILOTS))
        second = program.popen("run")
        output, _ = second.communicate(timeout=DEADLINE_S)
        assert second.returncode == 2
        assert "another harvester runs on" in output
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def test_program_checks_its_configuration(program: Program) -> None:
    assert program.call("check").splitlines() == [f"queue {QUEUE}: server: ok", f"queue {QUEUE}: backend local: ok"]
    path = program.folder / "harvester.toml"
    path.write_text(path.read_text().replace("kill_grace_s", "kil_grace_s"))
    process = program.popen("check")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert f"[harvester.queues.{QUEUE}] options" in output
    assert "kil_grace_s" in output


def _wait_for(found: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + DEADLINE_S
    while not (value := found()):
        assert time.monotonic() < give_up
        threading.Event().wait(0.02)
    return value
