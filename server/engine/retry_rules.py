"""Which failures are tried again, and with what: the rules that admins keep in the database.

After PanDA's job retry module (PanDA documentation, "job retry module"): a rule joins a condition (error source, code,
message, scope) to an action (no retry, limited retry, more memory, more time), and may be passive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import ceil
from typing import Any

from common.errors import ErrorCode
from common.states import ResourceState
from common.wire import (
    CustomAction,
    ErrorSource,
    LimitRetry,
    MoreMemory,
    MoreTime,
    NoRetry,
    RetryCondition,
    RetryRule,
)
from server.engine.outcomes import Attempts, Caps, Fault, fault_of
from server.engine.patterns import Pattern, PatternError
from server.engine.world import World

MOST_MESSAGE = 2000
"""Characters of an error's words that a pattern looks at: the end of a payload's log comes last."""

_SERVERS = frozenset(
    {
        ErrorCode.FAILED_BY_SERVER,
        ErrorCode.KILLED_BY_SERVER,
        ErrorCode.TASK_CANCELLED,
        ErrorCode.USER_KILL,
        ErrorCode.STATE_TIMEOUT,
    }
)
_SOURCES = {
    Fault.NONE: ErrorSource.NONE,
    Fault.PAYLOAD: ErrorSource.PAYLOAD,
    Fault.SITE: ErrorSource.SITE,
    Fault.PILOT: ErrorSource.PILOT,
    Fault.PREEMPTION: ErrorSource.PREEMPTION,
}


def source_of(error_code: int | None) -> ErrorSource:
    """Who brought a failure about."""
    if error_code in _SERVERS:
        return ErrorSource.SERVER
    return _SOURCES[fault_of(error_code)]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that failed, with all that a rule may ask of it. Memory and time are what its units asked for."""

    error_code: int | None
    message: str = ""
    exit_code: int | None = None
    task_id: int = 0
    share: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    tags: Sequence[str] = ()
    site: str = ""
    queue: str = ""
    architectures: Sequence[str] = ()
    memory_mb: int = 0
    wall_s: int = 0
    ran_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What an action wants: ``last`` says why the unit must fail; None and zero leave things as they are."""

    last: str = ""
    limit: int | None = None
    memory_mb: int = 0
    wall_s: int = 0


CustomRetryAction = Callable[[Failure, Mapping[str, Any]], Verdict]
"""A plug-in of the group ``pilotage.retry_actions``: from a failure and the rule's parameters to what it wants."""


@dataclass(frozen=True)
class Applied:
    """A rule that applied: for its event. ``problem`` says what went wrong with a plug-in."""

    rule: str
    active: bool
    verdict: Verdict
    problem: str = ""


@dataclass(frozen=True)
class Judgement:
    """What all rules together want of a failed job's units."""

    verdict: Verdict = Verdict()
    applied: tuple[Applied, ...] = ()

    def caps(self, caps: Caps, error_code: int | None) -> Caps:
        """The caps of attempts, the one of this fault lowered to the limit."""
        limit = self.verdict.limit
        name = _CAPS.get(fault_of(error_code))
        if limit is None or name is None:
            return caps
        return replace(caps, **{name: min(limit, getattr(caps, name))})


_CAPS = {Fault.PAYLOAD: "payload", Fault.SITE: "site", Fault.PILOT: "pilot", Fault.PREEMPTION: "preemption"}


def counted(before: Attempts, after: Attempts, error_code: int | None) -> bool:
    """Whether the failure was held against a unit: one that its job gave back untouched is none of the rules'."""
    name = _CAPS.get(fault_of(error_code))
    return name is not None and getattr(after, name) > getattr(before, name)


class Rule:
    """A rule, its pattern compiled and its ranges read.

    Raises:
        PatternError: its pattern cannot be used.
    """

    def __init__(self, spec: RetryRule, custom: CustomRetryAction | None = None) -> None:
        self.spec = spec
        self._custom = custom
        self._message = Pattern(spec.when.message) if spec.when.message else None
        self._error_codes = [ends(each) for each in spec.when.error_codes]
        self._exit_codes = [ends(each) for each in spec.when.exit_codes]

    def applies(self, failure: Failure) -> bool:
        """Whether everything that the condition names holds."""
        when = self.spec.when
        return (
            (not when.sources or source_of(failure.error_code) in when.sources)
            and _in_ranges(failure.error_code, self._error_codes)
            and _in_ranges(failure.exit_code, self._exit_codes)
            and _in_scope(failure, when)
            and (self._message is None or self._message.search(failure.message[-MOST_MESSAGE:]))
        )

    def verdict(self, failure: Failure, world: World) -> Verdict:
        """What the action wants. A plug-in may raise anything."""
        action = self.spec.action
        if isinstance(action, NoRetry):
            return Verdict(last=f"rule {self.spec.name} says that it is not tried again")
        if isinstance(action, LimitRetry):
            return Verdict(limit=action.limit)
        if isinstance(action, MoreMemory):
            return _more_memory(self.spec.name, action, failure, world)
        if isinstance(action, MoreTime):
            return _more_time(self.spec.name, action, failure, world)
        if self._custom is None:
            raise LookupError(f"plug-in {action.plugin} of pilotage.retry_actions is not installed")
        return self._custom(failure, action.parameters)

    @property
    def kind(self) -> str:
        """Rules of the same kind stand in for each other; custom ones by their plug-in."""
        action = self.spec.action
        return f"custom:{action.plugin}" if isinstance(action, CustomAction) else type(action).__name__


def ends(text: str) -> tuple[int, int]:
    """The ends of a range such as ``1200..1207`` or ``1305``."""
    first, dots, last = text.partition("..")
    return int(first), int(last if dots else first)


