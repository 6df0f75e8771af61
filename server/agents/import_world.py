"""Follow the descriptions of sites, storages, queues and distances that are configured."""

from __future__ import annotations

from common.wire import ImportRequest
from server.dispatch.context import Dispatcher
from server.dispatch.imports import look_at
from server.store.database import DatabaseUnavailable


def import_world(dispatcher: Dispatcher) -> int:
    """Look at each source for which it is time; a problem of one is in its report, and leaves the others alone."""
    now, plugins = dispatcher.now(), dispatcher.plugins
    for name, source in plugins.world_sources.items():
        if now >= plugins.looks_due.get(name, 0.0):
            plugins.looks_due[name] = now + source.period_s
            try:
                look_at(dispatcher, name, ImportRequest())
            except DatabaseUnavailable:
                del plugins.looks_due[name]  # that is over sooner than the source's period
                raise
    # All is done: looking again at once would find nothing.
    return 0
