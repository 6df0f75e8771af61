"""A queue whose workers get no pilot gets fewer of them: pure ``step(state, verdict) -> state``.

A worker is *good* as soon as a pilot of its has registered, *bad* when its submission was refused or it ended without
any. Bad ones in a row close the queue for a while; then one test worker goes, and each good one makes room for one more
than itself, so that twice as many are under way each time, until the queue is open again. Only workers made after a decision tell
whether it was right: what had been submitted before, however many that were, changes nothing any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

OPEN_AT = 16
"""With so many test workers at a time the queue counts as well again."""
EATEN = 3
"""A host is named when so many workers in a row got no pilot there."""
LONGEST_DOUBLING = 40


@dataclass(frozen=True)
class Rules:
    """``failures`` bad workers in a row close a queue for ``backoff_s`` seconds, then twice as long, up to ``most_s``."""

    failures: int = 5
    backoff_s: float = 60.0
    most_s: float = 7200.0


@dataclass(frozen=True)
class Verdict:
    """What became of a worker that was made at ``created``, known at ``time``. ``host`` is where it ran, if known."""

    mark: str
    time: float
    created: float
    good: bool
    host: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Throttle:
    """State of a queue.

    ``level`` counts the times that it was closed since it was last open (0: it is open), ``since`` and ``until`` say
    when the last began and ends; ``allowed`` is how many unproven workers may then be under way. ``failures`` are the
    bad ones in a row, ``reason`` is why the last of them was bad.
    """

    failures: int = 0
    level: int = 0
    since: float = -math.inf
    until: float = -math.inf
    allowed: int = 1
    reason: str = ""

    @property
    def open(self) -> bool:
        """Whether nothing is held back."""
        return self.level == 0

    @property
    def doubtful(self) -> bool:
        """Whether it is of interest which of its workers have got a pilot."""
        return self.level > 0 or self.failures > 0

    def allowance(self, now: float) -> int | None:
        """How many unproven workers made after ``since`` may be under way; None for any number."""
        if self.open:
            return None
        # A clock that was set back must not close a queue for longer than it was meant to be.
        return 0 if self.since <= now < self.until else self.allowed


def step(state: Throttle, verdict: Verdict, rules: Rules) -> Throttle:
    """What a verdict makes of a queue."""
    if verdict.created <= state.since:
        return state
    if verdict.good:
        if state.open:
            return replace(state, failures=0)
        allowed = state.allowed + 1
        return Throttle(since=state.since) if allowed >= OPEN_AT else replace(state, allowed=allowed, failures=0)
    state = replace(state, failures=state.failures + 1, reason=verdict.reason)
    if state.open:
        return _close(state, verdict.time, rules) if state.failures >= rules.failures else state
    return replace(state, allowed=state.allowed // 2) if state.allowed > 1 else _close(state, verdict.time, rules)


def fold(verdicts: Iterable[Verdict], rules: Rules) -> Throttle:
    """The state after all verdicts of a queue, oldest first."""
    state = Throttle()
    for verdict in verdicts:
        state = step(state, verdict, rules)
    return state


def eaters(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """The hosts that swallow workers: how many in a row got no pilot there, where those are many."""
    bad: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.host:
            bad[verdict.host] = 0 if verdict.good else bad.get(verdict.host, 0) + 1
    return {host: n for host, n in sorted(bad.items()) if n >= EATEN}


def _close(state: Throttle, now: float, rules: Rules) -> Throttle:
    wait_s = min(rules.most_s, rules.backoff_s * 2.0 ** min(state.level, LONGEST_DOUBLING))
    return replace(state, level=state.level + 1, since=now, until=now + wait_s, allowed=1)
