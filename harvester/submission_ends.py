"""When the submission of each worker ended: until it has settled, one without an answer may still turn up."""

from __future__ import annotations

from collections.abc import Iterable

from common.clock import Clock


class SubmissionEnds:
    """The ends of submissions, worker by worker: what others are submitted meanwhile says nothing of this one.

    Of submissions in which a process before this one was cut off only that is known that they ended before it began.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._ends: dict[str, float] = {}

    def note(self, marks: Iterable[str]) -> None:
        """The submission of these was answered, or nobody waits for the answer any more."""
        self._ends.update(dict.fromkeys(marks, self._clock.monotonic()))

    def settled(self, marks: Iterable[str], settle_s: float) -> frozenset[str]:
        """Those whose submission ended at least ``settle_s`` ago."""
        latest = self._clock.monotonic() - settle_s
        return frozenset(mark for mark in marks if self._ends.get(mark, self._began) <= latest)

    def keep(self, marks: Iterable[str]) -> None:
        """Forget all but these, of which an answer is missing."""
        self._ends = {mark: self._ends[mark] for mark in marks if mark in self._ends}
