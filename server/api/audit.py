"""The audit: every change that a person makes becomes an event. One place, so that no route can forget it."""

from __future__ import annotations

import logging
from typing import Any

from server.api.routing import Call, Route
from server.dispatch.context import Dispatcher
from server.store import events
from server.store.database import DatabaseUnavailable
from server.store.events import Event

logger = logging.getLogger(__name__)

KIND = "AUDIT"
_MOST_CHARS = 500


def note_change(dispatcher: Dispatcher, route: Route, call: Call, reply: object, address: str) -> None:
    """Write down who changed what: the route, what its path and query name, what was made; never the body.

    Of the query only what the route knows: a client of another system may send anything there, a password even.

    The change itself was committed before: where the database goes away in between, the log tells it alone.
    """
    asked = {name: call.query[name] for name in route.query if name in call.query}
    detail: dict[str, Any] = {
        **{name: value[:_MOST_CHARS] for name, value in {**asked, **call.path}.items()},
        **call.audit,
        "method": route.method,
        "route": route.path,
        "proof": call.caller.proof,
        "address": address,
    }
    made = getattr(reply, "id", None)
    if isinstance(made, int):
        detail["made"] = made
    logger.info("%s changed %s", call.caller.name, detail)
    event = Event(
        dispatcher.now(),
        KIND,
        "person",
        call.caller.name,
        task_id=_number(call.path.get("task_id")),
        job_id=_number(call.path.get("job_id")),
        detail=detail,
    )
    try:
        with dispatcher.database.write() as connection:
            events.add(connection, event)
    except DatabaseUnavailable as error:
        logger.error("the audit event of %s could not be written: %s: %s", call.caller.name, detail, error)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None
