"""Machine/job features: what a site says of a machine and of a job in small files, or under a URL.

Keys and units are those of the specification HSF-TN-2016-02.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Optional

from common.errors import PilotageError
from common.http import HttpClient, ProblemError
from pilot.probe.figure import Figure
from pilot.probe.pci import text_of

logger = logging.getLogger(__name__)

MB = 1024 * 1024
FETCH_S = 5.0
MOST_BYTES = 4096

Reader = Callable[[str], str]


def feature_figures(environment: Mapping[str, str], now: float) -> Iterator[Figure]:
    """``MACHINEFEATURES`` and ``JOBFEATURES`` name a folder or a URL each. ``now``: seconds since the epoch."""
    for variable, figures in (("JOBFEATURES", _job), ("MACHINEFEATURES", _machine)):
        place = environment.get(variable, "")
        if place.startswith(("http://", "https://")):
            url = _Url(place)
            try:
                yield from figures(url.read, now)
            finally:
                url.close()
        elif place:
            yield from figures(partial(_read, Path(place)), now)


def _job(read: Reader, now: float) -> Iterator[Figure]:
    cores = _number(read, "allocated_cpu")
    if cores:
        yield Figure("cores", "job features allocated_cpu", int(cores))
    for key, resource in (("max_rss_bytes", "memory_mb"), ("scratch_limit_bytes", "disk_mb")):
        value = _number(read, key)
        if value:
            yield Figure(resource, f"job features {key}", int(value // MB))
    limit_s = _number(read, "wall_limit_secs")
    if limit_s:
        started = _number(read, "jobstart_secs") or now
        yield Figure("wall_s", "job features wall_limit_secs", int(started + limit_s - now))
    ends = _number(read, "shutdowntime_job")
    if ends:
        yield Figure("wall_s", "job features shutdowntime_job", int(ends - now))
    for key in ("hs23_job", "hs06_job"):
        power = _number(read, key)
        if power and cores:
            yield Figure("core_power", f"job features {key}", power / cores)
            return


def _machine(read: Reader, now: float) -> Iterator[Figure]:
    ends = _number(read, "shutdowntime")
    if ends:
        yield Figure("wall_s", "machine features shutdowntime", int(ends - now))
    cores = _number(read, "total_cpu")
    for key in ("hs23", "hs06"):
        power = _number(read, key)
        if power and cores:
            yield Figure("core_power", f"machine features {key}", power / cores)
            return


def _number(read: Reader, key: str) -> Optional[float]:
    """None for a key that is not there, or holds no number."""
    try:
        value = float(read(key))
    except ValueError:
        return None
    return value if 0 <= value < 1e18 else None


def _read(folder: Path, key: str) -> str:
    return text_of(folder / key)[:MOST_BYTES]


class _Url:
    """Keys under a URL. One that does not answer is not asked again: the site's service is down, the slot is not."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Optional[HttpClient] = None
        self._gone = False

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()

    def read(self, key: str) -> str:
        """What the key holds; empty when it is not there, as most are not."""
        if self._gone:
            return ""
        try:
            if self._client is None:
                limits = (FETCH_S, FETCH_S)
                self._client = HttpClient(self._url.rstrip("/"), timeout=limits, retries=0, max_body_bytes=MOST_BYTES)
            return self._client.transfer("GET", f"/{key}", retry=False).decode("utf-8", "replace")
        except ProblemError:
            return ""
        except PilotageError as error:
            logger.warning("machine or job features are not known: %s", error)
            self._gone = True
            return ""
