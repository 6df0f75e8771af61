"""The free space that all jobs of a pilot share: before there is none left, one of them is stopped.

A full disk ruins every job of the node, and leaves no space for the log of the one that filled it.
"""

from __future__ import annotations

import threading
from typing import Optional

from common.errors import ErrorCode
from pilot.watch.limits import Breach

MB = 1024 * 1024


class Scratch:
    """Chooses the job to be stopped: the one that is furthest above what it was given. ``reserve_mb`` stays free (0: it is
    not watched). From any thread."""

    def __init__(self, reserve_mb: int) -> None:
        self.reserve_mb = reserve_mb
        self._over: dict[object, float] = {}
        self._chosen: Optional[object] = None
        self._lock = threading.Lock()

    def look(
        self, job: object, used_mb: float, given_mb: Optional[float], free_mb: Optional[float]
    ) -> Optional[Breach]:
        """Says what a job uses and what is free; a breach if it is this job that has to go.

        The next is chosen only when that one has left: its files go last.
        """
        with self._lock:
            self._over[job] = used_mb - (given_mb or 0.0)
            if free_mb is None or free_mb >= self.reserve_mb:
                return None
            if self._chosen is None:
                self._chosen = max(self._over, key=lambda each: self._over[each])
            if self._chosen is not job:
                return None
        why = f"{free_mb:.0f} MiB are free for all jobs; this one uses {used_mb:.0f} MiB, the most beyond its part"
        return Breach("scratch_mb", free_mb, float(self.reserve_mb), ErrorCode.NO_LOCAL_SPACE, why, floor=True)

    def leave(self, job: object) -> None:
        """A job's folder is gone."""
        with self._lock:
            self._over.pop(job, None)
            if self._chosen is job:
                self._chosen = None
