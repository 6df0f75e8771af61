"""Routes of failures: retry rules, and hosts that get nothing for a while."""

from __future__ import annotations

from common.plugins import plugins
from common.wire import BlockedHostList, RetryRule, RetryRuleList
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Invalid, NotFound
from server.dispatch.failing import PLUGINS
from server.engine.retry_rules import problems
from server.store import hosts, retry_rules

MOST_RULES = 500
"""Each failed job is held against all of them."""

_ADMIN = allow(Role.ADMIN)
_USER = allow(Role.USER)


def _list(dispatcher: Dispatcher, _: Call) -> RetryRuleList:
    with dispatcher.database.read() as connection:
        return RetryRuleList(items=retry_rules.every(connection))


def _get(dispatcher: Dispatcher, call: Call) -> RetryRule:
    with dispatcher.database.read() as connection:
        found = retry_rules.one(connection, call.path["name"])
    if found is None:
        raise NotFound(f"there is no retry rule {call.path['name']!r}")
    return found


def _put(dispatcher: Dispatcher, call: Call) -> RetryRule:
    rule: RetryRule = call.body
    if rule.name != call.path["name"]:
        raise Invalid("the names differ", [("$.name", f"the path says {call.path['name']!r}: give the same")])
    wrong = problems(rule, sorted(plugins(PLUGINS)))
    if wrong:
        raise Invalid(f"retry rule {rule.name} cannot be used", wrong)
    with dispatcher.database.write() as connection:
        names = {each.name for each in retry_rules.every(connection)}
        if rule.name not in names and len(names) >= MOST_RULES:
            raise Conflict(f"there are {MOST_RULES} retry rules, the most that may be: delete one first")
        retry_rules.put(connection, rule)
    dispatcher.changed()
    return rule


def _delete(dispatcher: Dispatcher, call: Call) -> None:
    with dispatcher.database.write() as connection:
        found = retry_rules.remove(connection, call.path["name"])
    if not found:
        raise NotFound(f"there is no retry rule {call.path['name']!r}")
    dispatcher.changed()


def _blocked(dispatcher: Dispatcher, _: Call) -> BlockedHostList:
    with dispatcher.database.read() as connection:
        return BlockedHostList(items=hosts.listing(connection, dispatcher.now()))


def _unblock(dispatcher: Dispatcher, call: Call) -> None:
    with dispatcher.database.write() as connection:
        found = hosts.forget(connection, call.path["queue"], call.path["host"])
    if not found:
        raise NotFound(f"nothing is known of host {call.path['host']!r} of queue {call.path['queue']!r}")
    dispatcher.changed()


_RULE = "/v1/retry-rules/{name}"

ROUTES = [
    Route("GET", "/v1/retry-rules", _USER, _list, "List retry rules, in the order in which they are asked",
          reply=RetryRuleList),
    Route("GET", _RULE, _USER, _get, "Look at a retry rule", reply=RetryRule),
    Route("PUT", _RULE, _ADMIN, _put, "Make or change a retry rule", RetryRule, RetryRule),
    Route("DELETE", _RULE, _ADMIN, _delete, "Delete a retry rule", status=204),
    Route("GET", "/v1/blocked-hosts", _USER, _blocked, "List hosts that get nothing because they failed jobs fast",
          reply=BlockedHostList),
    Route("DELETE", "/v1/blocked-hosts/{queue}/{host}", _ADMIN, _unblock, "Give a host work again", status=204),
]  # fmt: skip
