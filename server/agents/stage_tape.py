"""Stage tape: have files brought back from tape in bulk, see how far they are, let go of those that were used.

The tape systems are asked outside of any transaction. Should the server die between a request and writing it down, the
files are asked for again: the first request's pins end by themselves.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

from common.states import TaskState
from server.config import Knobs
from server.dispatch.context import Dispatcher
from server.stagers.base import Recall, Recalled, Stager, StagerError
from server.store import events, recalls, workflows
from server.store.database import Connection
from server.store.recalls import RecallRow, RecallState
from server.store.workflows import TaskRow

logger = logging.getLogger(__name__)

BULK = 500
"""Files of one request."""
REQUESTS = 20
"""Requests that one run makes at the most."""
RETRY_S = 60.0
"""A tape system that did not answer is asked again after so long."""


def stage_tape(dispatcher: Dispatcher) -> int:
    """Ask for what is wanted and look at what was asked for; how many units moved on."""
    handled = _request(dispatcher) + _poll(dispatcher)
    if handled:
        dispatcher.changed()
    return handled


def _request(dispatcher: Dispatcher) -> int:
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        rows = recalls.due(connection, RecallState.WANTED, now, BULK * REQUESTS)
    handled = 0
    for storage, wanted in sorted(_by_storage(rows).items()):
        for start in range(0, len(wanted), BULK):
            handled += _request_bulk(dispatcher, storage, wanted[start : start + BULK])
    return handled


def _request_bulk(dispatcher: Dispatcher, storage: str, rows: Sequence[RecallRow]) -> int:
    """One request; several units may be of one file."""
    knobs = dispatcher.looks.get().knobs
    ids = [row.unit_id for row in rows]
    paths = sorted({row.path for row in rows})
    try:
        name = _stager(dispatcher, storage).request(paths)
    except StagerError as error:
        _postpone(dispatcher, ids, storage, error)
        return 0
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        recalls.asked(connection, ids, name, now, now + knobs.recall_poll_s)
        detail = {"storage": storage, "files": len(paths), "request": name}
        events.add(connection, events.Event(now, "RECALL_ASKED", "storage", storage, detail=detail))
    return len(ids)


def _postpone(dispatcher: Dispatcher, unit_ids: Sequence[int], storage: str, error: StagerError) -> None:
    logger.warning("storage %s: its tape system does not answer: %s", storage, error)
    with dispatcher.database.write() as connection:
        recalls.later(connection, unit_ids, dispatcher.now() + RETRY_S, f"storage {storage}: {error}")


def _stager(dispatcher: Dispatcher, storage: str) -> Stager:
    spec = dispatcher.looks.get().world.storages.get(storage)
    stager = dispatcher.plugins.stagers.get(spec.stager) if spec is not None and spec.stager is not None else None
    if stager is None:
        raise StagerError("the server's configuration has no stager for it any more")
    return stager


def _by_storage(rows: Sequence[RecallRow]) -> dict[str, list[RecallRow]]:
    found: defaultdict[str, list[RecallRow]] = defaultdict(list)
    for row in rows:
        found[row.storage].append(row)
    return found


def _poll(dispatcher: Dispatcher) -> int:
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        due = recalls.due(connection, RecallState.ASKED, now, BULK * REQUESTS)
        names = sorted({(row.storage, row.request) for row in due})[:REQUESTS]
        rows = recalls.of_requests(connection, names)
    handled = 0
    for storage, name in names:
        mine = [row for row in rows if (row.storage, row.request) == (storage, name)]
        handled += _poll_one(dispatcher, storage, name, mine)
    return handled


def _poll_one(dispatcher: Dispatcher, storage: str, name: str, rows: Sequence[RecallRow]) -> int:
    knobs = dispatcher.looks.get().knobs
    try:
        told = _stager(dispatcher, storage).poll(name, sorted({row.path for row in rows}))
    except StagerError as error:
        _postpone(dispatcher, [row.unit_id for row in rows], storage, error)
        return 0
    now = dispatcher.now()
    here, failed, waiting = _sorted(rows, told, now, knobs)
    with dispatcher.database.write() as connection:
        # Tasks before units, as everybody else who holds both.
        tasks = [workflows.get_task(connection, each, lock=True) for each in sorted({row.task_id for row in here})]
        recalls.later(connection, [row.unit_id for row in waiting], now + knobs.recall_poll_s)
        moved = recalls.online(connection, [row.unit_id for row in here], now)
        for reason, mine in sorted(failed.items()):
            _give_up(connection, storage, reason, mine, knobs, now)
        for task in tasks:
            if task is not None and moved.get(task.id):
                _wake(connection, task, now)
    return len(here) + sum(len(mine) for mine in failed.values())


def _sorted(
    rows: Sequence[RecallRow], told: dict[str, Recalled], now: float, knobs: Knobs
) -> tuple[list[RecallRow], dict[str, list[RecallRow]], list[RecallRow]]:
    """Those on disk, those given up by reason, those that still wait. A file that takes too long is given up, too."""
    here: list[RecallRow] = []
    failed: defaultdict[str, list[RecallRow]] = defaultdict(list)
    waiting: list[RecallRow] = []
    for row in rows:
        found = told.get(row.path, Recalled(Recall.WAITING))
        if found.state == Recall.ONLINE:
            here.append(row)
        elif found.state == Recall.FAILED:
            failed[found.reason or "the tape system gave it up"].append(row)
        elif now - row.since > knobs.recall_timeout_s:
            failed[f"not back from tape after {knobs.recall_timeout_s:.0f} s"].append(row)
        else:
            waiting.append(row)
    return here, dict(failed), waiting


def _give_up(
    connection: Connection, storage: str, reason: str, rows: Sequence[RecallRow], knobs: Knobs, now: float
) -> None:
    """Ask once more for what may still come back; the units of the rest are lost."""
    again = [row for row in rows if row.failures + 1 < knobs.recall_attempts]
    words = f"storage {storage}: {reason}"
    if again:
        recalls.again(connection, again, words, now + RETRY_S)
    lost = [row for row in rows if row.failures + 1 >= knobs.recall_attempts]
    if lost:
        recalls.give_up(connection, [row.unit_id for row in lost], f"it could not be recalled from tape: {words}", now)
    for task_id in sorted({row.task_id for row in rows}):
        mine = [row for row in rows if row.task_id == task_id]
        detail = {"storage": storage, "reason": reason[:500], "files": len(mine), "path": mine[0].path}
        events.add(connection, events.Event(now, "RECALL_FAILED", "storage", storage, task_id, detail=detail))


def _wake(connection: Connection, task: TaskRow, now: float) -> None:
    """The first files of a task are there: it need not wait any more, but for the end of other stages."""
    if task.state == TaskState.PENDING and not any(each.stage for each in task.spec.secondary_inputs):
        workflows.move(connection, task, TaskState.READY, now)


def release_tape(dispatcher: Dispatcher) -> int:
    """Let go of the files of units that are over; how many."""
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        rows = recalls.over(connection, now, BULK)
    released: list[int] = []
    for storage, mine in sorted(_by_storage(rows).items()):
        for name in sorted({row.request for row in mine}):
            released += _release_one(dispatcher, storage, name, [row for row in mine if row.request == name])
    if released:
        with dispatcher.database.write() as connection:
            recalls.end(connection, released)
    return len(released)


def _release_one(dispatcher: Dispatcher, storage: str, name: str, rows: Sequence[RecallRow]) -> list[int]:
    ids = [row.unit_id for row in rows]
    if not name:
        return ids  # it was never asked for
    try:
        stager = _stager(dispatcher, storage)
        with dispatcher.database.read() as connection:
            used = recalls.still_used(connection, storage, {row.path for row in rows}, ids)
        paths = sorted({row.path for row in rows} - used)
        if paths:
            stager.release(name, paths)
    except StagerError as error:
        _postpone(dispatcher, ids, storage, error)
        return []
    return ids
