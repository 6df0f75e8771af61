"""Memory that threads leave behind: glibc gives each thread a heap of its own and keeps what it once held."""

from __future__ import annotations

import ctypes
import logging

logger = logging.getLogger(__name__)

M_ARENA_MAX = -8
ARENAS = 2
"""With one for each thread a pilot keeps 20 MB more after its first jobs; its threads allocate too little to be slower."""


def share_arenas() -> None:
    """Have all threads share a few heaps (mallopt(3)). A C library that is not glibc has none to share."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or mallopt(M_ARENA_MAX, ARENAS) != 1:
        logger.debug("the C library does not limit its heaps")
