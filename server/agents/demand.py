"""Splits the ready work between the queues, so that harvesters know how many pilots each should have."""

from __future__ import annotations

from server.dispatch import demand
from server.dispatch.context import Dispatcher
from server.store import demand as store

PERIOD_S = 8.0
"""What is younger is left as it is; what is expensive is done more seldom: see :data:`server.dispatch.demand.COST`."""


def split_work(dispatcher: Dispatcher) -> int:
    """Compute the demand of all queues, when it is time again; never more work at once."""
    with dispatcher.database.read() as connection:
        last = store.last(connection)
    if last is None or demand.is_due(*last, PERIOD_S, dispatcher.now()):
        with dispatcher.demand.mutex:
            demand.compute(dispatcher)
    return 0
