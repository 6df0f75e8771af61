"""How much memory a payload's processes use together: cheaply, unless that is not good enough.

Resident memory (RSS) costs nothing to read, but counts pages that processes share once for each. The proportional set
size (PSS) counts them once, and costs some 14 ms for each resident GB. So it is read only when the sum of RSS is above
the limit, and then only of those processes that could have grown since it was read last:

* a process's PSS grows by no more than its RSS grows and the pages it touches (a shared page that is written becomes its
  own with a page fault, and RSS stays the same);
* what a process that has ended shared with others of the tree goes to these, so that it is counted until all is read
  again;
* what is shared with processes outside of the tree can become the tree's own when those end: all is read again now and
  then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

from pilot.watch.processes import PAGE, ProcessGone, ProcessSeen, proportional_bytes, swapped_bytes

MB = 1024 * 1024
READ_AGAIN_S = 300.0
"""All processes are read again after so long."""


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a tree in MiB: ``rss_mb`` the sum of resident memory, ``swap_mb`` what is swapped out of it.

    ``pss_mb`` counts shared pages once, with what is swapped out: never less than it is, and exact when it is above the
    limit; None as long as it was never needed. ``counted_mb`` is what is held against the limit.
    """

    rss_mb: float = 0.0
    swap_mb: float = 0.0
    pss_mb: Optional[float] = None

    @property
    def counted_mb(self) -> float:
        """PSS where it is known, else all that is resident or swapped out."""
        return self.rss_mb + self.swap_mb if self.pss_mb is None else self.pss_mb


@dataclass(frozen=True)
class _Known:
    start: int
    rss: int
    faults: int
    pss: int


class TreeMemory:
    """The memory of one tree over its life. ``proportional`` and ``swapped`` read one process, in bytes."""

    def __init__(
        self,
        proportional: Callable[[int], int] = proportional_bytes,
        swapped: Callable[[int], int] = swapped_bytes,
    ) -> None:
        self._proportional = proportional
        self._swapped = swapped
        self._known: dict[int, _Known] = {}
        self._left = 0
        """Bytes of processes that have ended since all were read."""
        self._all_read: Optional[float] = None

    def look(
        self, processes: Sequence[ProcessSeen], limit_mb: Optional[float], now: float, swaps: bool = False
    ) -> MemoryUse:
        """What the processes use at ``now`` (seconds); ``swaps`` says whether anything here is swapped out."""
        rss = sum(seen.rss for seen in processes)
        swapped = sum(self._swap_of(seen.pid) for seen in processes) if swaps else 0
        use = MemoryUse(rss / MB, swapped / MB)
        near = limit_mb is not None and rss + swapped > limit_mb * MB
        if not near and self._all_read is None:
            return use
        total = self._bound(processes)
        if near and limit_mb is not None:
            if self._all_read is None or now - self._all_read >= READ_AGAIN_S:
                total = self._read_all(processes, now)
            elif total > limit_mb * MB:
                total = self._read_until(processes, limit_mb * MB, now)
        return MemoryUse(rss / MB, swapped / MB, min(total, rss + swapped) / MB)

    def _swap_of(self, pid: int) -> int:
        try:
            return self._swapped(pid)
        except ProcessGone:
            return 0

    def _bound(self, processes: Sequence[ProcessSeen]) -> int:
        """What the tree uses at the most, as far as can be said without reading."""
        there = {seen.pid: seen.start for seen in processes}
        for pid, known in list(self._known.items()):
            if there.get(pid) != known.start:
                self._left += self._known.pop(pid).pss
        return self._left + sum(self._most(seen) for seen in processes)

    def _most(self, seen: ProcessSeen) -> int:
        known = self._known.get(seen.pid)
        if known is None:
            return seen.rss
        grown = max(0, seen.rss - known.rss) + max(0, seen.faults - known.faults) * PAGE
        return known.pss + grown

    def _read_until(self, processes: Sequence[ProcessSeen], enough: float, now: float) -> int:
        """Read those that may have grown most, until the tree is known to use no more than ``enough`` bytes."""
        total = self._bound(processes)
        by_doubt = sorted(processes, key=lambda seen: self._doubt(seen), reverse=True)
        for seen in by_doubt:
            if self._doubt(seen) <= 0:
                break
            before = self._most(seen)
            self._read(seen)
            total += self._most(seen) - before
            if total <= enough:
                return total
        return self._read_all(processes, now)

    def _doubt(self, seen: ProcessSeen) -> int:
        known = self._known.get(seen.pid)
        return self._most(seen) - (known.pss if known is not None else 0)

    def _read_all(self, processes: Sequence[ProcessSeen], now: float) -> int:
        for seen in processes:
            self._read(seen)
        self._left = 0
        self._all_read = now
        return sum(self._most(seen) for seen in processes)

    def _read(self, seen: ProcessSeen) -> None:
        try:
            pss = self._proportional(seen.pid)
        except ProcessGone:
            pss = seen.rss  # another user's, as with set-uid programs; one that has ended is missed by the next look
        self._known[seen.pid] = _Known(seen.start, seen.rss, seen.faults, pss)
