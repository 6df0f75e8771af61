"""Making the server's parts from its configuration. :func:`create_app` is the WSGI factory for any WSGI server."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import falcon

from common.clock import SystemClock
from common.tokens import TokenIssuer, load_or_create_key
from server.agents.duties import DUTIES, LIVENESS_GAP_S, LIVENESS_PERIOD_S
from server.agents.runner import Runner
from server.api.application import create_application
from server.config import ServerConfig
from server.cores import take_core
from server.dispatch.context import Dispatcher
from server.dispatch.heartbeat import write_heard
from server.dispatch.looks import CACHE_S
from server.dispatch.watching import process_name, say_counts
from server.store import agents, processes
from server.store.database import Database, DatabaseUnavailable

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
SWITCH_S = 0.05
"""For how long a thread of a web process may run while others wait: each of those looks that often whether it is its turn."""
CYCLES_EVERY = 50_000
"""So many objects agents make before cycles are looked for: lists of thousands of rows, which are dropped whole."""
UPKEEP_S = 0.85 * CACHE_S
"""How often the look at the world is renewed and signs of life are written: less than what requests wait for."""
MOST_CONNECTIONS = 16
"""To the database, of one process and kind: threads beyond that wait for a moment."""


def database_url(config: ServerConfig) -> str:
    """The database: the one that is configured, else SQLite in the state folder."""
    return config.database or f"sqlite:///{Path(config.state_dir).resolve() / 'pilotage.db'}"


def create_dispatcher(config: ServerConfig) -> Dispatcher:
    """The parts that requests and agents share."""
    key = load_or_create_key(Path(config.state_dir) / "signing.key")
    clock = SystemClock()
    database = Database(database_url(config), pool_size=min(config.web_threads, MOST_CONNECTIONS))
    return Dispatcher(database, TokenIssuer(key, config.issuer, clock), config, clock)


def create_app(config: ServerConfig) -> falcon.App[Any, Any]:
    """The WSGI app. Its process says in the database that it is up, so that silence is counted only meanwhile.

    Another thread keeps up what requests would else have to wait for.
    """
    dispatcher = create_dispatcher(config)
    _look_around(dispatcher)
    threading.Thread(target=_say_up, args=(dispatcher,), name="liveness", daemon=True).start()
    threading.Thread(target=keep_up, args=(dispatcher,), name="upkeep", daemon=True).start()
    return create_application(dispatcher)


def _look_around(dispatcher: Dispatcher) -> None:
    """Read what there is to do before the first request has to wait for that."""
    try:
        dispatcher.looks.buckets()
    except DatabaseUnavailable as error:
        logger.warning("the database is not available: %s", error)


def create_served_app(config: ServerConfig, parent: int) -> falcon.App[Any, Any]:
    """The same in a process of ours, that ends at once with its parent: a web process has nothing to put in order."""
    die_with_parent(parent, signal.SIGKILL)
    sys.setswitchinterval(SWITCH_S)
    if config.keep_to_cores:
        take_core(parent, Path(config.state_dir))
    return create_app(config)


def _say_up(dispatcher: Dispatcher) -> None:
    while True:
        try:
            with dispatcher.database.write(durable=False) as connection:
                agents.seen_up(connection, LIVENESS_GAP_S, dispatcher.now())
                say_counts(connection, dispatcher)
                idle = dispatcher.idle.by_queue(dispatcher.clock.monotonic())
                processes.say(connection, process_name(), idle, dispatcher.now())
        except DatabaseUnavailable as error:
            logger.warning("the database is not available: %s", error)
        if dispatcher.stopping.wait(LIVENESS_PERIOD_S):
            return


def keep_up(dispatcher: Dispatcher) -> None:
    """Do, a little before a request would have to, what one of them does when it is due."""
    while not dispatcher.stopping.wait(UPKEEP_S):
        try:
            dispatcher.looks.keep_up()
            write_heard(dispatcher)
        except DatabaseUnavailable as error:
            logger.warning("the database is not available: %s", error)


def run_agents(config: ServerConfig, parent: int | None) -> None:
    """Run the agents in this process until it is told to end; with ``parent``, also when that process ends."""
    told = _told_to_end()
    if parent is not None:
        die_with_parent(parent)
    gc.set_threshold(CYCLES_EVERY, *gc.get_threshold()[1:])
    runner = Runner(create_dispatcher(config), DUTIES)
    runner.start()
    logger.info("agents run: %s", ", ".join(agent.name for agent in DUTIES))
    os.read(told, 1)
    runner.stop()


def _told_to_end() -> int:
    """A descriptor from which a byte can be read when a signal has told this process to end.

    No handler takes a lock: a second signal inside the first one's handler would wait for ever.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return told


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel end this process when the parent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we could ask
        os.kill(os.getpid(), number)
