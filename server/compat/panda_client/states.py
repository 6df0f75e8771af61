"""Our states in PanDA's words. Every state of ours is in its table."""

from __future__ import annotations

from collections.abc import Mapping

from common.states import JobState, TaskState

TASK_STATUS: Mapping[TaskState, str] = {
    TaskState.REGISTERED: "registered",
    TaskState.DEFINED: "defined",
    TaskState.PENDING: "pending",
    TaskState.READY: "ready",
    TaskState.SCOUTING: "scouting",
    TaskState.RUNNING: "running",
    TaskState.THROTTLED: "throttled",
    TaskState.PAUSED: "paused",
    TaskState.EXHAUSTED: "exhausted",
    TaskState.FINISHING: "finishing",
    TaskState.DONE: "done",
    TaskState.FINISHED: "finished",
    TaskState.FAILED: "failed",
    TaskState.BROKEN: "broken",
    TaskState.ABORTED: "aborted",
}

SUPER_STATUS: Mapping[TaskState, str] = {
    TaskState.REGISTERED: "registered",
    TaskState.DEFINED: "registered",
    TaskState.PENDING: "submitting",
    TaskState.READY: "ready",
    TaskState.SCOUTING: "running",
    TaskState.RUNNING: "running",
    TaskState.THROTTLED: "running",
    TaskState.PAUSED: "running",
    TaskState.EXHAUSTED: "running",
    TaskState.FINISHING: "running",
    TaskState.DONE: "done",
    TaskState.FINISHED: "finished",
    TaskState.FAILED: "failed",
    TaskState.BROKEN: "broken",
    TaskState.ABORTED: "aborted",
}
"""What ``pbook show run`` and ``pbook show fin`` go by."""

JOB_STATUS: Mapping[JobState, str] = {
    JobState.SENT: "sent",
    JobState.STARTING: "starting",
    JobState.RUNNING: "running",
    JobState.HOLDING: "holding",
    JobState.TRANSFERRING: "transferring",
    JobState.FINISHED: "finished",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.CLOSED: "closed",
}

UNSUCCESSFUL = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.CLOSED})


def states_of(word: str, table: Mapping[TaskState, str]) -> list[TaskState]:
    """The states that a word of PanDA's stands for; none for a word that no task of ours ever has."""
    return [state for state, each in table.items() if each == word]
