"""Routes of the rules that tag new tasks."""

from __future__ import annotations

from common.wire import TaggingRule, TaggingRuleList
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Invalid, NotFound
from server.engine.tagging import problems
from server.store import tagging, world

MOST_RULES = 500
"""Each new task is held against all of them."""

_ADMIN = allow(Role.ADMIN)
_USER = allow(Role.USER)


def _list(dispatcher: Dispatcher, _: Call) -> TaggingRuleList:
    with dispatcher.database.read() as connection:
        return TaggingRuleList(items=tagging.every(connection))


def _get(dispatcher: Dispatcher, call: Call) -> TaggingRule:
    with dispatcher.database.read() as connection:
        for rule in tagging.every(connection):
            if rule.name == call.path["name"]:
                return rule
    raise NotFound(f"there is no tagging rule {call.path['name']!r}")


def _put(dispatcher: Dispatcher, call: Call) -> TaggingRule:
    rule: TaggingRule = call.body
    if rule.name != call.path["name"]:
        raise Invalid("the names differ", [("$.name", f"the path says {call.path['name']!r}: give the same")])
    with dispatcher.database.write() as connection:
        wrong = problems(rule, {share.name for share in world.shares(connection)})
        if wrong:
            raise Invalid(f"tagging rule {rule.name} cannot be used", wrong)
        names = {each.name for each in tagging.every(connection)}
        if rule.name not in names and len(names) >= MOST_RULES:
            raise Conflict(f"there are {MOST_RULES} tagging rules, the most that may be: delete one first")
        tagging.put(connection, rule)
    return rule


def _delete(dispatcher: Dispatcher, call: Call) -> None:
    with dispatcher.database.write() as connection:
        found = tagging.remove(connection, call.path["name"])
    if not found:
        raise NotFound(f"there is no tagging rule {call.path['name']!r}")


_RULE = "/v1/tagging-rules/{name}"

ROUTES = [
    Route("GET", "/v1/tagging-rules", _USER, _list, "List tagging rules, in the order in which they are asked",
          reply=TaggingRuleList),
    Route("GET", _RULE, _USER, _get, "Look at a tagging rule", reply=TaggingRule),
    Route("PUT", _RULE, _ADMIN, _put, "Make or change a tagging rule", TaggingRule, TaggingRule),
    Route("DELETE", _RULE, _ADMIN, _delete, "Delete a tagging rule", status=204),
]  # fmt: skip
