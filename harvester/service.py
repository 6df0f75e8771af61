"""Harvester as a program: cycles on a timer until it is told to stop, one on each state_dir."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.errors import PilotageError
from harvester.api import HttpServerApi
from harvester.backends.base import Backend, Particular, close_all, load
from harvester.config import HarvesterConfig, QueueConfig, backend_key
from harvester.credentials.keeper import Keeper
from harvester.cycle import Cycle
from harvester.direct.lane import DirectLane
from harvester.direct.lanes import direct_lanes
from harvester.metrics import Figures, MetricsServer
from harvester.outcome import Outcome
from harvester.relay.agent import Relay
from harvester.reload import Reloader, with_leaving
from harvester.runner import PartState, Runner
from harvester.secret_files import SecretFiles
from harvester.store import Store, Unwritable

log = logging.getLogger(__name__)

STOP_S = 3.0
"""How long a stop waits for the step in hand. After that it is cut off, which every step survives."""
FOR_EVER_S = 1e6
"""How long a change of the configuration waits for the rounds in hand: what calls of backends take has bounds of its own."""
WORKED = 0xFF
"""The byte that says that work has been done, among the numbers of signals."""
ENDS = frozenset({0, int(signal.SIGTERM), int(signal.SIGINT)})
"""The bytes that end a service; 0 is sent when nothing is safe any more."""
START_WAIT_S = 10.0
"""How long a start waits for who works on its state_dir: commands such as check and kill-workers do for a moment."""
LOCK_CHECK_S = 0.1
KILL_CHECK_S = 0.5
"""How often the batch system is asked whether workers that were told to end have ended."""


class LastCycle(msgspec.Struct):
    """What ``<state_dir>/cycle.json`` says of the last cycle: of the server's part, with the problems of all ``parts``.

    ``started`` is in seconds since the epoch.
    """

    started: float
    duration_s: float
    problems: list[str] = []
    parts: list[PartState] = []


@dataclass(frozen=True)
class Parts:
    """All that a harvester is made of."""

    config: HarvesterConfig
    state_dir: Path
    store: Store
    server: HttpServerApi
    cycle: Cycle
    clock: Clock
    backends: Mapping[str, Backend]
    keeper: Keeper
    direct: Sequence[DirectLane] = ()

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
    try:
        return Store(state_dir_of(config) / "harvester.db", clock)
    except Unwritable as error:
        raise ConfigError(f"state_dir: {error}") from error


def assemble(config: HarvesterConfig, clock: Clock) -> Parts:
    """Put a harvester together from its configuration. Raises PilotageError (BAD_CONFIGURATION)."""
    state_dir = state_dir_of(config)
    keeper = Keeper(config.credentials, state_dir, clock)
    keeper.obtain_missing()
    store = open_store(config, clock)
    config = with_leaving(config, state_dir, {worker.queue for worker in store.live()})
    return _put_together(config, state_dir, store, make_backends(config, state_dir, clock), keeper, clock)


def _put_together(
    config: HarvesterConfig,
    state_dir: Path,
    store: Store,
    backends: Mapping[str, Backend],
    keeper: Keeper,
    clock: Clock,
) -> Parts:
    server = HttpServerApi(config)
    cycle = Cycle(config, backends, store, SecretFiles(state_dir / "secrets"), server, clock)
    direct = direct_lanes(config, state_dir, store, server, clock)
    return Parts(config, state_dir, store, server, cycle, clock, backends, keeper, direct)


def make_backends(
    config: HarvesterConfig, state_dir: Path, clock: Clock, there: Mapping[bytes, Backend] | None = None
) -> dict[str, Backend]:
    """The backend of each queue; queues with the same backend and options share one, those ``there`` already too.

    Raises PilotageError (BAD_CONFIGURATION), which names the queue.
    """
    made: dict[bytes, Backend] = dict(there or {})
    backends: dict[str, Backend] = {}
    for name, queue in config.queues.items():
        key = backend_key(queue)
        try:
            if key not in made:
                made[key] = load(queue.backend).create(queue.options, state_dir, clock)
            _check_submit(made[key], queue)
        except ConfigError as error:
            raise ConfigError(f"[harvester.queues.{name}] {error.detail}") from error
        backends[name] = made[key]
    return backends


def _check_submit(backend: Backend, queue: QueueConfig) -> None:
    if isinstance(backend, Particular):
        backend.check_submit(queue.submit)
    elif queue.submit:
        raise ConfigError(f"submit: backend {queue.backend!r} takes none; remove {', '.join(sorted(queue.submit))}")


@contextmanager
def alone(state_dir: Path, wait_s: float = 0.0) -> Iterator[bool]:
    """Be the only one who works on a state_dir while inside; yields whether that is so. A crash gives it up too.

    Somebody else's work is waited for up to ``wait_s``.
    """
    with _lock(state_dir) as descriptor:
        got = _locked(descriptor, fcntl.LOCK_EX)
        if not got and wait_s > 0:
            log.info("%s is in use: waiting up to %g s", state_dir, wait_s)
            # The kernel waits for a lock without end or not at all.
            give_up = time.monotonic() + wait_s
            while not got and time.monotonic() < give_up:
                threading.Event().wait(LOCK_CHECK_S)
                got = _locked(descriptor, fcntl.LOCK_EX)
        yield got


def in_use(state_dir: Path) -> bool:
    """Whether a harvester runs on a state_dir, or a command works there. Looks do not keep each other out."""
    with _lock(state_dir) as descriptor:
        return not _locked(descriptor, fcntl.LOCK_SH)


@contextmanager
def _lock(state_dir: Path) -> Iterator[int]:
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Service:
    """Runs cycles in threads of their own; the main thread waits for signals, and for a changed configuration.

    Without a ``reloader`` the configuration stays as it is. Workers are left alone.
    """

    def __init__(self, parts: Parts, reloader: Reloader | None = None) -> None:
        self._parts = parts
        self._reloader = reloader
        self._runner = self._new_runner(lambda: None)

    def run(self) -> bool:
        """Run until SIGTERM or SIGINT, then leave within STOP_S. To be called in the main thread.

        Returns whether everything has ended; else a thread waits for an answer still, and can't write any more.
        Raises ConfigError when another harvester runs on the same state_dir, and whatever ended the cycles.
        """
        state_dir = self._parts.state_dir
        with alone(state_dir, START_WAIT_S) as first:
            if not first:
                raise ConfigError(
                    f"state_dir: another harvester runs on {state_dir}; stop it, or choose another folder"
                )
            reader, writer = socket.socketpair()
            with reader, writer, _signals_to(writer), _relaying(self._parts.config), self._metering():
                if _wait_for(self._parts.keeper.start, reader, writer):
                    _sweep(self._parts)
                    self._start(writer)
                    self._until_told_to_stop(reader, writer)
                self._parts.server.close()
                waiting = self._runner.stop(STOP_S)
                if not waiting:
                    close_all(self._parts.backends.values())
                self._parts.keeper.stop()
            # Before another harvester may start here: who comes back from a long wait must find the door closed.
            self._parts.store.close()
        if self._runner.failure is not None:
            raise self._runner.failure
        for name in waiting:
            log.warning("%s: left in the middle of a step; the next start goes on from there", name)
        return not waiting

    def _new_runner(self, failed: Callable[[], None]) -> Runner:
        parts = self._parts
        return Runner(
            parts.cycle, parts.config.cycle_s, parts.clock, failed, lambda: self._note(self._runner), parts.direct
        )

    def _start(self, writer: socket.socket) -> None:
        if self._reloader is not None:
            self._parts.cycle.commands.reload = lambda: self._read_anew(writer)
        self._runner = self._new_runner(lambda: _wake(writer))
        self._runner.start()
        config = self._parts.config
        log.info("harvester %s serves %s", config.name, ", ".join(sorted(config.queues)))

    def _until_told_to_stop(self, reader: socket.socket, writer: socket.socket) -> None:
        while (number := _next(reader, self._parts.config.cycle_s)) not in ENDS:
            config = None if self._reloader is None else self._reloader.look(number == signal.SIGHUP, self._backend_of)
            if config is not None and not self._change_to(config, reader, writer):
                return

    def _change_to(self, config: HarvesterConfig, reader: socket.socket, writer: socket.socket) -> bool:
        """Put another configuration in force between two rounds; False when told to stop meanwhile."""
        assert self._reloader is not None
        old = self._parts
        there = {backend_key(old.config.queues[name]): backend for name, backend in old.backends.items()}
        keeper = old.keeper
        try:
            if config.credentials != old.config.credentials:
                keeper = Keeper(config.credentials, old.state_dir, old.clock)
                if not _wait_for(keeper.obtain_missing, reader, writer):
                    return False
            backends = make_backends(config, old.state_dir, old.clock, there)
        except PilotageError as error:
            self._reloader.refuse(error)
            return True
        if not _wait_for(lambda: self._runner.stop(FOR_EVER_S), reader, writer):
            return False
        if keeper is not old.keeper:
            old.keeper.stop()
        old.server.close()
        kept = {id(backend) for backend in backends.values()}
        close_all(backend for backend in old.backends.values() if id(backend) not in kept)
        self._parts = _put_together(config, old.state_dir, old.store, backends, keeper, old.clock)
        self._reloader.accept(config)
        if keeper is not old.keeper and not _wait_for(keeper.start, reader, writer):
            return False
        self._start(writer)
        return True

    def _read_anew(self, writer: socket.socket) -> str:
        """Have the main thread read the configuration. Raises PilotageError when it can't be used."""
        assert self._reloader is not None
        self._reloader.validate()
        _wake(writer, int(signal.SIGHUP))
        return "the configuration is read anew"

    def _backend_of(self, queue: QueueConfig) -> Backend:
        return load(queue.backend).create(queue.options, self._parts.state_dir, self._parts.clock)

    def _problems(self) -> list[str]:
        """What an admin must look at."""
        of_parts = [problem for state in self._runner.states() for problem in state.problems]
        of_files = self._reloader.problems if self._reloader is not None else []
        return [*of_files, *self._parts.keeper.problems(), *of_parts]

    @contextmanager
    def _metering(self) -> Iterator[None]:
        """The figures of the configuration are served inside, if it wants any."""
        if self._parts.config.metrics is None:
            yield
            return
        figures = Figures(
            self._parts.store,
            lambda: list(self._parts.config.queues),
            lambda: self._runner.states(),
            lambda: self._runner.totals(),
            lambda: self._parts.keeper.states(),
            self._problems,
        )
        server = MetricsServer(self._parts.config.metrics.listen, figures)
        log.info("figures for Prometheus at port %d", server.port)
        try:
            yield
        finally:
            server.stop()

    def _note(self, runner: Runner) -> None:
        states = runner.states()
        of_server = states[0]
        last = LastCycle(of_server.started, of_server.duration_s, self._problems(), states)
        path = self._parts.state_dir / "cycle.json"
        temporary = path.with_suffix(".new")
        try:
            temporary.write_bytes(msgspec.json.encode(last))
            temporary.replace(path)
        except OSError as error:
            log.warning(
                "%s: cannot be written, so that `pilotage harvester status` shows an older one: %s", path, error
            )


