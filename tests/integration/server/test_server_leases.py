"""The agents' leases: one holder at a time, and none that is dead."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.agents.runner import Agent, Runner
from server.store import agents
from tests.integration.server.harness import Site

NAME = "count-sheep"


def started(site: Site) -> tuple[Runner, list[int]]:
    """A runner of one agent that has started, and what its agent does."""
    runs: list[int] = []

    def work(_dispatcher: object) -> int:
        runs.append(1)
        return 0

    agent = Agent(NAME, 3600.0, work)
    runner = Runner(site.dispatcher, [agent])
    runner.start()
    runner.once(agent)
    runner.stop()
    return runner, runs


def leave_lease(site: Site, holder: str) -> None:
    """What a server that was killed leaves."""
    with site.dispatcher.database.write() as connection:
        assert agents.take_lease(connection, NAME, holder, site.dispatcher.now() + 1000.0, site.dispatcher.now())


@contextmanager
def ended(how: Callable[[subprocess.Popen[bytes]], object]) -> Iterator[int]:
    """The number of a process that was killed."""
    process = subprocess.Popen(["sleep", "600"])
    process.send_signal(signal.SIGKILL)
    how(process)
    try:
        yield process.pid
    finally:
        process.wait()


def zombie(process: subprocess.Popen[bytes]) -> None:
    """Dead, and nobody has asked how it ended."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_server_that_was_killed_does_not_hold_up_the_next_one(site: Site) -> None:
    """A bug: for up to 100 s after a crash the agents of the server that was started again did nothing."""
    for how in (subprocess.Popen.wait, zombie):
        with ended(how) as pid:
            leave_lease(site, f"{socket.gethostname()}:{pid}:0a0b0c0d")
            assert started(site)[1], f"the lease of a dead process holds: {how.__name__}"
    leave_lease(site, f"{socket.gethostname()}:{os.getpid()}:0a0b0c0d")
    assert started(site)[1], "in a container the next server has the number of the last"


def test_a_lease_of_the_living_or_of_another_machine_holds(site: Site) -> None:
    for holder in (f"{socket.gethostname()}:{os.getppid()}:0a0b0c0d", "elsewhere.example.org:4194305:0a0b0c0d", "odd"):
        leave_lease(site, holder)
        assert not started(site)[1], holder
        with site.dispatcher.database.write() as connection:
            assert agents.holders(connection) == [(NAME, holder)]
            agents.drop_lease(connection, NAME, holder)
