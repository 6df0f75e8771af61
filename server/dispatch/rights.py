"""What people may see and submit, beyond the rules of the routes."""

from __future__ import annotations

from collections.abc import Mapping

from common.wire import WhyReply, WorkflowRequest
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, NotFound
from server.engine.access import (
    PEOPLE,
    Caller,
    Isolation,
    Role,
    may_prioritise,
    may_probe,
    may_see,
    may_submit_for,
    may_use_share,
)
from server.store import access
from server.store.access import OWNERS, Sight

_APART = PEOPLE | {Role.OUTSIDE_WORKER}
"""Who is kept apart from others. Pilots and harvesters serve everybody; their routes say what they may touch."""
_LONGEST = 18  # digits of a number that the database can hold


def sight_of(dispatcher: Dispatcher, caller: Caller) -> Sight | None:
    """To what the lists of a caller are narrowed; None: to nothing."""
    if caller.is_admin or not caller.roles & _APART or isolation_of(dispatcher) is Isolation.OFF:
        return None
    return Sight(caller.name, sorted(caller.groups))


def isolation_of(dispatcher: Dispatcher) -> Isolation:
    """What people see of each other here."""
    return dispatcher.looks.get().knobs.isolation


def check_sight(dispatcher: Dispatcher, caller: Caller, path: Mapping[str, str], query: Mapping[str, str]) -> None:
    """Refuse a request that names a workflow, task or job that the caller may not see, in its path or its query.

    The application asks this for every route, so that none can forget it.

    Raises:
        NotFound: as if it were not there.
    """
    named = {**{f"{word}_id": query[word] for word in _WORDS if word in query}, **path}
    asked = {word: named[f"{word}_id"] for word in _WORDS if f"{word}_id" in named}
    if not asked or sight_of(dispatcher, caller) is None:
        return
    with dispatcher.database.read() as connection:
        for word, text in asked.items():
            if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST):
                continue  # the route itself says what is wrong with it
            owned = access.owner_of(connection, word, int(text))
            if owned is not None and not may_see(caller, *owned, Isolation.GROUP):
                raise NotFound(f"there is no {word} {text}")


_WORDS = tuple(OWNERS)


def narrowed(dispatcher: Dispatcher, caller: Caller, reply: WhyReply) -> WhyReply:
    """The answer for a queue without the tasks that the caller may not see."""
    sight = sight_of(dispatcher, caller)
    if sight is None:
        return reply
    named = {each.task_id for each in (*reply.refusals, *reply.matched)}
    with dispatcher.database.read() as connection:
        seen = access.seen_tasks(connection, sight, named)
    reply.refusals = [each for each in reply.refusals if each.task_id in seen]
    reply.matched = [each for each in reply.matched if each.task_id in seen]
    return reply


def check_submission(dispatcher: Dispatcher, caller: Caller, request: WorkflowRequest) -> None:
    """Whether a person may submit this: for that group, to those shares, with those priorities.

    Raises:
        Forbidden: it names the field and the remedy.
    """
    if not may_submit_for(caller, request.group, isolation_of(dispatcher)):
        mine = ", ".join(sorted(caller.groups)) or "no group"
        words = [("$.group", f"you belong to {mine}")]
        raise Forbidden(f"{caller.name} does not belong to group {request.group}", words)
    for number, stage in enumerate(request.stages):
        check_urgency(dispatcher, caller, stage.priority, stage.share, f"$.stages[{number}]")
        if stage.probe and not may_probe(caller):
            words = [(f"$.stages[{number}].probe", "leave it out, or ask for the role production")]
            raise Forbidden("probes, which run where only tests may, are production's", words)


def check_urgency(
    dispatcher: Dispatcher, caller: Caller, priority: int | None, share: str | None, where: str = "$"
) -> None:
    """Whether a person may use a priority and a share; None: unchanged.

    Raises:
        Forbidden: it takes a production manager.
    """
    knobs = dispatcher.looks.get().knobs
    if priority is not None and not may_prioritise(caller, priority, knobs.production_priority):
        words = f"give less than {knobs.production_priority}, or ask for the role production"
        raise Forbidden(f"priority {priority} is production's", [(f"{where}.priority", words)])
    if share is not None and not may_use_share(caller, share, knobs.production_shares):
        words = "choose another share, or ask for the role production"
        raise Forbidden(f"share {share} is production's", [(f"{where}.share", words)])
