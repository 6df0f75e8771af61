"""What a Harvester is to do, and what it has to say to people."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from common.wire import HarvesterCommandKind, HarvesterCommandResult, HarvesterCommandView
from server.api.routing import Call, Raw
from server.compat.panda.asking import name_of, worker_of
from server.compat.panda.fields import Fields, id_of
from server.compat.panda.jobs import MANAGED
from server.compat.panda_harvester.answers import done, fields_of, items_of, said_no
from server.dispatch import harvesters
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.store import events
from server.store import harvesters as store

MOST_COMMANDS = 100
MOST_KILLS = 1000
MOST_DIALOGS = 1000
SET_WORKERS, KILL = "SET_N_WORKERS_JOBTYPE", "SYNC_WORKERS_KILL"
_K = HarvesterCommandKind


def acquire_commands(dispatcher: Dispatcher, call: Call) -> Raw:
    """``harvester/acquire_commands``: until each is acknowledged. What a Harvester of PanDA cannot do has failed at once."""
    fields = fields_of(call)
    most = min(fields.count("n_commands") or 1, MOST_COMMANDS)
    name = call.caller.name
    with dispatcher.database.read() as connection:
        rows = store.page(connection, name, is_open=True, after=0, limit=MOST_COMMANDS, now=dispatcher.now())
    found: list[dict[str, Any]] = []
    for row in rows:
        command = _command(dispatcher, row)
        if command is None:
            words = f"a Harvester of PanDA cannot be told to {row.kind}"
            harvesters.done(dispatcher, name, row.command_id, HarvesterCommandResult(ok=False, detail=words))
        elif len(found) < most:
            found.append(command)
    return done(found)


def _command(dispatcher: Dispatcher, row: HarvesterCommandView) -> dict[str, Any] | None:
    """A command of ours in its words, if it has any."""
    params: Any
    if row.kind == _K.SUBMIT and row.queue is not None:
        name, params = SET_WORKERS, {MANAGED: {"SCORE": row.workers}}
    elif row.kind == _K.CANCEL:
        name, params = KILL, _numbers(dispatcher, row)
    else:
        return None
    return {
        "command_id": row.command_id,
        "command": name if row.queue is None else f"{name}:{name_of(dispatcher, row.queue)}",
        "params": params,
        "ack_requested": 1,
        "creation_date": _moment(row.asked),
    }


def _numbers(dispatcher: Dispatcher, row: HarvesterCommandView) -> list[int | str]:
    """The workers that are to be ended, by the numbers that they have there."""
    marks = row.marks
    if row.queue is not None:
        with dispatcher.database.read() as connection:
            marks = store.live_marks(connection, row.harvester, row.queue, row.waiting_only, MOST_KILLS)
    numbers = [worker_of(row.harvester, mark) for mark in marks]
    return [int(each) if each.isascii() and each.isdigit() else each for each in numbers if each is not None]


def _moment(time: float) -> str:
    return "datetime/" + datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")


def acknowledge_commands(dispatcher: Dispatcher, call: Call) -> Raw:
    """``harvester/acknowledge_commands``: these were done. Those that are not its own are named; the others are taken."""
    fields = fields_of(call)
    name = next((each for each in ("command_ids", "commands", "ids") if each in fields), "command_ids")
    wrong = []
    for each in items_of(fields, name, MOST_KILLS):
        command_id = id_of(each)
        try:
            if command_id is None:
                raise NotFound("no number")
            harvesters.done(dispatcher, call.caller.name, command_id, HarvesterCommandResult(ok=True))
        except NotFound:
            wrong.append(str(each)[:20])
    if wrong:
        return said_no(f"no commands of this harvester: {', '.join(wrong[:20])}")
    return done()


def add_dialogs(dispatcher: Dispatcher, call: Call) -> Raw:
    """``harvester/add_dialogs``: words for people, kept as events."""
    items = items_of(fields_of(call), "dialogs", MOST_DIALOGS)
    now, harvester = dispatcher.now(), call.caller.name
    told = [_dialog(harvester, Fields(each), now) for each in items if isinstance(each, dict)]
    if told:
        with dispatcher.database.write(durable=False) as connection:
            events.add(connection, *told)
    return done()


def _dialog(harvester: str, fields: Fields, now: float) -> events.Event:
    detail: dict[str, object] = {
        "level": fields.text("messageLevel"),
        "message": fields.text("dialogMessage", 500),
        "module": fields.text("moduleName"),
        "about": fields.text("identifier"),
    }
    return events.Event(now, "HARVESTER_DIALOG", "harvester", harvester, detail=detail)


def heard(_: Dispatcher, call: Call) -> Raw:
    """``harvester/heartbeat`` and ``harvester/update_service_metrics``: nothing follows from them."""
    fields_of(call)
    return done()
