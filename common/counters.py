"""Counters by the names that jobscripts of justIN know: a file that is none, whose PFN is its number.

A jobscript takes such a file with get-file like any other, and lists it as processed by its DID or its PFN.
"""

from __future__ import annotations

STORAGE = "MONTECARLO"
"""Where such files are said to lie."""


def counter_did(workflow_id: int, counter: int) -> str:
    """The name of a counter in its workflow."""
    return f"monte-carlo-{workflow_id:06d}-{counter:06d}"


def counter_pfn(counter: int) -> str:
    """What stands for its PFN: the number, in at least six digits."""
    return f"{counter:06d}"
