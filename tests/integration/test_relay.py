"""Pilots without any network: through a mailbox to a real server, and through crashes of everybody on the way."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.states import JobState
from harvester.relay.mailbox import MailboxRelay
from tests.e2e.program import Program, pilotage, wait_for
from tests.e2e.system import System
from tests.integration.worker import register_worker
from tests.services.base import give_up

MARK = "relayed-worker-1"
NO_NETWORK = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
KILLS = 6


@pytest.fixture
def no_network() -> list[str]:
    """The words that run a command in a network of its own: not even loopback is up there."""
    if subprocess.run([*NO_NETWORK, "true"], stderr=subprocess.DEVNULL).returncode != 0:
        give_up("this machine makes no network namespaces")
    return NO_NETWORK


def relay_program(server_url: str, box: Path, folder: Path, environment: dict[str, str]) -> Program:
    words = pilotage("harvester", "relay", "--server", server_url, "--folder", str(box))
    return Program("relay", words, folder, environment, lambda: (box / "relay").exists())


@contextlib.contextmanager
def relaying(system: System, box: Path) -> Iterator[Program]:
    program = relay_program(system.url, box, system.folder, system.environment)
    program.start()
    try:
        yield program
        if program.running:
            program.stop()
    finally:
        program.destroy()


def restarted(relay: Program, box: Path) -> None:
    """Kill a relay and start it again; back when it serves."""
    relay.kill9()
    (box / "relay").unlink()
    relay.start()


def files_in(box: Path) -> list[str]:
    """What lies in a mailbox, but for the relay's own file and its folders."""
    found = (path for path in box.rglob("*") if path.name not in ("requests", "replies", "relay", ".relay"))
    return sorted(path.relative_to(box).as_posix() for path in found)


def pilot_command(box: Path, folder: Path, *more: str) -> list[str]:
    named = ("--server", f"mailbox://{box}", "--worker", MARK, "--secret-file", str(folder / "secret"))
    return pilotage("pilot", "run", *named, "--work-dir", str(folder / "work"), *more)


