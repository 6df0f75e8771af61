"""Runs the agents: each in a thread of its own, on its period, under a lease in the database.

A lease saves work but proves nothing: what agents write is conditional, so two holders would do no harm. What the agents
did is written down every few seconds for all of them at once, an error or its end immediately.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil

from common.events import EventKind
from server.dispatch.context import Dispatcher
from server.store import agents, events
from server.store.agents import NOTE_S, RunNote
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
        self._mutex = threading.Lock()
        self._notes: dict[str, RunNote] = {}
        self._problems: dict[str, str] = {}
        self._held: dict[str, tuple[float, float]] = {}
        self._off: frozenset[str] = frozenset()

    def start(self) -> None:
        """Start all agents."""
        self._bury()
        self._register()
        for agent in self._duties:
            thread = threading.Thread(target=self._run, args=(agent,), name=f"agent-{agent.name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        thread = threading.Thread(target=self._keep_notes, name="agents-notes", daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Tell all agents to end, wait for them, write the last notes, give the leases back."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.note()
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

    def _register(self) -> None:
        """Make all agents known, so that they can be seen and switched before they have run; learn which are off."""
        try:
            with self._dispatcher.database.write() as connection:
                agents.register(connection, {each.name: each.period_s for each in self._duties}, self._dispatcher.now())
                self._off = frozenset(agents.switched_off(connection))
        except DatabaseUnavailable as error:
            logger.warning("the agents could not be made known: %s", error)

    def _run(self, agent: Agent) -> None:
        while not self._stop.is_set():
            handled = self.once(agent)
            if handled <= 0:
                self._stop.wait(agent.period_s)

    def _keep_notes(self) -> None:
        while not self._stop.wait(NOTE_S):
            self.note()

    def once(self, agent: Agent) -> int:
        """One run, if it is not switched off and the lease can be had; how much was handled.

        An error is logged, noted and survived.
        """
        if agent.name in self._off:
            return 0
        started = self._dispatcher.now()
        clock_start = time.monotonic()
        handled, problem = 0, ""
        try:
            if not self._has_lease(agent, started):
                return 0
            handled = agent.work(self._dispatcher)
        except DatabaseUnavailable as error:
            logger.warning("agent %s: the database is not available: %s", agent.name, error)
            self._held.pop(agent.name, None)
            return 0
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:2000]
            if problem != self._problems.get(agent.name):
                logger.exception("agent %s failed", agent.name)
            else:
                logger.warning("agent %s failed again: %s", agent.name, problem)
        self._done(agent, started, time.monotonic() - clock_start, handled, problem)
        return 0 if problem else handled

    def _has_lease(self, agent: Agent, now: float) -> bool:
        """Take the lease, or renew it when half of it is over: an agent that runs often need not write each time."""
        lease_s = max(MIN_LEASE_S, LEASE_PERIODS * agent.period_s)
        since, half = self._held.get(agent.name, (0.0, 0.0))
        if since <= now < half:
            return True
        with self._dispatcher.database.write(durable=False) as connection:
            if not agents.take_lease(connection, agent.name, self._holder, now + lease_s, now):
                self._held.pop(agent.name, None)
                return False
        self._held[agent.name] = (now, now + lease_s / 2)
        return True

    def _done(self, agent: Agent, started: float, seconds: float, handled: int, problem: str) -> None:
        overrun = seconds > agent.period_s
        now = self._dispatcher.now()
        due = now if handled > 0 and not problem else now + agent.period_s
        with self._mutex:
            last = self._notes.get(agent.name)
            if overrun and (last is None or last.seconds <= agent.period_s):
                logger.warning("agent %s took %.1f s; its period is %.1f s", agent.name, seconds, agent.period_s)
            self._notes[agent.name] = RunNote(
                agent.name, agent.period_s, self._holder, started, seconds, handled, due,
                error=problem,
                error_time=started if problem else last.error_time if last else None,
                runs=1 + (last.runs if last else 0),
                errors=bool(problem) + (last.errors if last else 0),
                overruns=overrun + (last.overruns if last else 0),
            )  # fmt: skip
        before = self._problems.get(agent.name, "")
        self._problems[agent.name] = problem
        if bool(before) != bool(problem):
            self.note(self._change(agent, started, before, problem))

    def _change(self, agent: Agent, now: float, before: str, problem: str) -> events.Event:
        kind = EventKind.AGENT_FAILED if problem else EventKind.AGENT_RECOVERED
        return events.Event(now, kind, "agent", agent.name, detail={"error": (problem or before)[:500]})

    def note(self, *changes: events.Event) -> None:
        """Write down what the agents did since the last time, and learn which are switched off."""
        with self._mutex:
            notes = [each for each in self._notes.values() if each.runs]
        try:
            with self._dispatcher.database.write(durable=False) as connection:
                agents.note_runs(connection, notes)
                events.add(connection, *changes)
                self._off = frozenset(agents.switched_off(connection))
        except DatabaseUnavailable as error:
            logger.warning("what the agents did could not be noted: %s", error)
            return
        with self._mutex:
            for each in notes:
                now = self._notes[each.name]
                self._notes[each.name] = replace(
                    now,
                    runs=now.runs - each.runs,
                    errors=now.errors - each.errors,
                    overruns=now.overruns - each.overruns,
                )


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
