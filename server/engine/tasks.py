"""When a task is over, and what its commands do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from common.states import FINAL_UNIT_STATES, TaskState, UnitState, allowed

RETRIABLE = frozenset({TaskState.FINISHED, TaskState.FAILED, TaskState.EXHAUSTED})
"""A task in one of these runs again when told to retry what failed."""
RESTARTABLE = frozenset({TaskState.DONE, TaskState.FINISHED, TaskState.FAILED})
"""A task in one of these runs again when told to restart what is done."""
REOPENED = {
    TaskState.DONE: TaskState.PENDING,
    TaskState.FINISHED: TaskState.PENDING,
    TaskState.FAILED: TaskState.RUNNING,
    TaskState.BROKEN: TaskState.PENDING,
}
"""Where a stage that was over goes when the stage before gives output again. A broken one only if it was broken because
that stage gave none."""

ENDING = frozenset({TaskState.PENDING, TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING, TaskState.FINISHING})
"""States in which a task may come to its end."""


class NotAllowed(Exception):
    """A command that a task's state does not allow; its text says why."""


class Effect(str, Enum):
    """What a command does with a task's units."""

    NOTHING = "nothing"
    CANCEL = "cancel"
    """All that is not over is cancelled, and live jobs are killed."""
    TRIM = "trim"
    """What no job holds is cancelled."""
    RETRY = "retry"
    """What failed or was lost is ready again."""
    RESTART = "restart"
    """What is done is ready again, in its next generation."""


@dataclass(frozen=True)
class Facts:
    """What a command depends on. ``reason`` is why the task is in its state."""

    id: int
    state: TaskState
    reason: str = ""
    resume_state: TaskState | None = None
    resolved: int = 0


@dataclass(frozen=True)
class Plan:
    """What a command does: the state that the task goes to (None: it stays), and what becomes of its units."""

    target: TaskState | None = None
    effect: Effect = Effect.NOTHING


OBEYED = Plan()
"""A command that is obeyed already: it is answered as the first time."""


def plan(command: str, facts: Facts, *, hard: bool = False) -> Plan:
    """What a command does with a task.

    Raises:
        NotAllowed: its state does not allow it.
        KeyError: there is no such command.
    """
    made = _PLANS[command](facts, hard)
    if made.target is not None and not allowed(facts.state, made.target):
        raise _not_allowed(facts, command)
    return made


def _not_allowed(facts: Facts, command: str, remedy: str = "") -> NotAllowed:
    why = f" ({facts.reason})" if facts.reason and facts.state in _EXPLAINED else ""
    more = f": {remedy}" if remedy else ""
    return NotAllowed(f"task {facts.id} is {facts.state.value}{why} and cannot be told to {command}{more}")


_EXPLAINED = frozenset({TaskState.BROKEN, TaskState.ABORTED, TaskState.FAILED, TaskState.FINISHED})


def _pause(facts: Facts, _: bool) -> Plan:
    return OBEYED if facts.state == TaskState.PAUSED else Plan(TaskState.PAUSED)


def _resume(facts: Facts, _: bool) -> Plan:
    if facts.state not in (TaskState.PAUSED, TaskState.EXHAUSTED):
        return OBEYED
    if facts.resume_state == TaskState.PENDING and facts.resolved:
        return Plan(TaskState.READY)  # it was fed meanwhile
    return Plan(facts.resume_state or TaskState.RUNNING)


def _kill(facts: Facts, _: bool) -> Plan:
    return OBEYED if facts.state == TaskState.ABORTED else Plan(TaskState.ABORTED, Effect.CANCEL)


def _finish(facts: Facts, hard: bool) -> Plan:
    effect = Effect.CANCEL if hard else Effect.TRIM
    if facts.state == TaskState.FINISHING:
        return Plan(None, effect)
    if facts.state in (TaskState.DONE, TaskState.FINISHED, TaskState.FAILED):
        return OBEYED
    return Plan(TaskState.FINISHING, effect)


def _retry(facts: Facts, _: bool) -> Plan:
    if facts.state == TaskState.RUNNING:
        return Plan(None, Effect.RETRY)
    if facts.state == TaskState.BROKEN:
        raise _not_allowed(facts, "retry", "retry the stage before it, or mend its description in a clone")
    if facts.state not in RETRIABLE:
        raise _not_allowed(facts, "retry")
    return Plan(TaskState.RUNNING, Effect.RETRY)


def _restart(facts: Facts, _: bool) -> Plan:
    if facts.state == TaskState.RUNNING:
        return Plan(None, Effect.RESTART)
    if facts.state not in RESTARTABLE:
        raise _not_allowed(facts, "restart")
    return Plan(TaskState.RUNNING, Effect.RESTART)


def _avalanche(facts: Facts, _: bool) -> Plan:
    if facts.state == TaskState.RUNNING:
        return OBEYED
    if facts.state != TaskState.SCOUTING:
        raise _not_allowed(facts, "avalanche", "only a task that is scouting can skip that")
    return Plan(TaskState.RUNNING)


_PLANS = {
    "pause": _pause,
    "resume": _resume,
    "kill": _kill,
    "finish": _finish,
    "retry": _retry,
    "restart": _restart,
    "avalanche": _avalanche,
}
COMMANDS = tuple(_PLANS)


def reopened(state: TaskState, fed_by_stage: bool, input_closed: bool) -> TaskState | None:
    """Where a stage goes whose stage before runs again; None when it stays as it is.

    A broken stage comes back only if its input had been closed: then it is broken because the stage before gave none,
    and not because something is wrong with itself.
    """
    if not fed_by_stage or (state == TaskState.BROKEN and not input_closed):
        return None
    return REOPENED.get(state)


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
    if state not in ENDING:
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
