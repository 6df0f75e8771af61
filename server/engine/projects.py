"""Projects: who may work on one, which file comes next, what becomes of a file that comes back.

The rules are those that users of Data Dispatcher know (Fermilab, "Data Dispatcher User Interface"), with two
differences: the file nearest to the worker really comes first, and a file that failed or timed out goes behind all that
did so less often, wherever they lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite
from typing import Any

from common.states import FINAL_TASK_STATES, TaskState, UnitState
from common.wire import ReplicaSpec
from common.wire.projects import FileOutcome, ProjectState, ReplicaView, RestartState
from server.engine.access import Caller, Isolation, may_command, may_see
from server.engine.inputs import is_tape
from server.engine.sizing import TIER_BITS, number_of, tier_of
from server.engine.world import FAR, NEVER, World

OPEN_STATES = (TaskState.DEFINED, TaskState.PENDING, TaskState.READY, TaskState.RUNNING)
"""States of a project's task in which files are reserved; the first ones before all of its files are known."""
IDLE_STEPS = 10
"""A project's last sign of life is exact to this part of its idle time-out, and to :data:`IDLE_STEP_S`."""
IDLE_STEP_S = 60.0
LAST_TIER = 30_000
"""A file that came back more often stays in this tier."""
MOST_CONDITIONS = 10
MOST_TEXT = 255


class Outcome(IntEnum):
    """How a reservation ended. Rows last for years: numbers are only ever added."""

    DONE = 1
    """The worker processed the file."""
    RETRY = 2
    """The worker gave it back."""
    FAILED = 3
    """The worker said that it cannot be processed."""
    TIMED_OUT = 4
    """The worker was silent for too long."""
    REVOKED = 5
    """The file was restarted, or its project ended."""


TARGETS = {Outcome.DONE: UnitState.DONE, Outcome.RETRY: UnitState.READY, Outcome.FAILED: UnitState.FAILED}
"""Where a file goes by what its worker says of it."""


@dataclass(frozen=True)
class Facts:
    """What of a project never changes."""

    id: int
    owner: str
    group: str | None = None
    users: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    worker_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    file_attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def idle_step_s(self) -> float:
        """How often a sign of life is written down."""
        return IDLE_STEP_S if self.idle_timeout_s is None else min(IDLE_STEP_S, self.idle_timeout_s / IDLE_STEPS)


def may_work(caller: Caller, facts: Facts) -> bool:
    """Whether somebody may reserve and release files: who may command it, its users, and who has one of its roles."""
    if may_command(caller, facts.owner, facts.group) or caller.name in facts.users:
        return True
    return bool(facts.roles & (caller.groups | {role.value for role in caller.roles}))


def may_look(caller: Caller, facts: Facts, isolation: Isolation) -> bool:
    """Whether somebody may know of a project."""
    return may_see(caller, facts.owner, facts.group, isolation) or may_work(caller, facts)


_STATES = {
    TaskState.DONE: ProjectState.DONE,
    TaskState.FINISHED: ProjectState.FAILED,
    TaskState.FAILED: ProjectState.FAILED,
    TaskState.BROKEN: ProjectState.FAILED,
    TaskState.ABORTED: ProjectState.CANCELLED,
    TaskState.PAUSED: ProjectState.ABANDONED,
}


def project_state(state: TaskState) -> ProjectState:
    """The state of a project by its task's: a project is never paused but when it was abandoned."""
    return _STATES.get(state, ProjectState.ACTIVE)


def task_states(state: ProjectState) -> list[TaskState]:
    """The states of tasks that a project's state stands for."""
    return [each for each in TaskState if project_state(each) is state]


def outcome_of(outcome: FileOutcome, retry: bool) -> Outcome:
    """What a worker's word means."""
    if outcome is FileOutcome.DONE:
        return Outcome.DONE
    return Outcome.RETRY if retry else Outcome.FAILED


def put_back(seq: int) -> int:
    """The place of a file that came back: behind all that came back less often."""
    return (min(LAST_TIER, tier_of(seq) + 1) << TIER_BITS) | number_of(seq)


def from_start(seq: int) -> int:
    """The place of a file that was restarted: its first."""
    return number_of(seq)


def end_of_tier(seq: int) -> int:
    """The first place behind the tier of this one."""
    return (tier_of(seq) + 1) << TIER_BITS


@dataclass
class Source:
    """A bucket of a project, and where its first ready unit may be as far as this process knows."""

    id: int
    locations: tuple[str, ...]
    floor: int = 0
    empty_until: float = 0.0


