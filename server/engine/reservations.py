"""Cores of a pilot that are kept free for a larger job, for a bounded time (DESIGN section 3)."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from msgspec import structs

from common.wire import Shape
from server.engine.matching import Candidate, Cut, Slot, effective_offer

MOST = 100_000
"""Pilots that are remembered."""


def whole_slot(slot: Slot, shape: Shape) -> Slot:
    """The slot as it will be when all jobs of its pilot have ended."""
    offer = slot.offer
    whole = structs.replace(
        offer,
        cores=max(shape.cores, offer.cores),
        memory_mb=max(shape.memory_mb, offer.memory_mb) if shape.memory_mb else 0,
        disk_mb=max(shape.disk_mb, offer.disk_mb) if shape.disk_mb else 0,
    )
    return replace(slot, offer=effective_offer(whole, slot.queue, None))


@dataclass(frozen=True)
class _Kept:
    since: float
    until: float


class Reservations:
    """For which pilots free cores are kept: in the memory of one process, for the pilots that come to it.

    When a bucket that needs more cores than a pilot has free would be first for the whole of its slot, what gets free is
    kept for it until the time is over; meanwhile only jobs that end before then are let in. After that the pilot serves
    anything for as long again, so that what never gets enough cores costs half of them at the most.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._kept: dict[int, _Kept] = {}

    def drop(self, pilot_id: int) -> None:
        """All of a pilot's cores are free, or it has ended."""
        if pilot_id in self._kept:
            with self._mutex:
                self._kept.pop(pilot_id, None)

    def cut(self, pilot_id: int, slot: Slot, first: Candidate | None, reserve_s: float, now: float) -> Slot:
        """The slot for what may be given to it now; ``first`` is the bucket that comes first for the whole slot."""
        if first is None or first.traits.requirements.cores <= slot.offer.cores:
            return slot
        with self._mutex:
            kept = self._kept.get(pilot_id)
            if kept is None or not kept.since <= now < kept.until + reserve_s:
                self._make_room(now, reserve_s)
                kept = self._kept[pilot_id] = _Kept(now, now + reserve_s)
        if now >= kept.until:
            return slot
        cores, left_s = first.traits.requirements.cores, kept.until - now
        words = f"free cores are kept for {left_s:.0f} s for a job of task {first.traits.task_id} on {cores} cores"
        return slot.cut_to(left_s, Cut("reserved", words, strictly=True))

    def _make_room(self, now: float, reserve_s: float) -> None:
        if len(self._kept) >= MOST:
            self._kept = {key: kept for key, kept in self._kept.items() if now < kept.until + reserve_s}
            while len(self._kept) >= MOST:
                del self._kept[next(iter(self._kept))]