def _in_ranges(number: int | None, ranges: Sequence[tuple[int, int]]) -> bool:
    return not ranges or (number is not None and any(first <= number <= last for first, last in ranges))


def _in_scope(failure: Failure, when: RetryCondition) -> bool:
    return (
        (not when.shares or failure.share in when.shares)
        and (not when.sites or failure.site in when.sites)
        and all(failure.labels.get(key) == value for key, value in when.labels.items())
        and (not when.images or any(fnmatchcase(failure.image or "", each) for each in when.images))
        and (not when.tags or any(each in failure.tags for each in when.tags))
        and (not when.architectures or any(each in failure.architectures for each in when.architectures))
    )


def _more_memory(name: str, action: MoreMemory, failure: Failure, world: World) -> Verdict:
    if failure.memory_mb >= action.cap_mb:
        return Verdict(last=f"{failure.memory_mb} MB were not enough, and rule {name} gives no more")
    wanted = _grown(failure.memory_mb, action.factor, action.step_mb, action.cap_mb)
    return Verdict(memory_mb=_fitting(failure.memory_mb, wanted, largest(world, "memory_mb")))


def _more_time(name: str, action: MoreTime, failure: Failure, world: World) -> Verdict:
    # A task that names no wall time had what its slot had: what it used is the least that it needs.
    base = failure.wall_s or ceil(failure.ran_s)
    if base >= action.cap_s:
        return Verdict(last=f"{base} s were not enough, and rule {name} gives no more")
    wanted = _grown(base, action.factor, action.step_s, action.cap_s)
    return Verdict(wall_s=_fitting(base, wanted, largest(world, "wall_s")))


def _grown(now: int, factor: float, step: int, cap: int) -> int:
    return min(cap, max(now + 1, ceil(now * factor) + step))


def _fitting(now: int, wanted: int, most: int | None) -> int:
    """As much as wanted, or what the largest queue has as long as that is more than there was."""
    return most if most is not None and now < most < wanted else wanted


def largest(world: World, name: str) -> int | None:
    """The largest ``memory_mb`` or ``wall_s`` of any queue in use; None when one has no limit, or there are none."""
    limits = [int(getattr(queue, name)) for queue in world.queues.values() if queue.status != ResourceState.OFFLINE]
    return max(limits) if limits and all(limits) else None


def outgrown(world: World, memory_mb: int, wall_s: int) -> str:
    """Why no queue in use can hold units that ask for this (zero: no more than their task); empty if one can."""
    queues = [queue for queue in world.queues.values() if queue.status != ResourceState.OFFLINE]
    if any(_holds(queue.memory_mb, memory_mb) and _holds(queue.wall_s, wall_s) for queue in queues):
        return ""
    needs = [text for text in (f"{memory_mb} MB" if memory_mb else "", f"{wall_s} s" if wall_s else "") if text]
    return f"no queue has {' and '.join(needs)} for units that failed with less: add one, or kill the task"


def _holds(limit: int, needed: int) -> bool:
    return not limit or limit >= needed


def judge(rules: Sequence[Rule], failure: Failure, world: World) -> Judgement:
    """Apply the rules, which are in the order in which they are asked, to a failed job."""
    applied: list[Applied] = []
    seen: set[str] = set()
    for rule in rules:
        if (rule.spec.active and rule.kind in seen) or not rule.applies(failure):
            continue
        if rule.spec.active:
            seen.add(rule.kind)
        applied.append(_apply(rule, failure, world))
    verdict = Verdict()
    for each in applied:
        if each.active:
            verdict = _joined(verdict, each.verdict)
    return Judgement(verdict, tuple(applied))


def _apply(rule: Rule, failure: Failure, world: World) -> Applied:
    try:
        return Applied(rule.spec.name, rule.spec.active, rule.verdict(failure, world))
    except Exception as error:  # noqa: BLE001 - a plug-in's mistake must not cost the job its end; an event tells it
        return Applied(rule.spec.name, rule.spec.active, Verdict(), f"{type(error).__name__}: {error}")


def _joined(one: Verdict, other: Verdict) -> Verdict:
    limits = [each for each in (one.limit, other.limit) if each is not None]
    return Verdict(
        last=one.last or other.last,
        limit=min(limits) if limits else None,
        memory_mb=max(one.memory_mb, other.memory_mb),
        wall_s=max(one.wall_s, other.wall_s),
    )


def problems(spec: RetryRule, plugins: Sequence[str]) -> list[tuple[str, str]]:
    """What is wrong with a rule that a person wrote: (field, remedy)."""
    found = []
    if spec.when.message:
        try:
            Pattern(spec.when.message)
        except PatternError as error:
            found.append(("$.when.message", str(error)))
    for name in ("error_codes", "exit_codes"):
        for index, text in enumerate(getattr(spec.when, name)):
            first, last = ends(text)
            if first > last:
                found.append((f"$.when.{name}[{index}]", "write the smaller number first"))
    action = spec.action
    if isinstance(action, MoreMemory) and action.factor == 1 and not action.step_mb:
        found.append(("$.action.factor", "give a factor above 1 or a step_mb above 0"))
    if isinstance(action, MoreTime) and action.factor == 1 and not action.step_s:
        found.append(("$.action.factor", "give a factor above 1 or a step_s above 0"))
    if isinstance(action, CustomAction) and action.plugin not in plugins:
        known = ", ".join(plugins) or "none"
        found.append(("$.action.plugin", f"no such plug-in is installed in pilotage.retry_actions; installed: {known}"))
    return found
