"""Claims of one job each for several pilots at once, on PostgreSQL.

Requests that arrive together are carried out together (:mod:`server.batching`): one thread matches them one after another,
claims for all in one statement, and puts the answers together. So each sees what the ones before it will take, and what
this work needs is in the processor's caches. What is not plain is left to the long way, one by one: nothing was done for
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from common.wire import AcquireRequest, Assignment, QueueSpec, Refusal, StageSpec
from server.batching import AGAIN, Again
from server.dispatch.assign import assignment, facts_of
from server.dispatch.claim import AHEAD, Found, asked_for, set_aside, slot_of
from server.dispatch.context import Dispatcher, Look
from server.engine.matching import Candidate
from server.engine.probes import is_own_work
from server.store import claims
from server.store.claims import Asked, ClaimedJob, Missed
from server.store.pilots import PilotRow
from server.store.prepared import Piece

TRIES = 4
"""Batches that one request takes part in at the most: others may always be faster."""


@dataclass(slots=True)
class Wish:
    """A pilot's request for a job; of task ``task_id`` or none, if that is given."""

    pilot: PilotRow
    queue: QueueSpec
    request: AcquireRequest
    task_id: int | None = None
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Got:
    """What was claimed, or why nothing was; with the assignment, if that is made already."""

    found: Found
    refusals: list[Refusal]
    assignment: Assignment | None = None


Answer = Got | Again | None
"""None: that must be done alone, and nothing was done."""


class Claims:
    """The claims of one batch: chosen at once, claimed by ``piece``, and then ``answers``."""

    def __init__(self, dispatcher: Dispatcher, look: Look, wishes: Sequence[Wish]) -> None:
        self._dispatcher = dispatcher
        self._look = look
        self._wishes = wishes
        self._choices = _Choices(dispatcher, look)
        self._chosen = [self._choices.choose(wish) for wish in wishes]

    @property
    def wants_nothing(self) -> bool:
        """Whether the database need not be asked: there is nothing for any of them, or it must be claimed alone."""
        return not self._choices.asked

    def piece(self) -> Piece[list[ClaimedJob | Missed]]:
        """What the database is asked. It raises IntegrityError if one of the requests got a job already."""
        return claims.claim_together(self._choices.asked, self._dispatcher.floors)

    def answers(self, got: Sequence[ClaimedJob | Missed]) -> list[Answer]:
        """The answer to each, of what the database said."""
        outcomes = iter(got)
        return [
            _settled(self._dispatcher, self._look, wish, each, next(outcomes)) if isinstance(each, Candidate) else each
            for wish, each in zip(self._wishes, self._chosen, strict=True)
        ]


class _Choices:
    """Which bucket each of a batch claims from, knowing what those before it will take."""

    def __init__(self, dispatcher: Dispatcher, look: Look) -> None:
        self.asked: list[Asked] = []
        self._dispatcher = dispatcher
        self._look = look
        self._buckets = dispatcher.looks.buckets()
        self._moment = look.moment(dispatcher.now())
        self._taken: Counter[int] = Counter()
        self._full: set[int] = set()

    def choose(self, wish: Wish) -> Candidate | Answer:
        """The bucket that a wish's claim is now among the ``asked`` for; or that there is none to ask for."""
        dispatcher, look, pilot = self._dispatcher, self._look, wish.pilot
        wish.batches += 1
        if wish.batches > TRIES:
            return None
        slot = slot_of(dispatcher, look, pilot, wish.queue, wish.request.offer)
        with dispatcher.looks.mutex:
            matches, refusals = self._buckets.find(slot, self._moment, look.share_use, 1, frozenset(self._full))
        if not matches:
            # Of what others of this batch will empty, something may be left.
            return AGAIN if self._full else Got([], refusals)
        candidate = matches[0].candidate
        if candidate.traits.scouting is not None:
            return None
        task_id = candidate.traits.task_id
        if wish.task_id not in (None, task_id):
            return Got([], [Refusal(task_id, candidate.bucket_id, AHEAD, "by now another task is first in turn")])
        asked = asked_for(dispatcher, look, pilot, slot, matches[0], (wish.request.request_id, 0))
        if not claims.is_single(asked):
            return None
        self.asked.append(asked)
        self._take(candidate.bucket_id)
        return candidate

    def _take(self, bucket_id: int) -> None:
        self._taken[bucket_id] += 1
        left = self._dispatcher.floors.left(bucket_id)
        if left is not None and self._taken[bucket_id] >= left:
            self._full.add(bucket_id)


def _settled(
    dispatcher: Dispatcher, look: Look, wish: Wish, candidate: Candidate, outcome: ClaimedJob | Missed
) -> Answer:
    bucket_id, traits = candidate.bucket_id, candidate.traits
    if isinstance(outcome, ClaimedJob):
        # Not before: claims of one bucket in one statement cost the database less than those of many.
        with dispatcher.looks.mutex:
            look.share_use.claim(traits.share, traits.requirements.cores)
        if outcome.emptied:
            set_aside(dispatcher, bucket_id)
        made = _assignment(dispatcher, look, wish.queue, candidate, outcome) if _is_plain(traits.spec) else None
        return Got([(outcome, candidate)], [], made)
    if outcome is Missed.PILOT_MAY_NOT:
        return Got([], [])
    if outcome is Missed.TOO_LARGE:
        return None
    if outcome is Missed.EMPTY:
        set_aside(dispatcher, bucket_id)
    return AGAIN


def _is_plain(spec: StageSpec) -> bool:
    """Whether an assignment can be made without asking the database, for which others would have to wait."""
    return not (spec.secondary_inputs or spec.sandbox is not None or spec.secrets or is_own_work(spec))


def _assignment(
    dispatcher: Dispatcher, look: Look, queue: QueueSpec, candidate: Candidate, job: ClaimedJob
) -> Assignment:
    task = facts_of(candidate.traits)
    return assignment(dispatcher, look, queue.site, job, task, candidate.memory_mb, candidate.wall_s, queue)