def test_a_pilot_without_network_works_through_the_mailbox(tmp_path: Path, no_network: list[str]) -> None:
    with System(tmp_path, harvester=False) as system, relaying(system, system.folder / "box") as relay:
        box = system.folder / "box"
        system.storage("disk")
        register_worker(system, MARK, system.folder / "secret")
        good = system.task(
            input={"kind": "counter", "count": 3},
            jobscript="#!/bin/sh\nseq 200000 >big.txt\n",
            outputs=[{"pattern": "*.txt"}],
        )
        bad = system.task(jobscript="#!/bin/sh\nhead -c 100000 /dev/urandom | base64; exit 3\n")
        command = [*no_network, *pilot_command(box, system.folder, "--idle-exit", "1")]
        done = subprocess.run(
            command, cwd=system.folder, env=system.environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr + relay.tail()
        assert [job.state for job in system.jobs(good)] == [JobState.FINISHED] * 3
        failed = [job for job in system.jobs(bad) if job.state is JobState.FAILED]
        log = system.cli("log", str(failed[0].id))
        assert log.returncode == 0, log.stderr
        assert files_in(box) == []
        secret = (system.folder / "secret").read_text().strip()
        assert secret not in relay.log.read_text() and "pls_" not in relay.log.read_text()


def test_harvester_is_the_relay_of_its_own_pilots(tmp_path: Path) -> None:
    class Relayed(System):
        def _write_config(self) -> None:
            super()._write_config()
            text = self._config.read_text()
            box = self.folder / "box"
            text = text.replace('backend = "local"', f'backend = "local"\nserver_url = "mailbox://{box}"')
            self._config.write_text(f'{text}\n[harvester.relay]\nfolder = "{box}"\n')

    leaves = {"PILOTAGE_PILOT_IDLE_EXIT_S": "0.5"}
    with Relayed(tmp_path, slots=1, pilot_environment=leaves) as system:
        task = system.task(input={"kind": "counter", "count": 2}, jobscript="#!/bin/sh\n")
        system.wait_task(task, "done")
        assert f"mailbox://{system.folder}/box" in system.harvester.log.read_text()
        assert system.url not in system.pilot_logs()
        wait_for(lambda: not system.pilots, system.logs, 120)  # before their way out is gone


def test_a_relay_killed_at_any_moment_costs_no_job(tmp_path: Path) -> None:
    units = 8
    with System(tmp_path, harvester=False) as system, relaying(system, system.folder / "box") as relay:
        box, rng = system.folder / "box", random.Random(7)
        register_worker(system, MARK, system.folder / "secret")
        task = system.task(input={"kind": "counter", "count": units}, jobscript="#!/bin/sh\nsleep 0.1\n")
        pilot = Program(
            "pilot",
            pilot_command(box, system.folder),
            system.folder,
            system.environment,
            lambda: (system.folder / "work" / "pilot.log").exists(),
        )
        try:
            pilot.start()
            for _ in range(KILLS):
                threading.Event().wait(rng.uniform(0.0, 0.6))
                restarted(relay, box)
            system.wait_task(task, "done")
            system.assert_sums(task, units)
            assert [job.state for job in system.jobs(task)] == [JobState.FINISHED] * units
            assert pilot.stop() == 143
        finally:
            pilot.destroy()
        wait_for(lambda: not list((box / "requests").glob("[0-9a-f]*")), lambda: f"left: {files_in(box)}", 120)


class Counting(BaseHTTPRequestHandler):
    """Answers a number with that number, and notes how often it was asked."""

    seen: dict[int, int]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = json.loads(body)["number"]
        self.seen[number] = self.seen.get(number, 0) + 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The test looks at what was counted."""


ASK = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from common.http import HttpClient, Unreachable
client, first, count = HttpClient(sys.argv[1], retries=0), int(sys.argv[2]), int(sys.argv[3])
def ask(number):
    while True:
        try:
            reply = client.call("POST", "/v1/x", {"number": number, "pad": "x" * 50_000}, dict, timeout=2.0)
        except Unreachable:
            continue
        assert reply["number"] == number, (reply["number"], number)
        os.write(1, b"%d\\n" % number)
        return
with ThreadPoolExecutor(4) as pool:
    list(pool.map(ask, range(first, first + count)))
client.close()
"""


def test_no_call_is_lost_however_often_relay_and_clients_are_killed(tmp_path: Path) -> None:
    count, rng = 400, random.Random(11)
    box, environment = tmp_path / "box", {**os.environ, "no_proxy": "127.0.0.1"}

    class Seen(Counting):
        seen: dict[int, int] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Seen)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    relay = relay_program(url, box, tmp_path, environment)
    clients: list[subprocess.Popen[str]] = []

    def client(first: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", ASK, f"mailbox://{box}", str(first), str(count)]
        clients.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
        return clients[-1]

    try:
        relay.start()
        lasting = client(0)
        for kill in range(KILLS):
            short_lived = client(1_000_000 + kill * count)
            threading.Event().wait(rng.uniform(0.0, 0.4))
            if kill % 2:
                short_lived.kill()
            restarted(relay, box)
        answered = [int(line) for line in lasting.communicate()[0].split()]
        assert lasting.returncode == 0 and sorted(answered) == list(range(count))
        asked = {number: times for number, times in Seen.seen.items() if number < count}
        assert set(asked) == set(range(count))
        # Beyond what the client repeats itself, a kill can repeat only what was under way: four calls.
        assert sum(asked.values()) - count <= 8 * KILLS
    finally:
        for process in clients:
            process.kill()
            process.wait()
        relay.destroy()
        server.shutdown()
        server.server_close()
    swept = MailboxRelay(box, lambda _call: pytest.fail("nobody waits for this"))
    long_ago = time.time() - 10 * 86400
    for path in (*box.glob("requests/*"), *box.glob("requests/.*"), *box.glob("replies/*/*"), *box.glob("replies/*")):
        os.utime(path, (long_ago, long_ago))
    swept.sweep()
    for path in box.glob("replies/*"):  # a box has been used when a file in it goes
        os.utime(path, (long_ago, long_ago))
    swept.sweep()
    assert files_in(box) == []


def test_a_relay_stops_at_once_although_a_call_waits(tmp_path: Path) -> None:
    answer = threading.Event()

    class Slow(Counting):
        seen: dict[int, int] = {}

        def do_POST(self) -> None:
            answer.wait(240)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    relay = relay_program(f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "box", tmp_path, environment)
    relay.start()
    client = subprocess.Popen([sys.executable, "-c", ASK, f"mailbox://{tmp_path}/box", "0", "1"], env=environment)
    try:
        wait_for(lambda: list((tmp_path / "box/requests").glob("[0-9a-f]*")), "the request", 120)
        began = time.monotonic()
        assert relay.stop() == 0
        assert time.monotonic() - began < 30, "it waited for the call"
    finally:
        client.kill()
        client.wait()
        answer.set()
        relay.destroy()
        server.shutdown()
        server.server_close()
