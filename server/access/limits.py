"""How much one caller may ask for: token buckets in each process, one for a caller."""

from __future__ import annotations

import threading
from collections import OrderedDict

from common.clock import Clock
from server.access.settings import Limits
from server.engine.access import Role

MOST_CALLERS = 10_000
"""Callers remembered; whoever has not called for longest is forgotten."""

MIB = 1024 * 1024


class TooMany(Exception):
    """A caller asks for too much; ``wait_s`` is when the next request may come."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many requests: wait {wait_s:.1f} s")
        self.wait_s = wait_s


class RateLimiter:
    """The buckets of a process. Roles without a limit cost a look into a dictionary."""

    def __init__(self, limits: Limits, clock: Clock, most_callers: int = MOST_CALLERS) -> None:
        self._limits = {
            Role.ANYBODY: limits.anybody,
            Role.USER: limits.person,
            Role.PRODUCTION: limits.person,
            Role.ADMIN: limits.admin,
            Role.HARVESTER: limits.harvester,
            Role.OUTSIDE_WORKER: limits.outside_worker,
            Role.FOREIGN_PILOT: limits.foreign_pilot,
            Role.WORKER: limits.worker,
            Role.PILOT: limits.pilot,
            Role.KEY_HOLDER: limits.anybody,
        }
        self._paced = {role: limit for role, limit in self._limits.items() if limit.per_s > 0}
        self._clock = clock
        self._most = most_callers
        self._mutex = threading.Lock()
        self._buckets: OrderedDict[tuple[Role, str], tuple[float, float]] = OrderedDict()

    def take(self, role: Role, name: str) -> None:
        """One request of a caller.

        Raises:
            TooMany: the bucket is empty.
        """
        limit = self._paced.get(role)
        if limit is None:
            return
        burst = max(1.0, limit.burst)
        key = (role, name)
        now = self._clock.monotonic()
        with self._mutex:
            filled, since = self._buckets.pop(key, (burst, now))
            filled = min(burst, filled + max(0.0, now - since) * limit.per_s)
            refused = filled < 1.0
            self._buckets[key] = (filled if refused else filled - 1.0, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        if refused:
            raise TooMany((1.0 - filled) / limit.per_s)

    def body_bytes(self, role: Role) -> int:
        """The largest body that this role may send."""
        return self._limits[role].body_mb * MIB


def limit_of(roles: frozenset[Role]) -> Role:
    """The role whose limits hold for somebody with several: the one with the most."""
    return next((role for role in _GENEROUS if role in roles), Role.ANYBODY)


_GENEROUS = (
    Role.PILOT,
    Role.ADMIN,
    Role.OUTSIDE_WORKER,
    Role.FOREIGN_PILOT,
    Role.HARVESTER,
    Role.PRODUCTION,
    Role.USER,
    Role.WORKER,
    Role.KEY_HOLDER,
)
