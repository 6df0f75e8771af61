"""``kill -9`` of harvester at each of its write points, then a restart: nobody orphaned, nobody submitted twice."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from common.clock import SystemClock
from common.wire import WorkersReportReply, WorkersReportRequest
from harvester.backends.fake import FakeBatchSystem, FakeOptions
from harvester.config import HarvesterConfig, QueueConfig
from tests.harvester_world import QUEUE, FakeServer, config, end_local_workers
from tests.integration.crash_matrix import as_table, crash_matrix

PILOTS = 3
DEADLINE_S = 180.0


class LocalWorkers:
    """Workers of the local backend that write down that they were started, and stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        script = f"echo $PILOTAGE_WORKER_MARK >>{self.runs}; exec sleep 300"
        self.queue = QueueConfig(
            max_workers=10,
            max_queued=10,
            command=["/bin/sh", "-c", script, "{secret_file}"],
            options={"workers_dir": str(folder / "workers"), "kill_grace_s": 0.0},
        )

    def starts(self) -> list[str]:
        """The mark of every worker that was started, once for each start; once every wrapper has got to its pilot."""
        folders = list((self.folder / "workers").glob("*"))
        _wait_for(lambda: not folders or (self.runs.exists() and len(self.runs.read_text().split()) >= len(folders)))
        return self.runs.read_text().split() if folders else []

    def close(self) -> None:
        end_local_workers(self.folder / "workers")


# ---------------------------------------------------------------- the matrix


def with_local_workers(folder: Path) -> HarvesterConfig:
    return config(folder, LocalWorkers(folder).queue)


def with_fake_workers(folder: Path) -> HarvesterConfig:
    options = {"start_delay_s": 0.0, "run_s": 1000.0, "journal": str(folder / "journal")}
    return config(folder, QueueConfig(backend="fake", max_workers=10, max_queued=10, options=options))


def fake_marks(folder: Path) -> list[str]:
    options = FakeOptions(journal=str(folder / "journal"))
    return FakeBatchSystem(options, SystemClock()).marks()


def test_kill_at_each_write_point_then_restart_with_the_fake_batch_system(tmp_path: Path) -> None:
    take = "harvester.backends.fake:FakeBatchSystem.take"
    rows = crash_matrix(tmp_path, with_fake_workers, fake_marks, inner=[take])
    print(as_table(rows))
    assert {row.point.split()[1] for row in rows} >= {
        "secrets.write",
        "secrets.remove",
        "secrets.sweep",
        "store.plan",
        "store.apply",
        "store.mark_reported",
        "server.report",
        "backend.submit",
        "take",
    }
    assert {len(row.found) for row in rows} == {0, 1, 2, 3}, "it was killed before, within and after the submission"
    assert [row for row in rows if row.wrong] == []


def test_kill_at_each_write_point_then_restart_with_local_workers(tmp_path: Path) -> None:
    inner = [f"harvester.backends.local:LocalBackend.{method}" for method in ("_submit_one", "_start")]
    rows = crash_matrix(
        tmp_path,
        with_local_workers,
        lambda folder: LocalWorkers(folder).starts(),
        inner=inner,
        cycles=1,
        finish=lambda folder: LocalWorkers(folder).close(),
    )
    print(as_table(rows))
    assert len(rows) >= 20
    assert [row for row in rows if row.wrong] == []


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
        self.world = LocalWorkers(folder)
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

    def popen(
        self,
        *arguments: str,
        how: Sequence[str] = ("-m", "common.cli.main"),
        output: IO[str] | int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                *how,
                "--config",
                f"{self.folder}/harvester.toml",
                "harvester",
                *arguments,
            ],
            cwd=Path(__file__).parents[2],
            stdout=output,
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
    assert (process.returncode, time.monotonic() - began < 20) == (0, True), output
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
        assert (process.returncode, time.monotonic() - began < 30) == (0, True), output
        assert "Traceback" not in output
    finally:
        process.kill()
        program.server.answers.set()


HANGING = """
import concurrent.futures, threading
from common.cli.main import main
from harvester.backends.local import LocalBackend

submit = LocalBackend.submit
def hang(self, specs):
    submit(self, specs)
    # A thread that the interpreter would wait for at its end.
    concurrent.futures.ThreadPoolExecutor().submit(threading.Event().wait).result()
LocalBackend.submit = hang
main()
"""


def test_program_stops_within_seconds_although_a_batch_system_hangs_and_finds_its_workers(program: Program) -> None:
    process = program.popen("run", how=("-c", HANGING))
    try:
        _wait_for(lambda: program.world.runs.exists() and len(program.world.starts()) == PILOTS)
        began = time.monotonic()
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, time.monotonic() - began < 30) == (0, True), output
        assert "left in the middle of a step" in output
        assert program.states() == {"submitting": PILOTS}
    finally:
        process.kill()
    process = program.popen("run")
    try:
        _wait_for(lambda: program.running(PILOTS))
        assert len(program.world.starts()) == PILOTS
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


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


def test_a_start_waits_for_a_command_that_works_on_its_state_dir(program: Program) -> None:
    """A harvester that started while ``status``, ``check`` or ``kill-workers`` had the folder once gave up at once."""
    program.call("status")
    with (program.folder / "state" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = program.popen("run")
        assert process.stdout is not None
        told = process.stdout.readline()
    try:
        assert "is in use: waiting" in told
        _wait_for(lambda: program.running(PILOTS))
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output


def test_those_who_only_look_keep_nobody_out(program: Program) -> None:
    program.call("status")
    with (program.folder / "state" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert json.loads(program.call("status", "--json"))["running"] is False
        assert "in use" not in program.call("check")


def test_program_checks_its_configuration(program: Program) -> None:
    told = program.call("check").splitlines()
    assert [line.split(maxsplit=1)[0] for line in told] == ["ok"] * 4
    assert told[2].endswith(f"queue {QUEUE}: server: online, {PILOTS} pilots wanted")
    assert told[3].endswith(f"queue {QUEUE}: backend local: it answers")
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
