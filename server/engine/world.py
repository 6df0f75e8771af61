"""The world as the rules see it: queues, sites, storages, distances. Plain data, made anew by the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote

from common.wire import Activity, Downtime, QueueSpec, SiteSpec, StorageSpec
from server.engine.statuses import ALLOWED, takes

NEVER = 101
"""The distance at which nothing is read."""
FAR = 100
"""The distance between a site and a storage of another site that nobody has set."""

MAX_LOCATIONS = 8
"""A bucket names this many storages at the most; beyond it, sites (``@site``), so that buckets stay few."""


DIRECT_SCHEMES = ("root", "roots", "xroot", "xroots", "http", "https", "dav", "davs", "file")
"""Protocols by which a payload can read a file where it lies."""
URL_SAFE = "/~:@!$&'()*+,;="
"""What may stand in the path of a URL as it is, beside letters, digits and ``_.-``."""


@dataclass(frozen=True)
class World:
    """Everything that admins describe. ``down`` names the storages that are in a downtime now: see :meth:`at`."""

    sites: dict[str, SiteSpec] = field(default_factory=dict)
    queues: dict[str, QueueSpec] = field(default_factory=dict)
    storages: dict[str, StorageSpec] = field(default_factory=dict)
    down: frozenset[str] = frozenset()

    def at(self, now: float) -> World:
        """The world with the storages down that are at this moment; itself if they are the same."""
        down = frozenset(
            name
            for name, spec in self.storages.items()
            if _now_or_next([*spec.downtimes, *self._of_site(spec.site)], now, now) is not None
        )
        return self if down == self.down else replace(self, down=down)

    def _of_site(self, site: str) -> list[Downtime]:
        spec = self.sites.get(site)
        return spec.downtimes if spec is not None else []

    def next_downtime(self, queue: QueueSpec, now: float) -> Downtime | None:
        """The downtime in which a queue is, else its next one; its site's are its own."""
        if not queue.downtimes and not self._of_site(queue.site):
            return None
        return _now_or_next([*queue.downtimes, *self._of_site(queue.site)], now, float("inf"))

    _takes: dict[tuple[str, str, bool], bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def distance(self, site: str, storage: str) -> int:
        """From a site to a storage: 0 same site … 100 far, 101 never. What is unknown is never reached."""
        there = self.storages.get(storage)
        if there is None:
            return NEVER
        here = self.sites.get(site)
        if here is not None and storage in here.distances:
            return here.distances[storage]
        return 0 if there.site == site else FAR

    def pilots_leave(self, queue: QueueSpec) -> bool:
        """Whether pilots of a queue without work are to go: its status or its site's says so."""
        site = self.sites.get(queue.site)
        return ALLOWED[queue.status].leave or (site is not None and ALLOWED[site.status].leave)

    def readable(self, storage: str) -> bool:
        """Whether a storage gives files now: its own status and its site's allow it, and it is in no downtime."""
        spec = self.storages.get(storage)
        if spec is None or storage in self.down or not ALLOWED[spec.status].reads:
            return False
        site = self.sites.get(spec.site)
        return site is None or ALLOWED[site.status].reads

    def writable(self, storage: str, probe: bool = False) -> bool:
        """Whether a storage takes new files now, of a probe or of any job."""
        spec = self.storages.get(storage)
        return spec is not None and self.readable(storage) and takes(spec.status, probe)

    def takes(self, storage: str, site: str, probe: bool = False) -> bool:
        """Whether a pilot at ``site`` may write new files to a storage now."""
        key = (storage, site, probe)
        known = self._takes.get(key)
        if known is None:
            known = self._takes[key] = (
                self.writable(storage, probe)
                and self.distance(site, storage) < NEVER
                and bool(self.urls(storage, "", site, write=True))
            )
        return known

    def direct(self, site: str) -> frozenset[str]:
        """Locations whose files a payload at a site can read where they lie; of ``@site`` all storages must allow it."""
        able: set[str] = set()
        unable: set[str] = set()
        for name, spec in self.storages.items():
            if self.readable(name):
                direct = any(map(is_direct, self.urls(name, "", site, write=False)))
                (able if direct else unable).update((name, f"@{spec.site}"))
        return frozenset(able - unable)

    def location_distance(self, site: str, location: str) -> int:
        """From a site to a bucket's location: a storage, or all storages of ``@site``. Unreadable is never."""
        if location.startswith("@"):
            names = [name for name, spec in self.storages.items() if spec.site == location[1:]]
        else:
            names = [location]
        return min((self.distance(site, name) for name in names if self.readable(name)), default=NEVER)

    def reach(self, site: str) -> dict[str, int]:
        """How far each location is from a site: storages that can be read now, and ``@site`` for all of a site."""
        found: dict[str, int] = {}
        for name, spec in self.storages.items():
            if self.readable(name):
                distance = self.distance(site, name)
                found[name] = distance
                there = f"@{spec.site}"
                found[there] = min(distance, found.get(there, distance))
        return found

    def nearest(self, site: str, locations: Sequence[str]) -> int:
        """From a site to the nearest of a bucket's locations; 0 where there is nothing to read."""
        if not locations:
            return 0
        return min(self.location_distance(site, location) for location in locations)

    def locations_of(self, storages: Iterable[str]) -> tuple[str, ...]:
        """The location set of a bucket for units with replicas on these storages, capped and then coarsened."""
        names = sorted(set(storages))
        if len(names) <= MAX_LOCATIONS:
            return tuple(names)
        return tuple(sorted({f"@{self.storages[name].site}" if name in self.storages else name for name in names}))

    def urls(self, storage: str, path: str, site: str, *, write: bool) -> list[str]:
        """The URLs under which a pilot at ``site`` may use ``path`` on ``storage``, in the storage's order."""
        spec = self.storages[storage]
        local = spec.site == site
        if write:
            activity = Activity.WRITE_LAN if local else Activity.WRITE_WAN
        else:
            activity = Activity.READ_LAN if local else Activity.READ_WAN
        return [join_url(endpoint.url, path) for endpoint in spec.endpoints if activity in endpoint.activities]


def _now_or_next(downtimes: Iterable[Downtime], now: float, before: float) -> Downtime | None:
    """Of the downtimes that are not over and begin no later than ``before``, the first to begin."""
    left = [each for each in downtimes if each.end > now and each.start <= before]
    return min(left, key=lambda each: (each.start, -each.end), default=None)


def is_direct(url: str) -> bool:
    """Whether a payload can read from this URL without a copy."""
    return url.partition(":")[0] in DIRECT_SCHEMES


def path_problem(path: str) -> str:
    """Why a replica's path cannot be used, if so: a person's word is not trusted to stay below the prefix."""
    if any(part in (".", "..") for part in unquote(path).split("/")):
        return "'.' and '..' lead out of the storage's prefix"
    if not path.isprintable():
        return "it holds characters that cannot be printed"
    return ""


def join_url(prefix: str, path: str) -> str:
    """The URL of ``path`` below ``prefix``: the path is no URL yet, so it is percent-encoded. A prefix may end in a slash that counts, as in ``file:///`` or ``root://host//``."""
    return prefix.removesuffix("/") + "/" + quote(path.lstrip("/"), safe=URL_SAFE)
