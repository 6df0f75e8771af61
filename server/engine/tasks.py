"""When a task is over, and what its commands do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.states import FINAL_UNIT_STATES, TaskState, UnitState

COMMANDS = ("pause", "resume", "kill", "retry")
RETRIABLE = frozenset({TaskState.FINISHED, TaskState.FAILED, TaskState.EXHAUSTED})
"""A task in one of these runs again when told to retry what failed."""
REOPENED = {
    TaskState.DONE: TaskState.PENDING,
    TaskState.FINISHED: TaskState.PENDING,
    TaskState.FAILED: TaskState.RUNNING,
}
"""Where a stage that was over goes when the stage before gives output again."""


@dataclass(frozen=True)
class Verdict:
    """The state that a task goes to, and why."""

    state: TaskState
    reason: str


def ending(state: TaskState, units: Mapping[UnitState, int], input_closed: bool) -> Verdict | None:
    """The state in which a task ends now, or None while it goes on.

    Ends when its input is closed and each unit is in a final state: ``done`` when all units are done, ``finished``
    when some are, ``failed`` when none is, ``broken`` when it waited and never got any.
    """
    if state not in (TaskState.PENDING, TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING, TaskState.FINISHING):
        return None
    if not input_closed or any(count for unit, count in units.items() if unit not in FINAL_UNIT_STATES):
        return None
    total = sum(units.values())
    done = units.get(UnitState.DONE, 0)
    if total == 0:
        # Only a task that still waits can be broken (its transition table says so); one told to finish has failed.
        empty = TaskState.BROKEN if state == TaskState.PENDING else TaskState.FAILED
        return Verdict(empty, "the stage before gave no input")
    if done == total:
        return Verdict(TaskState.DONE, "")
    words = ", ".join(
        f"{units[unit]} {unit.value}"
        for unit in (UnitState.FAILED, UnitState.LOST, UnitState.CANCELLED)
        if units.get(unit)
    )
    return Verdict(TaskState.FINISHED if done else TaskState.FAILED, words)
