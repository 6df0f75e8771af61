"""Routes that tell where an output comes from, and what ran where for whom."""

from __future__ import annotations

from datetime import datetime, timezone

from common.wire import ProvenanceView, TracePage
from server.api.routing import Call, Role, Route, allow, page_of
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.dispatch.origin import provenance_of
from server.dispatch.rights import sight_of
from server.store import provenance
from server.store.provenance import TraceWanted

FAR_AHEAD = 2.0**40


def _provenance(dispatcher: Dispatcher, call: Call) -> ProvenanceView:
    return provenance_of(dispatcher, call.path["did"], sight_of(dispatcher, call.caller))


def _trace(dispatcher: Dispatcher, call: Call) -> TracePage:
    after, limit = page_of(call)
    host, user = call.query.get("host"), call.query.get("user")
    if host is None and user is None:
        words = "name at least one of them: all jobs of all time are not looked through"
        raise Invalid("host and user are both missing", [("host", words), ("user", words)])
    wanted = TraceWanted(host, user, _moment(call, "from", 0.0), _moment(call, "to", FAR_AHEAD), call.query.get("site"))
    with dispatcher.database.read() as connection:
        items = provenance.trace(connection, wanted, after=after, limit=limit)
    return TracePage(items[-1].id if len(items) == limit else None, items)


def _moment(call: Call, name: str, default: float) -> float:
    text = call.query.get(name)
    if text is None:
        return default
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        words = "give a moment such as 2026-11-21 or 2026-11-21T08:30:00+00:00"
        raise Invalid(f"{name} is not valid", [(name, words)]) from None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


ROUTES = [
    Route(
        "GET", "/v1/outputs/{did}/provenance", allow(Role.USER), _provenance, "Where an output comes from",
        reply=ProvenanceView,
    ),
    Route(
        "GET", "/v1/trace", allow(Role.ADMIN), _trace, "Which jobs ran on a host or for a user, archived ones included",
        reply=TracePage, query=("host", "user", "site", "from", "to", "after", "limit"),
    ),
]  # fmt: skip
