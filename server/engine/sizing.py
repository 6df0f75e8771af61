"""How many units one claim takes: as many as fit the slot, in the order of the bucket.

A unit that failed comes back last, in smaller company, at the end alone: its ``seq`` is raised by one *tier* for each
payload failure, tiers sort behind one another, and a claim never spans two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TIER_BITS = 40
"""``seq`` is tier << 40 | number: a task may have a million million units."""


@dataclass(frozen=True)
class ReadyUnit:
    """What sizing needs to know of a unit."""

    id: int
    seq: int
    size_mb: int


def tier_of(seq: int) -> int:
    """How many payload failures put the unit where it is."""
    return seq >> TIER_BITS


def number_of(seq: int) -> int:
    """The unit's number in its task, whatever its tier."""
    return seq & ((1 << TIER_BITS) - 1)


def raised(seq: int, payload_failures: int) -> int:
    """The same unit, put behind all that failed less often."""
    return (payload_failures << TIER_BITS) | number_of(seq)


def company(limit: int, tier: int) -> int:
    """The most units of a job in this tier: a quarter for each failure, at least one."""
    return max(1, limit >> (2 * tier))


def prefix(units: Sequence[ReadyUnit], limit: int, min_units: int, disk_mb: int | None) -> list[ReadyUnit]:
    """The first of ``units`` (ordered by ``seq``) that make one job.

    ``disk_mb`` bounds the sum of their sizes (None: no bound). Fewer than ``min_units`` there: none.
    The PostgreSQL claim says the same in SQL (``server/store/claim_postgres.py``); one test holds them together.
    """
    if len(units) < min_units or not units:
        return []
    tier = tier_of(units[0].seq)
    taken: list[ReadyUnit] = []
    total = 0
    for unit in units[: company(limit, tier)]:
        total += unit.size_mb
        if tier_of(unit.seq) != tier or (disk_mb is not None and total > disk_mb):
            break
        taken.append(unit)
    return taken
