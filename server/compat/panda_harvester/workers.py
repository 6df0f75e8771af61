"""The verbs by which a Harvester tells of its workers. They are workers of ours, with marks that only it has."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from common.tokens import hash_secret, new_secret
from common.wire import Shape, WorkerReport, WorkersReportRequest
from common.wire.harvesters import LogUrl
from server.api.routing import Call, Raw
from server.compat.bodies import json_of
from server.compat.panda.asking import mark_beginning, mark_of, name_of, queue_of, worker_of
from server.compat.panda.fields import Fields
from server.compat.panda.jobs import MANAGED
from server.compat.panda.resources import kind_of
from server.compat.panda.words import WORKER_STATES
from server.compat.panda_harvester.answers import done, fields_of, items_of
from server.dispatch import registration
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.dispatch.foreign import VALID_S
from server.store import harvesters

MOST_WORKERS = 1000
_REASONS = ("diagMessage", "diag_message", "errorDiag")
_LOGS = ("stdOut", "batchLog", "stdErr")


def update_workers(dispatcher: Dispatcher, call: Call) -> Raw:
    """``harvester/update_workers``: whether each was taken down."""
    items = items_of(fields_of(call), "workers", MOST_WORKERS)
    reports = [_report_of(dispatcher, call.caller.name, each) for each in items]
    request = WorkersReportRequest(call.caller.name, [each for each in reports if each is not None])
    outcomes = iter(registration.report_workers(dispatcher, request).workers if request.workers else [])
    return done([each is not None and next(outcomes).accepted for each in reports])


def _report_of(dispatcher: Dispatcher, harvester: str, item: Any) -> WorkerReport | None:
    """A worker in our words; None if it is not to be understood."""
    if not isinstance(item, dict):
        return None
    fields = Fields(item)
    mark = mark_of(harvester, fields.text("workerID") or fields.text("worker_id"))
    state = WORKER_STATES.get(fields.text("status"))
    try:
        queue = queue_of(dispatcher, fields.text("computingSite") or fields.text("queueName"))
    except NotFound:
        return None
    if mark is None or state is None:
        return None
    cores = fields.count("nCore")
    return WorkerReport(
        mark,
        queue.name,
        state,
        Shape(max(1, cores), fields.count("minRamCount"), wall_s=fields.count("maxWalltime")),
        batch_id=fields.text("batchID") or None,
        # Nobody has this secret: its pilots come by an identity of their own.
        secret_hash=hash_secret(new_secret()),
        valid_s=VALID_S,
        reason=next((words for name in _REASONS if (words := fields.text(name, 1000))), ""),
        host=fields.text("nodeID") or fields.text("computingElement"),
        log_url=next((url for name in _LOGS if (url := _url(fields.text(name, 2048)))), None),
    )


def _url(text: str) -> str | None:
    try:
        return msgspec.convert(text, LogUrl)
    except msgspec.ValidationError:
        return None


def worker_statistics(dispatcher: Dispatcher, call: Call) -> Raw:
    """``harvester/get_worker_statistics``: its own workers, by queue, kind of jobs and state."""
    fields_of(call)
    harvester = call.caller.name
    with dispatcher.database.read() as connection:
        rows = harvesters.live_workers(connection, harvester)
    found: dict[str, Any] = {}
    for queue, shape, state, n in rows:
        of_queue = found.setdefault(name_of(dispatcher, queue), {harvester: {MANAGED: {}}})
        of_kind = of_queue[harvester][MANAGED].setdefault(kind_of(shape.cores, shape.memory_mb), {})
        of_kind[state.value] = of_kind.get(state.value, 0) + n
    return done(found)


def current_worker_id(dispatcher: Dispatcher, call: Call) -> Raw:
    """``harvester/get_current_worker_id``: the highest number of a worker that it told of."""
    fields_of(call)
    harvester = call.caller.name
    with dispatcher.database.read() as connection:
        mark = harvesters.last_mark(connection, harvester, mark_beginning(harvester))
    number = worker_of(harvester, mark) if mark is not None else None
    return done(int(number) if number is not None and re.fullmatch(r"[0-9]+", number) else 0)


def report_worker_statistics(dispatcher: Dispatcher, call: Call) -> Raw:
    """``harvester/report_worker_statistics``: looked at, not kept: the workers themselves are counted."""
    fields = fields_of(call)
    queue_of(dispatcher, fields.text("panda_queue"))
    said = fields.raw("statistics")
    if isinstance(said, str):
        json_of(said.encode("utf-8", "replace"))
    return done()
