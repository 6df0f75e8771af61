"""The world as the rules see it: queues, sites, storages, distances. Plain data, made anew by the store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote

from common.wire import Activity, CredentialKind, Downtime, Endpoint, QueueSpec, SiteSpec, StorageSpec
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
_PLAIN_PATH = re.compile(rf"[A-Za-z0-9_.\-{re.escape(URL_SAFE)}]*").fullmatch
"""Most paths, of which nothing is to be quoted."""


@dataclass(frozen=True)
class World:
    """Everything that admins describe. ``down`` names the storages that are in a downtime now: see :meth:`at`.

    ``barred`` are site, storage and whether it is writing: what is not used, because probes found that it fails.
    """

    sites: dict[str, SiteSpec] = field(default_factory=dict)
    queues: dict[str, QueueSpec] = field(default_factory=dict)
    storages: dict[str, StorageSpec] = field(default_factory=dict)
    down: frozenset[str] = frozenset()
    barred: frozenset[tuple[str, str, bool]] = frozenset()

    def without(self, barred: frozenset[tuple[str, str, bool]]) -> World:
        """The world with other ways barred than before; itself if they are the same."""
        return self if barred == self.barred else replace(self, barred=barred)

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
    _takers: dict[tuple[str, bool], tuple[str, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _endpoints: dict[tuple[str, Activity], list[Endpoint]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _readings: dict[tuple[str, str], tuple[int, list[str]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def distance(self, site: str, storage: str) -> int:
        """From a site to a storage: 0 same site … 100 far, 101 never. What is unknown is never reached."""
        there = self.storages.get(storage)
        if there is None:
            return NEVER
        here = self.sites.get(site)
        if here is not None and storage in here.distances:
            return here.distances[storage]
        return 0 if there.site == site else FAR

    def read_distance(self, site: str, storage: str) -> int:
        """The same for reading: never, where probes of the site cannot read."""
        return NEVER if (site, storage, False) in self.barred else self.distance(site, storage)

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
                and (site, storage, True) not in self.barred
                and self.distance(site, storage) < NEVER
                and bool(self.urls(storage, "", site, write=True))
            )
        return known

    def takers(self, site: str, *, logs: bool = False) -> tuple[str, ...]:
        """The storages to which a pilot at ``site`` may write new files now, or which are there for its logs: nearest first."""
        known = self._takers.get((site, logs))
        if known is None:
            able = filter(lambda each: self.takes_logs(each, site) if logs else self.takes(each, site), self.storages)
            known = tuple(sorted(able, key=lambda each: (self.distance(site, each), each)))
            self._takers[site, logs] = known
        return known

    def reading(self, storage: str, site: str) -> tuple[int, list[str]]:
        """How far a storage is from a site, and the URLs under which a pilot there reads now; NEVER and none if it cannot."""
        known = self._readings.get((storage, site))
        if known is None:
            distance = self.read_distance(site, storage)
            open_now = distance < NEVER and self.readable(storage)
            known = (distance, self.urls(storage, "", site, write=False)) if open_now else (NEVER, [])
            self._readings[storage, site] = known
        return known

    def direct(self, site: str) -> frozenset[str]:
        """Locations whose files a payload at a site can read where they lie; of ``@site`` all storages must allow it."""
        able: set[str] = set()
        unable: set[str] = set()
        for name, spec in self.storages.items():
            if self.readable(name):
                direct = any(map(gives_direct, self.ways(name, site, write=False)))
                (able if direct else unable).update((name, f"@{spec.site}"))
        return frozenset(able - unable)

    def location_distance(self, site: str, location: str) -> int:
        """From a site to a bucket's location: a storage, or all storages of ``@site``. Unreadable is never."""
        if location.startswith("@"):
            names = [name for name, spec in self.storages.items() if spec.site == location[1:]]
        else:
            names = [location]
        return min((self.read_distance(site, name) for name in names if self.readable(name)), default=NEVER)

    def reach(self, site: str) -> dict[str, int]:
        """How far each location is from a site: storages that can be read now, and ``@site`` for all of a site."""
        found: dict[str, int] = {}
        for name, spec in self.storages.items():
            if self.readable(name):
                distance = self.read_distance(site, name)
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
        return [join_url(endpoint.url, path) for endpoint in self.ways(storage, site, write=write)]

    def ways(self, storage: str, site: str, *, write: bool) -> list[Endpoint]:
        """The endpoints by which a pilot at ``site`` may use a storage, in the storage's order."""
        return self._for(storage, self.activity(storage, site, write=write))

    def log_ways(self, storage: str, site: str) -> list[Endpoint]:
        """The same for logs: those that are for logs, else those by which it may write."""
        return self._for(storage, Activity.LOGS) or self.ways(storage, site, write=True)

    def takes_logs(self, storage: str, site: str) -> bool:
        """Whether a storage is there for logs, and a pilot at ``site`` may write to it now."""
        able = self.writable(storage) and self.distance(site, storage) < NEVER
        able = able and (site, storage, True) not in self.barred
        return able and bool(self._for(storage, Activity.LOGS))

    def activity(self, storage: str, site: str, *, write: bool) -> Activity:
        """What a pilot at ``site`` does when it uses a storage."""
        local = self.storages[storage].site == site
        if write:
            return Activity.WRITE_LAN if local else Activity.WRITE_WAN
        return Activity.READ_LAN if local else Activity.READ_WAN

    def _for(self, storage: str, activity: Activity) -> list[Endpoint]:
        known = self._endpoints.get((storage, activity))
        if known is None:
            known = [endpoint for endpoint in self.storages[storage].endpoints if activity in endpoint.activities]
            self._endpoints[storage, activity] = known
        return known


def _now_or_next(downtimes: Iterable[Downtime], now: float, before: float) -> Downtime | None:
    """Of the downtimes that are not over and begin no later than ``before``, the first to begin."""
    left = [each for each in downtimes if each.end > now and each.start <= before]
    return min(left, key=lambda each: (each.start, -each.end), default=None)


def is_direct(url: str) -> bool:
    """Whether a payload can read from this URL without a copy."""
    return url.partition(":")[0] in DIRECT_SCHEMES


def gives_direct(endpoint: Endpoint) -> bool:
    """Whether a payload can read by this endpoint: its protocol allows it, and a credential of its own can be had."""
    narrow = endpoint.credential is not CredentialKind.PROXY or endpoint.payload_provider is not None
    return narrow and is_direct(endpoint.url)


def path_problem(path: str) -> str:
    """Why a replica's path cannot be used, if so: a person's word is not trusted to stay below the prefix."""
    if any(part in (".", "..") for part in unquote(path).split("/")):
        return "'.' and '..' lead out of the storage's prefix"
    if not path.isprintable():
        return "it holds characters that cannot be printed"
    return ""


def join_url(prefix: str, path: str) -> str:
    """The URL of ``path`` below ``prefix``: the path is no URL yet, so it is percent-encoded. A prefix may end in a slash that counts, as in ``file:///`` or ``root://host//``."""
    path = path.lstrip("/")
    return prefix.removesuffix("/") + "/" + (path if _PLAIN_PATH(path) else quote(path, safe=URL_SAFE))