def in_order(sources: Iterable[Source], reach: Mapping[str, int], now: float) -> list[Source]:
    """The buckets to reserve from, the best first; without those that can't be read, or were just found empty.

    First what came back least often, then the nearest, then in the order of the project's list. ``reach`` is how far
    each location is: see :func:`reach_of`.
    """
    found = []
    for each in sources:
        distance = distance_of(each.locations, reach)
        if distance < NEVER and each.empty_until <= now:
            found.append((tier_of(each.floor), distance, each.floor, each.id, each))
    return [row[-1] for row in sorted(found, key=lambda row: row[:-1])]


def distance_of(locations: Sequence[str], reach: Mapping[str, int]) -> int:
    """How far the nearest of a bucket's locations is; files of virtual projects lie nowhere, and so near to all."""
    return min((reach.get(each, NEVER) for each in locations), default=0)


def reach_of(world: World, site: str | None) -> dict[str, int]:
    """How far each location that can be read now is from a site; without one, :data:`FAR` from everything."""
    found = world.reach(site or "")
    return found if site is not None else dict.fromkeys(found, FAR)


def replica_views(replicas: Sequence[ReplicaSpec], world: World, site: str | None, *, all_: bool) -> list[ReplicaView]:
    """Replicas as a worker sees them, nearest first; with ``all_`` also those that cannot be read now."""
    views = []
    for each in replicas:
        if each.storage not in world.storages:
            continue
        available = world.readable(each.storage)
        if available or all_:
            distance = world.distance(site, each.storage) if site is not None else FAR
            urls = world.urls(each.storage, each.path, site or "", write=False)
            views.append(ReplicaView(each.storage, each.path, urls, distance, available))
    return sorted(views, key=lambda view: (is_tape(view.storage, world), view.distance, view.storage))


RESTARTED: dict[RestartState, tuple[UnitState, ...]] = {
    RestartState.FAILED: (UnitState.FAILED, UnitState.LOST),
    RestartState.DONE: (UnitState.DONE,),
    RestartState.RESERVED: (UnitState.RESERVED,),
}
"""The states of units that a restart takes up."""


def restart_target(state: TaskState) -> TaskState | None:
    """The state that a project's task goes to when files of it are restarted; None: it stays."""
    return TaskState.RUNNING if state in FINAL_TASK_STATES or state is TaskState.PAUSED else None


# ---------------------------------------------------------------- searching by attributes


class BadCondition(ValueError):
    """A condition that cannot be read; the words say what to write."""


@dataclass(frozen=True)
class Condition:
    """``name operator value``; ``number`` is the value as a number, where it is one."""

    name: str
    operator: str
    text: str
    number: float | None


_CONDITION = re.compile(r"^\s*([^=<>!,\s]+)\s*(<=|>=|!=|=|<|>)\s*([^,]*?)\s*$")
_ORDERING = ("<", "<=", ">", ">=")


def conditions(words: str) -> list[Condition]:
    """Conditions on a project's plain attributes, separated by commas: ``step=reco, version>=3``.

    Raises:
        BadCondition: one of them cannot be read.
    """
    parts = [part for part in words.split(",") if part.strip()]
    if len(parts) > MOST_CONDITIONS:
        raise BadCondition(f"give at most {MOST_CONDITIONS} conditions")
    return [_condition(part) for part in parts]


def _condition(part: str) -> Condition:
    match = _CONDITION.match(part)
    if match is None:
        raise BadCondition(f"{part.strip()!r} is no condition: write name=value, with one of = != < <= > >=")
    name, operator, text = match.groups()
    if len(name) > MOST_TEXT or len(text) > MOST_TEXT:
        raise BadCondition(f"names and values have at most {MOST_TEXT} characters")
    number = as_number(text)
    if operator in _ORDERING and number is None:
        raise BadCondition(f"{part.strip()!r}: {operator} compares numbers, and {text!r} is none")
    return Condition(name, operator, text, number)


def as_number(text: str) -> float | None:
    """The finite number that a text is, if it is one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def searchable(attributes: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """Name, text and number of each attribute that can be searched by: plain ones that are not too long."""
    found: list[tuple[str, str, float | None]] = []
    for name, value in attributes.items():
        if not isinstance(value, (str, int, float)) or len(name) > MOST_TEXT:
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if len(text) <= MOST_TEXT:
            found.append((name, text, None if isinstance(value, (str, bool)) else float(value)))
    return found
