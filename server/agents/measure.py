"""Measure: what dashboards and Prometheus are shown, and the counts of events by kind."""

from __future__ import annotations

import msgspec

from server.dispatch.context import Dispatcher
from server.store import cursors, measure

PERIOD_S = 10.0
SPARE = 100
"""Measuring may take one part in so many of the time: in a huge system it is done less often."""
SLICES = 10
"""Slices of events counted in one run at the most."""


def measure_system(dispatcher: Dispatcher) -> int:
    """Measure, if it is time; count the events that are new. How many slices of events are still to be counted, if any."""
    _measure(dispatcher)
    for _ in range(SLICES):
        with dispatcher.database.write(durable=False) as connection:
            counted = cursors.count(connection, dispatcher.now())
        if counted < cursors.SLICE:
            return 0
    return 1


def _measure(dispatcher: Dispatcher) -> None:
    now, started = dispatcher.now(), dispatcher.clock.monotonic()
    with dispatcher.database.read() as connection:
        last = measure.system(connection)
        if last is not None and 0 <= now - last.time < SPARE * last.cost_s:
            return
        sample = measure.measure(connection, now, 2 * dispatcher.looks.get().knobs.heartbeat_s)
    sample = msgspec.structs.replace(sample, cost_s=dispatcher.clock.monotonic() - started)
    with dispatcher.database.write(durable=False) as connection:
        measure.keep(connection, sample)
