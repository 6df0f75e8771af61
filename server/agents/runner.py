"""Runs the agents: each in a thread of its own, on its period, under a lease in the database.

A lease saves work but proves nothing: what agents write is conditional, so two holders would do no harm.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from server.dispatch.context import Dispatcher
from server.store import agents
from server.store.database import DatabaseUnavailable

logger = logging.getLogger(__name__)

LEASE_PERIODS = 10
"""A lease lasts this many periods, at least :data:`MIN_LEASE_S`."""
MIN_LEASE_S = 15.0


@dataclass(frozen=True)
class Agent:
    """One periodic duty. ``work`` answers how many things it handled; more than none means: look again at once."""

    name: str
    period_s: float
    work: Callable[[Dispatcher], int]


class Runner:
    """Starts the agents' threads, and stops them."""

    def __init__(self, dispatcher: Dispatcher, duties: Sequence[Agent]) -> None:
        self._dispatcher = dispatcher
        self._duties = duties
        self._stop = threading.Event()
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start all agents."""
        self._bury()
        for agent in self._duties:
            thread = threading.Thread(target=self._run, args=(agent,), name=f"agent-{agent.name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Tell all agents to end, wait for them, give the leases back."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        try:
            with self._dispatcher.database.write() as connection:
                for agent in self._duties:
                    agents.drop_lease(connection, agent.name, self._holder)
        except DatabaseUnavailable as error:
            logger.warning("leases could not be given back: %s", error)

    def _bury(self) -> None:
        """Take the leases from a runner of this machine that was killed, so that nobody has to wait for their end."""
        try:
            with self._dispatcher.database.write() as connection:
                for name, holder in agents.holders(connection):
                    if _is_dead(holder):
                        logger.info("agent %s: its last holder %s was killed", name, holder)
                        agents.drop_lease(connection, name, holder)
        except DatabaseUnavailable as error:
            logger.warning("leases of dead runners could not be looked for: %s", error)

    def _run(self, agent: Agent) -> None:
        while not self._stop.is_set():
            handled = self.once(agent)
            if handled <= 0:
                self._stop.wait(agent.period_s)

    def once(self, agent: Agent) -> int:
        """One run, if the lease can be had; how much was handled. An error is logged, noted and survived."""
        started = self._dispatcher.now()
        clock_start = time.monotonic()
        handled, problem = 0, ""
        try:
            lease_s = max(MIN_LEASE_S, LEASE_PERIODS * agent.period_s)
            with self._dispatcher.database.write(durable=False) as connection:
                if not agents.take_lease(connection, agent.name, self._holder, started + lease_s, started):
                    return 0
            handled = agent.work(self._dispatcher)
        except DatabaseUnavailable as error:
            logger.warning("agent %s: the database is not available: %s", agent.name, error)
            return 0
        except Exception as error:
            logger.exception("agent %s failed", agent.name)
            problem = f"{type(error).__name__}: {error}"
        self._note(agent, started, time.monotonic() - clock_start, handled, problem)
        return 0 if problem else handled

    def _note(self, agent: Agent, started: float, seconds: float, handled: int, problem: str) -> None:
        if seconds > agent.period_s * LEASE_PERIODS:
            logger.warning("agent %s took %.1f s; its period is %.1f s", agent.name, seconds, agent.period_s)
        if not handled and not problem:
            return
        try:
            with self._dispatcher.database.write(durable=False) as connection:
                agents.note_run(connection, agent.name, started, seconds, handled, problem[:2000])
        except DatabaseUnavailable as error:
            logger.warning("agent %s: its run could not be noted: %s", agent.name, error)


def _is_dead(holder: str) -> bool:
    """Whether the holder of a lease was a process of this machine that is gone; not known of another machine's."""
    host, _, rest = holder.partition(":")
    pid = rest.partition(":")[0]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    if int(pid) == os.getpid():  # in a container the next process may have the very number of the last
        return True
    try:
        return psutil.Process(int(pid)).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