def _sweep(parts: Parts) -> None:
    try:
        parts.cycle.sweep()
    except (Unwritable, OSError) as error:
        raise ConfigError(f"state_dir: {error}") from error


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
    parts.cycle.workers.forget_all()
    for step in (parts.cycle.recover, parts.cycle.observe, parts.cycle.cancel, parts.cycle.report):
        step(done)
    return done


@contextmanager
def _relaying(config: HarvesterConfig) -> Iterator[None]:
    """The relay of the configuration, if any, serves inside. Raises PilotageError (BAD_CONFIGURATION)."""
    if config.relay is None:
        yield
        return
    relay = Relay(config.relay, config.server_url, config.ca_file)
    relay.start()
    try:
        yield
    finally:
        relay.stop()


@contextmanager
def _signals_to(writer: socket.socket) -> Iterator[None]:
    """Have SIGTERM, SIGINT and SIGHUP write their number to ``writer``; nothing else is safe in a signal handler."""
    writer.setblocking(False)
    old_descriptor = signal.set_wakeup_fd(writer.fileno())
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    old_handlers = [signal.signal(number, _nothing) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, old_handlers):
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_descriptor)


def _wake(writer: socket.socket, byte: int = 0) -> None:
    try:
        writer.send(bytes([byte]))
    except OSError as error:
        log.debug("nobody waits any more: %s", error)


def _next(reader: socket.socket, timeout_s: float | None) -> int | None:
    """The next signal's number, or another byte that somebody sent; None when there was none in time."""
    reader.settimeout(timeout_s)
    try:
        return reader.recv(1)[0]
    except TimeoutError:
        return None


def _wait_for(work: Callable[[], object], reader: socket.socket, writer: socket.socket) -> bool:
    """Have some work done in a thread; False when told to stop before it has ended."""

    def run() -> None:
        try:
            work()
        finally:
            _wake(writer, WORKED)

    threading.Thread(target=run, name="change", daemon=True).start()
    while (number := _next(reader, None)) != WORKED:
        if number in ENDS:
            return False
    return True


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """The byte that the interpreter writes says it all."""
