"""Claims, records and confirmations that arrive while others are at work: one transaction for all that waits, on PostgreSQL.

What the database and this process need for a batch they need once, however many kinds of requests are in it
(:mod:`server.batching`); one that comes alone is carried out at once, by the same code. What is not plain, or is refused,
is left to the long way, one by one: nothing was done for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from common.wire import FinishReply, FinishRequest, RecordReply, RecordRequest
from server.dispatch.claim_together import Answer, Claims, Got, Wish
from server.dispatch.commit_together import Asked, Commits, Reply, may_share
from server.dispatch.context import Dispatcher
from server.store import commit_postgres
from server.store.claims import MOST_TOGETHER
from server.store.prepared import NOTHING, both

MOST = min(MOST_TOGETHER, commit_postgres.MOST)
"""Requests of one transaction."""


class _Not:
    """The answer to what was not carried out: a batch's answers are never None."""


_NOT = _Not()


def claim(dispatcher: Dispatcher, wish: Wish) -> Got | None:
    """One job; None if that must be done alone, and nothing was done.

    Raises:
        IntegrityError: this request got a job already.
        DatabaseUnavailable: no connection could be had, or it broke.
    """
    got = _done(dispatcher, wish)
    return got if isinstance(got, Got) else None


def record(dispatcher: Dispatcher, asked: Asked[RecordRequest]) -> RecordReply | None:
    """Record outputs; None if that must be done alone, and nothing was done."""
    reply = _done(dispatcher, asked) if may_share(asked.request) else None
    return reply if isinstance(reply, RecordReply) else None


def finish(dispatcher: Dispatcher, asked: Asked[FinishRequest]) -> FinishReply | None:
    """Confirm a job; None if that must be done alone, and nothing was done."""
    reply = _done(dispatcher, asked) if may_share(asked.request) else None
    return reply if isinstance(reply, FinishReply) else None


def _done(dispatcher: Dispatcher, asked: Wish | Asked[Any]) -> object:
    if dispatcher.database.is_sqlite:
        return None
    dispatcher.looks.get()  # renewed here if it is old: those of a batch need not wait for that
    return dispatcher.writes.do(asked, partial(carry_out, dispatcher))


def carry_out(dispatcher: Dispatcher, batch: list[Wish | Asked[Any]]) -> list[object]:
    """The answers to a batch."""
    answers: list[object] = []
    for start in range(0, len(batch), MOST):
        answers += _some(dispatcher, batch[start : start + MOST])
    return answers


def _some(dispatcher: Dispatcher, batch: Sequence[Wish | Asked[Any]]) -> list[object]:
    look = dispatcher.looks.get(math.inf)
    wishes = [each for each in batch if isinstance(each, Wish)]
    claims = Claims(dispatcher, look, wishes) if wishes else None
    to_commit = [each for each in batch if isinstance(each, Asked)]
    if claims is not None and not to_commit and claims.wants_nothing:
        return _in_order(batch, claims.answers([]), [])
    with dispatcher.database.at_once() as connection:
        commits = Commits(dispatcher, connection, look, to_commit)
        got, written = both(connection, claims.piece() if claims else NOTHING, commits.piece())
    return _in_order(batch, claims.answers(got) if claims else [], commits.replies(written))


def _in_order(batch: Sequence[Wish | Asked[Any]], answers: Sequence[Answer], replies: Sequence[Reply]) -> list[object]:
    answered, replied = iter(answers), iter(replies)
    found = [next(answered if isinstance(each, Wish) else replied) for each in batch]
    return [_NOT if each is None else each for each in found]
