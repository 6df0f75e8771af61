"""What the web processes tell one another, and what is told of the whole: for Prometheus and the dashboard."""

from __future__ import annotations

import os
import socket

from common.plugins import version
from server.dispatch.context import Dispatcher
from server.metrics.prometheus import Everything, exposition
from server.metrics.samples import ProcessSample
from server.store import agents, cursors, measure
from server.store.database import Connection

PAGE_S = 2.0
"""A page is made anew when it is older than this, however often it is asked for."""


def process_name() -> str:
    """This process: host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def own_sample(dispatcher: Dispatcher) -> ProcessSample:
    """What this process has counted."""
    return dispatcher.watch.sample(*measure.connections(dispatcher.database))


def say_counts(connection: Connection, dispatcher: Dispatcher) -> None:
    """Let the other processes know what this one has counted."""
    measure.say(connection, process_name(), own_sample(dispatcher), dispatcher.now())


def metrics_page(dispatcher: Dispatcher) -> bytes:
    """Everything in Prometheus' words."""

    def make() -> bytes:
        with dispatcher.database.read() as connection:
            now = dispatcher.now()
            processes = measure.every_process(connection, now) | {process_name(): own_sample(dispatcher)}
            return exposition(
                Everything(
                    version=version(),
                    processes=processes,
                    system=measure.system(connection),
                    event_counts=cursors.counts(connection),
                    agents=agents.views(connection, now),
                    now=now,
                )
            )

    return dispatcher.watch.keep("metrics", PAGE_S, dispatcher.now(), make)
