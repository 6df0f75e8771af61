"""Events: listed, and followed by long polls."""

from __future__ import annotations

import difflib

from common.events import EventKind
from common.wire import EventPage
from server.api.routing import PAGE_LIMIT, Call, Role, Route, allow
from server.dispatch import rights
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.store import events
from server.store.events import Cursor, Wanted

LOOK_S = 1.0
"""How often a waiting request looks for new events."""
MAX_WAIT_S = 60
TRUE = ("", "true", "1", "yes")
FALSE = ("false", "0", "no")


def _events(dispatcher: Dispatcher, call: Call) -> EventPage:
    limit = max(1, call.count("limit", 100, PAGE_LIMIT))
    wanted = _wanted(dispatcher, call)
    after, wait_s = _after(call), call.count("wait", 0, MAX_WAIT_S)
    if _flag(call, "follow"):
        return _follow(dispatcher, wanted, after, limit, wait_s)
    with dispatcher.database.read() as connection:
        if _flag(call, "newest"):
            items, end = events.newest(connection, wanted, limit)
            return EventPage(str(end), items)
        items, following = events.page(connection, wanted, after=after or events.BEGINNING, limit=limit)
    return EventPage(None if following is None else str(following), items)


def _follow(dispatcher: Dispatcher, wanted: Wanted, after: Cursor | None, limit: int, wait_s: int) -> EventPage:
    """A batch as soon as there is one, an empty one when the time is over.

    Only a few requests of each process may wait; to the others ``retry_after_s`` says when to come again.
    """
    if after is None:  # from now on
        with dispatcher.database.read() as connection:
            return EventPage(str(events.settled(connection)))
    with dispatcher.watch.follower() as may_wait:
        looks = int(wait_s / LOOK_S) if may_wait else 0
        while True:
            with dispatcher.database.read() as connection:
                items, after = events.follow(connection, wanted, after=after, limit=limit)
            if items or looks <= 0 or dispatcher.stopping.wait(LOOK_S):
                return EventPage(str(after), items, 0.0 if items or wait_s and may_wait else LOOK_S)
            looks -= 1


def _wanted(dispatcher: Dispatcher, call: Call) -> Wanted:
    subject, _, subject_id = call.query.get("subject", "").partition(":")
    return Wanted(
        task_id=call.count("task", 0) or None,
        job_id=call.count("job", 0) or None,
        workflow_id=call.count("workflow", 0) or None,
        kinds=_kinds(call),
        subject=subject,
        subject_id=subject_id,
        since=_moment(call, "since"),
        until=_moment(call, "until"),
        sight=rights.sight_of(dispatcher, call.caller),
    )


def _kinds(call: Call) -> list[str]:
    kinds = [each.strip() for each in call.query.get("kind", "").split(",") if each.strip()]
    known = EventKind.__members__
    for each in kinds:
        if each not in known:
            near = difflib.get_close_matches(each.upper(), known, n=1) or ["JOB_FAILED"]
            words = f"there is no such kind; {near[0]} is one, the reference of events lists all"
            raise Invalid(f"kind {each!r} is not known", [("kind", words)])
    return kinds


def _moment(call: Call, name: str) -> float | None:
    words = call.query.get(name)
    if words is None:
        return None
    try:
        moment = float(words)
    except ValueError:
        moment = -1.0
    if not 0 <= moment < 1e12:
        raise Invalid(f"{name} is not valid", [(name, "give seconds since the epoch")])
    return moment


def _after(call: Call) -> Cursor | None:
    words = call.query.get("after")
    if words is None:
        return None
    try:
        return Cursor.parse(words)
    except ValueError as error:
        raise Invalid(
            "after is not valid", [("after", "give what a page said as its next, or leave it out")]
        ) from error


def _flag(call: Call, name: str) -> bool:
    words = call.query.get(name, "false").lower()
    if words not in TRUE + FALSE:
        raise Invalid(f"{name} is not valid", [(name, "give true or false")])
    return words in TRUE


ROUTES = [
    Route(
        "GET", "/v1/events", allow(Role.USER), _events, "List events, or wait for new ones", reply=EventPage,
        query=(
            "task", "job", "workflow", "kind", "subject", "since", "until", "after", "limit", "follow", "newest", "wait",
        ),
    ),
]  # fmt: skip
