"""Time that is missing: clocks that are set, machines that were suspended, looks that were held up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Optional

SET_S = 5.0
"""By so much the wall clock must go astray for anybody to hear of it."""
HELD_UP_S = 30.0
"""Looks that come later than planned by more than this: the machine, or this process, stood still."""


@dataclass(frozen=True)
class Clocks:
    """The clocks of a machine: ``wall`` can be set, ``steady`` cannot, ``boot`` runs on while the machine is suspended."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Gap:
    """``missing_s`` of the steady clock's time nobody could see what the payload did; ``words`` say what happened."""

    missing_s: float = 0.0
    words: str = ""


class GapWatch:
    """Compares the clocks from look to look."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._last: Optional[tuple[float, float, float]] = None

    def look(self, planned_s: float) -> Gap:
        """What went astray since the last look, which planned this one for ``planned_s`` later."""
        now = (self._clocks.wall(), self._clocks.steady(), self._clocks.boot())
        last, self._last = self._last, now
        if last is None:
            return Gap()
        wall, steady, boot = (after - before for after, before in zip(now, last))
        suspended = boot - steady
        missing = steady - planned_s if steady > planned_s + HELD_UP_S else 0.0
        words = []
        if suspended > SET_S:
            words.append(f"the machine was suspended for {suspended:.0f} s")
        if missing:
            words.append(f"the machine or the pilot stood still for {missing:.0f} s, which count against no limit")
        if abs(wall - boot) > SET_S:
            words.append(
                f"the machine's clock was set {'forward' if wall > boot else 'back'} by {abs(wall - boot):.0f} s"
            )
        return Gap(missing, "; ".join(words))
