"""Harvester as a program: cycles on a timer until it is told to stop, one on each state_dir."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec

from common.clock import Clock
from common.config import ConfigError
from harvester.api import HttpServerApi
from harvester.backends.base import Backend, load
from harvester.config import HarvesterConfig, backend_key
from harvester.cycle import Cycle, Outcome
from harvester.secret_files import SecretFiles
from harvester.store import Store

log = logging.getLogger(__name__)

STOP_S = 3.0
"""How long a stop waits for the step in hand. After that it is cut off, which every step survives."""
KILL_CHECK_S = 0.5
"""How often the batch system is asked whether workers that were told to end have ended."""


class LastCycle(msgspec.Struct):
    """What ``<state_dir>/cycle.json`` says of the last cycle. ``started`` is in seconds since the epoch."""

    started: float
    duration_s: float
    problems: list[str] = []


@dataclass(frozen=True)
class Parts:
    """All that a harvester is made of."""

    config: HarvesterConfig
    state_dir: Path
    store: Store
    server: HttpServerApi
    cycle: Cycle
    clock: Clock

    def close(self) -> None:
        """Close database and connections."""
        self.server.close()
        self.store.close()


def state_dir_of(config: HarvesterConfig) -> Path:
    """The state_dir, made with mode 0700. Raises ConfigError when it can't be used."""
    state_dir = Path(config.state_dir).expanduser().absolute()
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state_dir: {state_dir}: {error.strerror}; choose a folder of your own") from error
    return state_dir


def open_store(config: HarvesterConfig, clock: Clock) -> Store:
    """The store of a harvester. Raises ConfigError."""
    return Store(state_dir_of(config) / "harvester.db", clock)


def assemble(config: HarvesterConfig, clock: Clock) -> Parts:
    """Put a harvester together from its configuration. Raises PilotageError (BAD_CONFIGURATION)."""
    state_dir = state_dir_of(config)
    store = open_store(config, clock)
    server = HttpServerApi(config)
    secrets = SecretFiles(state_dir / "secrets")
    cycle = Cycle(config, make_backends(config, state_dir, clock), store, secrets, server, clock)
    return Parts(config, state_dir, store, server, cycle, clock)


def make_backends(config: HarvesterConfig, state_dir: Path, clock: Clock) -> dict[str, Backend]:
    """The backend of each queue; queues with the same backend and options share one.

    Raises PilotageError (BAD_CONFIGURATION), which names the queue.
    """
    made: dict[bytes, Backend] = {}
    backends: dict[str, Backend] = {}
    for name, queue in config.queues.items():
        key = backend_key(queue)
        try:
            if key not in made:
                made[key] = load(queue.backend).create(queue.options, state_dir, clock)
        except ConfigError as error:
            raise ConfigError(f"[harvester.queues.{name}] {error.detail}") from error
        backends[name] = made[key]
    return backends


@contextmanager
def alone(state_dir: Path) -> Iterator[bool]:
    """Be the one harvester of a state_dir while inside; yields whether that is so. A crash gives it up too."""
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


class Service:
    """Runs cycles in a thread of their own; the main thread waits for the signal to stop. Workers are left alone."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stop = threading.Event()
        self._problems: list[str] = []
        self._failure: Exception | None = None

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then leave within STOP_S. To be called in the main thread.

        Raises ConfigError when another harvester runs on the same state_dir, and whatever ended the cycles.
        """
        with alone(self._parts.state_dir) as first:
            if not first:
                raise ConfigError(
                    f"state_dir: another harvester runs on {self._parts.state_dir}; stop it, or choose another folder"
                )
            reader, writer = socket.socketpair()
            with reader, writer, _signals_to(writer):
                # A daemon: when the grace is over the program ends although a step still waits for an answer.
                thread = threading.Thread(target=self._cycles, args=(writer,), name="cycles", daemon=True)
                thread.start()
                reader.recv(1)
                self._stop.set()
                self._parts.server.close()
                thread.join(STOP_S)
        if self._failure is not None:
            raise self._failure

    def _cycles(self, wake: socket.socket) -> None:
        clock = self._parts.clock
        try:
            self._parts.cycle.sweep()
            log.info("harvester %s serves %s", self._parts.config.name, ", ".join(sorted(self._parts.config.queues)))
            wait_s = 0.0
            while not self._stop.wait(wait_s):
                began, started = clock.monotonic(), clock.now()
                outcome = self._parts.cycle.run(self._stop)
                duration_s = clock.monotonic() - began
                self._note(LastCycle(started, duration_s, outcome.problems), outcome)
                wait_s = max(0.0, self._parts.config.cycle_s - duration_s)
        except Exception as failure:  # noqa: BLE001 - handed to the main thread, which raises it
            self._failure = failure
            if not self._stop.is_set():
                wake.send(b"\0")

    def _note(self, last: LastCycle, outcome: Outcome) -> None:
        for problem in outcome.problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        if self._problems and not outcome.problems:
            log.info("all is well again")
        self._problems = outcome.problems
        if outcome.planned or outcome.submitted:
            log.info("planned %d workers, submitted %d", outcome.planned, outcome.submitted)
        path = self._parts.state_dir / "cycle.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(last))
        temporary.replace(path)


def last_cycle(state_dir: Path) -> LastCycle | None:
    """What the last cycle left; None before the first. Raises OSError or msgspec.DecodeError when it can't be read."""
    path = state_dir / "cycle.json"
    return msgspec.json.decode(path.read_bytes(), type=LastCycle) if path.exists() else None


def kill_workers(parts: Parts, queues: Sequence[str], timeout_s: float) -> tuple[int, Outcome]:
    """End all workers of some queues: by a running harvester if there is one, else here.

    Waits for their end up to ``timeout_s``. Returns how many live still, and what happened last.
    """
    parts.store.request_cancel(queues)
    give_up = parts.clock.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        with alone(parts.state_dir) as first:
            done = _kill_step(parts) if first else Outcome()
        left = sum(worker.cancel for worker in parts.store.live() if worker.queue in queues)
        if left == 0 or parts.clock.monotonic() >= give_up:
            return left, done
        # A batch system sends no word when a worker has ended: asking again is all there is.
        pause.wait(KILL_CHECK_S)


def _kill_step(parts: Parts) -> Outcome:
    done = Outcome()
    for step in (parts.cycle.recover, parts.cycle.observe, parts.cycle.cancel, parts.cycle.report):
        step(done)
    return done


@contextmanager
def _signals_to(writer: socket.socket) -> Iterator[None]:
    """Have SIGTERM and SIGINT write a byte to ``writer``; nothing else is safe in a signal handler."""
    writer.setblocking(False)
    old_descriptor = signal.set_wakeup_fd(writer.fileno())
    numbers = (signal.SIGTERM, signal.SIGINT)
    old_handlers = [signal.signal(number, _nothing) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, old_handlers):
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_descriptor)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """The byte that the interpreter writes says it all."""
