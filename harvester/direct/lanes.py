"""The lanes of direct jobs that a configuration makes: one for each CE."""

from __future__ import annotations

from pathlib import Path

from common.clock import Clock
from common.wire.direct import DirectPlace
from harvester.api import HttpServerApi
from harvester.backends.arc_options import ArcOptions, submit_options
from harvester.backends.base import read_options
from harvester.config import HarvesterConfig, backend_key
from harvester.direct.book import Book
from harvester.direct.lane import DirectLane
from harvester.store import Store


def direct_lanes(
    config: HarvesterConfig, state_dir: Path, store: Store, server: HttpServerApi, clock: Clock
) -> list[DirectLane]:
    """The lanes; none where no queue takes direct jobs."""
    names = sorted(name for name, queue in config.queues.items() if queue.direct)
    if not names:
        return []
    book = Book(store)
    places = [
        DirectPlace(
            name,
            read_options(config.queues[name].options, ArcOptions).url,
            submit_options(config.queues[name].submit).queue or "",
        )
        for name in names
    ]
    sharing: dict[bytes, list[str]] = {}
    for name in names:
        sharing.setdefault(backend_key(config.queues[name]), []).append(name)
    return [DirectLane(queues, places, config, state_dir, book, server, clock) for queues in sharing.values()]
