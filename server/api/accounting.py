"""Routes of accounting."""

from __future__ import annotations

import re
from collections.abc import Callable

from common.wire import AccountingReport
from server.api.routing import Call, Raw, Role, Route, allow
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.dispatch.rights import sight_of
from server.engine.accounting import apel_message, day_number, month_days, to_csv
from server.store import accounting

MOST_ROWS = 10_000
MOST_WAITING = 100_000
FILTERS = ("site", "group", "user", "task", "queue")


def _accounting(dispatcher: Dispatcher, call: Call) -> AccountingReport | Raw:
    by = list(dict.fromkeys(word for word in call.query.get("by", "").split(",") if word))
    unknown = [word for word in by if word not in accounting.GROUPS]
    if unknown:
        raise Invalid(f"by: {unknown[0]!r} is not known", [("by", f"give some of {', '.join(accounting.GROUPS)}")])
    kind = call.query.get("format", "json")
    if kind not in ("json", "csv"):
        raise Invalid("format is not valid", [("format", "give json or csv")])
    filters = {word: call.query[word] for word in FILTERS if word in call.query}
    with dispatcher.database.read() as connection:
        rows = accounting.report(
            connection,
            first=_day(call, "from", 0),
            behind=_day(call, "to", 2**31 - 2) + 1,
            by=by,
            filters=filters,
            sight=sight_of(dispatcher, call.caller),
            limit=MOST_ROWS + 1,
        )
        waiting = accounting.waiting(connection, MOST_WAITING)
    if len(rows) > MOST_ROWS:
        words = f"filter more or group by less: there are more than {MOST_ROWS} rows"
        raise Invalid("the report is too long", [("by", words)])
    if kind == "csv":
        return Raw(to_csv(rows, by).encode(), "text/csv; charset=utf-8")
    return AccountingReport(rows, waiting)


def _day(call: Call, name: str, default: int) -> int:
    return default if name not in call.query else _parsed(call, name, day_number, "a date such as 2026-11-21")


def _parsed(call: Call, name: str, parse: Callable[[str], int], words: str) -> int:
    try:
        return parse(call.query[name])
    except ValueError:
        raise Invalid(f"{name} is not valid", [(name, f"give {words}")]) from None


def _apel(dispatcher: Dispatcher, call: Call) -> Raw:
    month = call.query.get("month", "")
    try:
        first, behind = month_days(month)
    except ValueError:
        raise Invalid("month is not valid", [("month", "give a month such as 2026-11")]) from None
    host = call.query.get("host", "pilotage")
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", host):
        raise Invalid("host is not valid", [("host", "give the name under which the site publishes")])
    with dispatcher.database.read() as connection:
        records = accounting.apel(connection, first, behind, call.query.get("site"))
    return Raw(apel_message(month, host, records).encode(), "text/plain; charset=utf-8")


ROUTES = [
    Route(
        "GET", "/v1/accounting", allow(Role.USER), _accounting, "What was used, by whom, where and when",
        reply=AccountingReport, query=("from", "to", *FILTERS, "by", "format"),
    ),
    Route(
        "GET", "/v1/accounting/apel", allow(Role.ADMIN), _apel, "A month's summary records for APEL",
        query=("month", "site", "host"),
    ),
]  # fmt: skip
