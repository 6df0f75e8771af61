"""The world as the rules see it: queues, sites, storages, distances. Plain data, made anew by the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from common.states import ResourceState
from common.wire import Activity, QueueSpec, SiteSpec, StorageSpec

NEVER = 101
"""The distance at which nothing is read."""
FAR = 100
"""The distance between a site and a storage of another site that nobody has set."""

MAX_LOCATIONS = 8
"""A bucket names this many storages at the most; beyond it, sites (``@site``), so that buckets stay few."""


URL_SAFE = "/~:@!$&'()*+,;="
"""What may stand in the path of a URL as it is, beside letters, digits and ``_.-``."""


@dataclass(frozen=True)
class World:
    """Everything that admins describe."""

    sites: dict[str, SiteSpec] = field(default_factory=dict)
    queues: dict[str, QueueSpec] = field(default_factory=dict)
    storages: dict[str, StorageSpec] = field(default_factory=dict)

    def distance(self, site: str, storage: str) -> int:
        """From a site to a storage: 0 same site … 100 far, 101 never. What is unknown is never reached."""
        there = self.storages.get(storage)
        if there is None:
            return NEVER
        here = self.sites.get(site)
        if here is not None and storage in here.distances:
            return here.distances[storage]
        return 0 if there.site == site else FAR

    def readable(self, storage: str) -> bool:
        """Whether a storage gives files now: its own status and its site's allow it."""
        spec = self.storages.get(storage)
        if spec is None or spec.status == ResourceState.OFFLINE:
            return False
        site = self.sites.get(spec.site)
        return site is None or site.status != ResourceState.OFFLINE

    def writable(self, storage: str) -> bool:
        """Whether a storage takes new files now."""
        spec = self.storages.get(storage)
        return spec is not None and self.readable(storage) and spec.status == ResourceState.ONLINE

    def takes(self, storage: str, site: str) -> bool:
        """Whether a pilot at ``site`` may write new files to a storage now."""
        return (
            self.writable(storage)
            and self.distance(site, storage) < NEVER
            and bool(self.urls(storage, "", site, write=True))
        )

    def location_distance(self, site: str, location: str) -> int:
        """From a site to a bucket's location: a storage, or all storages of ``@site``. Unreadable is never."""
        if location.startswith("@"):
            names = [name for name, spec in self.storages.items() if spec.site == location[1:]]
        else:
            names = [location]
        return min((self.distance(site, name) for name in names if self.readable(name)), default=NEVER)

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
