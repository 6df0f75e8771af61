"""Whether a payload still does something.

It is quiet when no file in its folder changes and it uses next to no CPU time (less than :data:`IDLE_SHARE` of one core):
it waits for something that does not come. One that computes without ever writing is given :data:`BUSY_FACTOR` times as
long: it may be in an endless loop, or in a long calculation.
"""

from __future__ import annotations

from pilot.watch.files import FolderUse

IDLE_SHARE = 0.01
BUSY_FACTOR = 6.0
"""Experiments allow 2 hours without output for short jobs and 12 for long ones (PanDA pilot: looping job limits)."""


class Quiet:
    """How long nothing has happened. Moments in seconds on any clock that goes forward."""

    def __init__(self, began: float, looping_s: float) -> None:
        self._looping_s = looping_s
        self._mark = FolderUse().mark
        self._files_since = began
        self._cpu_since = began
        self._cpu_s = 0.0

    def look(self, now: float, files: FolderUse, cpu_s: float) -> float:
        """Seconds to be held against the limit, of a payload that has these files and has used so much CPU time."""
        if files.mark != self._mark:
            self._mark = files.mark
            self.touched(now, cpu_s)
        if cpu_s - self._cpu_s > IDLE_SHARE * self._looping_s:
            self._cpu_s, self._cpu_since = cpu_s, now
        return max(now - self._cpu_since, (now - self._files_since) / BUSY_FACTOR)

    def touched(self, now: float, cpu_s: float) -> None:
        """Something happened."""
        self._files_since = self._cpu_since = now
        self._cpu_s = cpu_s
