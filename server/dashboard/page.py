"""The dashboard: one page, made on the server, for anybody. It has numbers, and names of queues, shares and agents only.

It loads nothing from elsewhere and runs no script; it renews itself every ten seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from common.errors import ERRORS, ErrorCode
from common.plugins import version
from common.quantities import format_about
from common.wire import AgentView
from server.dispatch.context import Dispatcher
from server.metrics.samples import SystemSample
from server.store import agents, dashboard, measure

CONTENT_TYPE = "text/html; charset=utf-8"
PAGE_S = 5.0
"""The page is made anew when it is older than this, however often it is asked for."""
MOST_TASKS = 50
LATE_S = 60.0
"""An agent that is late by more is a trouble; likewise numbers that are older."""


class ShareLine(msgspec.Struct):
    """A share as the page shows it; ``use`` is the part of all cores in use that it and the shares below it have."""

    name: str
    target: float
    use: float
    cores: int
    ready: int


def dashboard_page(dispatcher: Dispatcher) -> bytes:
    """The page; made at most once in :data:`PAGE_S`."""
    return dispatcher.watch.keep("dashboard", PAGE_S, dispatcher.now(), lambda: _make(dispatcher))


def _make(dispatcher: Dispatcher) -> bytes:
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        system = measure.system(connection)
        duties = agents.views(connection, now)
        tasks = dashboard.tasks_in_progress(connection, MOST_TASKS)
        problems = dashboard.problems(connection)
    words = {
        "version": version(),
        "now": now,
        "system": system,
        "tiles": _tiles(system) if system else [],
        "shares": _shares(system) if system else [],
        "tasks": tasks,
        "more_tasks": sum(system.tasks.values()) - len(tasks) if system else 0,
        "agents": duties,
        "problems": [msgspec.structs.asdict(each) | {"error": _error(each.error_code)} for each in reversed(problems)],
        "troubles": _troubles(system, duties, now),
    }
    return _template().render(words).encode()


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("server.dashboard", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": _moment, "duration": format_about, "number": _number, "part": _part}
    return environment.get_template("dashboard.html")


def _tiles(system: SystemSample) -> list[tuple[str, str]]:
    running = sum(queue.cores for queue in system.queues)
    return [
        ("tasks in progress", _number(sum(system.tasks.values()))),
        ("units ready", _number(system.units.get("ready", 0))),
        ("live jobs", _number(sum(system.jobs.values()))),
        ("cores in use", _number(running)),
        ("pilots", _number(system.pilots)),
        ("of them idle", _number(system.pilots_idle)),
        ("of them late", _number(system.pilots_late)),
        ("longest wait", format_about(system.oldest_ready_s)),
    ]


def _shares(system: SystemSample) -> list[ShareLine]:
    total = sum(share.cores for share in system.shares)
    return [
        ShareLine(share.name, share.target, share.cores / total if total else 0.0, share.cores, share.ready)
        for share in system.shares
    ]


def _troubles(system: SystemSample | None, duties: Sequence[AgentView], now: float) -> list[str]:
    found = [f"agent {each.name} fails" for each in duties if each.enabled and each.error]
    found += [f"agent {each.name} is off" for each in duties if not each.enabled]
    found += [f"agent {each.name} is late" for each in duties if each.late_s > LATE_S]
    # Measuring may take one part in fifty of the time, so that in a huge system it is done less often.
    if system is None or now - system.time > max(LATE_S, 100 * system.cost_s):
        found.append("the agents do not run")
    return found


def _error(code: int | None) -> str:
    if code is None:
        return ""
    known = code in ErrorCode._value2member_map_
    return f"{code} {ERRORS[ErrorCode(code)].words}" if known else str(code)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _number(n: int) -> str:
    return f"{n:,}".replace(",", "\N{THIN SPACE}")


def _part(n: int, total: int) -> float:
    return round(100 * n / total, 2) if total else 0.0
