"""Each web process on a core of its own.

Python runs one thread of a process at a time. Where the kernel spreads its threads over all cores, each hand-over wakes
another core, whose caches hold nothing of what comes next: that cost up to a third of the claims (docs/explanation/performance.md).
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

LOCK = "web-cores.lock"


def take_core(parent: int, folder: Path) -> int | None:
    """Keep this process, and all threads that it will start, on one core; which, or None if it has no choice.

    It takes one that fewest of the other processes of ``parent`` keep to. ``folder`` is where they agree, one after another.
    """
    if not hasattr(os, "sched_setaffinity"):  # not on Linux
        return None
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) == 1:
            return None
        core = choose(allowed, _kept_by_others(parent), parent)
        try:
            os.sched_setaffinity(0, {core})
        except OSError as error:  # as some sandboxes forbid it
            logger.warning("this web process cannot keep to core %d: %s", core, error.strerror)
            return None
        return core


def choose(allowed: Sequence[int], kept: Iterable[int], start: int) -> int:
    """One of the ``allowed`` cores that is least often ``kept``; the first of them, counted from the ``start``-th on."""
    times = Counter(kept)
    turn = start % len(allowed)
    return min([*allowed[turn:], *allowed[:turn]], key=lambda core: times[core])


def _kept_by_others(parent: int) -> list[int]:
    found: list[int] = []
    for process in psutil.Process(parent).children():
        try:
            cores = os.sched_getaffinity(process.pid)
        except ProcessLookupError:
            continue
        if process.pid != os.getpid() and len(cores) == 1:
            found += cores
    return found
