"""aCT's words for the state of a job, computed from ours, and what may be done in each."""

from __future__ import annotations

from common.states import JobState, WorkerState
from server.engine.direct import Facts

_W = WorkerState
_WAITING = {
    _W.PLANNED: "tosubmit",
    _W.SUBMITTING: "submitting",
    _W.SUBMITTED: "submitted",
    _W.HELD: "submitted",
    _W.RUNNING: "running",
    _W.MISSING: "submitted",
    _W.FINISHED: "finished",
    _W.FAILED: "failed",
    _W.CANCELLED: "cancelled",
}
"""A job that lives, by the state of its worker. Of one that is missing nobody knows better than that it was submitted."""
STATES = frozenset(
    {
        "tosubmit", "submitting", "submitted", "running", "finished", "done", "donefailed", "failed", "lost", "tocancel",
        "cancelling", "cancelled", "tofetch", "toresubmit", "toclean",
    }
)  # fmt: skip
"""All of aCT's words. ``toresubmit`` and ``toclean`` are over here before anybody could see them: a job that is run again
waits again, and one that is cleaned is its owner's no more."""
KILLABLE = frozenset({None, "tosubmit", "submitting", "submitted", "running"})
CLEANABLE = frozenset({"done", "donefailed", "cancelled", "failed", "lost"})
FETCHABLE = frozenset({"failed"})
RERUNNABLE = frozenset({"failed", "lost"})


def arcstate(facts: Facts) -> str | None:
    """aCT's word for a job; None for one that has no description yet.

    ========================================================= ==============
    ours                                                      aCT's
    ========================================================= ==============
    no description                                            (none)
    no run, its task killed                                   cancelled
    no run                                                    tosubmit
    job finished                                              done
    job cancelled                                             cancelled
    job failed, its worker lost                               lost
    job failed, its results wanted, stored or not             donefailed, tofetch
    job failed otherwise                                      failed
    live, its task killed, the CE has taken that or not       cancelling, tocancel
    live                                                      by its worker, see the table above
    ========================================================= ==============
    """
    if not facts.described:
        return None
    if facts.worker is None or facts.job is None:
        return "cancelled" if facts.aborted else "tosubmit"
    if facts.job is JobState.FINISHED:
        return "done"
    if facts.job in (JobState.CANCELLED, JobState.CLOSED):
        return "cancelled"
    if facts.job is JobState.FAILED:
        if facts.results:
            return "donefailed"
        if facts.fetch:
            return "tofetch"
        return "lost" if facts.lost else "failed"
    if facts.aborted:
        return "cancelling" if facts.killing else "tocancel"
    return _WAITING[facts.worker]


NATIVE = {
    "ACCEPTING": "Accepted",
    "ACCEPTED": "Accepted",
    "PREPARING": "Preparing",
    "PREPARED": "Preparing",
    "SUBMITTING": "Submitting",
    "QUEUING": "Queuing",
    "RUNNING": "Running",
    "HELD": "Hold",
    "EXITINGLRMS": "Running",
    "OTHER": "Other",
    "EXECUTED": "Finishing",
    "FINISHING": "Finishing",
    "FINISHED": "Finished",
    "FAILED": "Failed",
    "KILLING": "Running",
    "KILLED": "Killed",
    "WIPED": "Deleted",
}
"""The states of a computing element's REST interface, in ARC's words for people, which ``act stat`` shows."""


def native(word: str) -> str | None:
    """A computing element's own word for a job's state, as people know it; None before there is one."""
    return NATIVE.get(word, word or None)
