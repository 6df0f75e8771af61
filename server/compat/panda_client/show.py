"""Looking at tasks: what ``pbook show`` and the client's API ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.states import UnitState
from common.wire import OutputRole
from server.api.routing import Call, Raw
from server.compat.panda_client.answers import Declined, done, moment
from server.compat.panda_client.asked import Asked, asked, json_field
from server.compat.panda_client.states import SUPER_STATUS, TASK_STATUS, states_of
from server.dispatch import rights
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid, NotFound
from server.engine.access import Caller
from server.store import outputs, panda_client, units
from server.store.database import Connection
from server.store.panda_client import PandaTask, Wanted

MOST_TASKS = 1000
MOST_FILES = 10_000
FILTERS = ("jediTaskID", "reqID", "status", "superStatus", "taskName", "userName")
_FILE_STATUS: Mapping[UnitState, str] = {
    UnitState.PENDING: "pending",
    UnitState.READY: "ready",
    UnitState.RESERVED: "running",
    UnitState.OUTPUTTING: "running",
    UnitState.DONE: "finished",
    UnitState.FAILED: "failed",
    UnitState.LOST: "lost",
    UnitState.CANCELLED: "cancelled",
}


def existing(dispatcher: Dispatcher, caller: Caller, task_id: int) -> PandaTask:
    """A task that the caller may see.

    Raises:
        NotFound: there is none.
    """
    rights.check_sight(dispatcher, caller, {"task_id": str(task_id)}, {})
    with dispatcher.database.read() as connection:
        found = panda_client.get(connection, task_id)
    if found is None:
        raise NotFound(f"there is no task {task_id}")
    return found


def _asked_task(dispatcher: Dispatcher, call: Call) -> PandaTask:
    return existing(dispatcher, call.caller, asked(call).number("task_id"))


def status(dispatcher: Dispatcher, call: Call) -> Raw:
    """The state of a task, in one word."""
    return done(TASK_STATUS[_asked_task(dispatcher, call).state])


def parameters(dispatcher: Dispatcher, call: Call) -> Raw:
    """The task parameters as they were sent."""
    found = _asked_task(dispatcher, call)
    if found.parameters is None:
        raise Declined(f"task {found.task_id} was not submitted by PanDA's client: see pilotage show")
    return done(json.loads(found.parameters))


def details(dispatcher: Dispatcher, call: Call) -> Raw:
    """A task with its datasets and, if asked for, its parameters and its jobs."""
    wanted = asked(call)
    found = existing(dispatcher, call.caller, wanted.number("task_id"))
    told = told_of(dispatcher, [found])[0]
    given = json.loads(found.parameters) if found.parameters is not None else {}
    told["inDS"] = given.get("dsForIN") or ""
    told["outDS"] = ",".join(_output_datasets(given))
    told["statistics"] = told["status"]
    if wanted.flag("include_parameters"):
        told["taskParams"] = given
    return done(told)


def detailed(dispatcher: Dispatcher, call: Call) -> Raw:
    """A task with all counts."""
    return done(told_of(dispatcher, [_asked_task(dispatcher, call)])[0])


def parent(dispatcher: Dispatcher, call: Call) -> Raw:
    """No task has a parent of another workflow."""
    found = _asked_task(dispatcher, call)
    raise Declined(f"task {found.task_id} has no parent")


def listed(dispatcher: Dispatcher, call: Call) -> Raw:
    """Tasks with filters, the newest first."""
    fields = asked(call)
    limit = fields.maybe_number("n_tasks")
    wanted = _wanted(call.caller, fields, json_field(fields.text("filters"), "filters"), limit)
    return done(told_of(dispatcher, _found(dispatcher, call.caller, wanted)))


def modified(dispatcher: Dispatcher, call: Call) -> Raw:
    """The same without filters."""
    fields = asked(call)
    wanted = _wanted(call.caller, fields, {}, None, fields.maybe_number("min_task_id") or 0)
    return done(told_of(dispatcher, _found(dispatcher, call.caller, wanted)))


def _found(dispatcher: Dispatcher, caller: Caller, wanted: Wanted | None) -> list[PandaTask]:
    if wanted is None:
        return []
    with dispatcher.database.read() as connection:
        return panda_client.find(connection, wanted, rights.sight_of(dispatcher, caller))


def _wanted(
    caller: Caller, fields: Asked, filters: Mapping[str, Any], limit: int | None, after: int = 0
) -> Wanted | None:
    """What the filters stand for; None: nothing can be there. Raises Invalid."""
    unknown = sorted(set(filters) - set(FILTERS))
    if unknown:
        raise Invalid(f"there is no filter {unknown[0][:60]!r}", [("filters", f"known: {', '.join(FILTERS)}")])
    texts = {name: str(value) for name, value in filters.items() if value is not None}
    ids = [Asked(texts).number(name) for name in ("jediTaskID", "reqID") if name in texts]
    states = [states_of(texts[name], table) for name, table in _TABLES.items() if name in texts]
    common = set(states[0]).intersection(*states) if states else set()
    if (states and not common) or len(set(ids)) > 1 or any("\0" in text for text in texts.values()):
        return None
    name = texts.get("taskName")
    return Wanted(
        # Whoever names a task may look at anybody's that is in sight, as PanDA has it.
        owner=texts.get("userName") or (None if ids or name else caller.name),
        task_ids=ids[:1],
        names=[] if name is None else sorted({name, name.rstrip("/"), f"{name.rstrip('/')}/"}),
        states=sorted(common),
        since=fields.moment("since"),
        after=after,
        limit=max(1, min(limit or MOST_TASKS, MOST_TASKS)),
    )


_TABLES = {"status": TASK_STATUS, "superStatus": SUPER_STATUS}


def told_of(dispatcher: Dispatcher, tasks: Sequence[PandaTask]) -> list[dict[str, Any]]:
    """Tasks as the client is told of them. A request is known by its task's number, too."""
    with dispatcher.database.read() as connection:
        counts = units.counts(connection, [task.task_id for task in tasks])
    now = dispatcher.now()
    return [_told(task, counts.get(task.task_id, {}), now) for task in tasks]


def _told(task: PandaTask, counts: Mapping[UnitState, int], now: float) -> dict[str, Any]:
    total = sum(counts.values())
    finished = counts.get(UnitState.DONE, 0)
    failed = sum(counts.get(state, 0) for state in (UnitState.FAILED, UnitState.LOST, UnitState.CANCELLED))
    return {
        "jediTaskID": task.task_id,
        "reqID": task.task_id,
        "taskName": task.name,
        "userName": task.owner,
        "workingGroup": task.group,
        "status": TASK_STATUS[task.state],
        "superStatus": SUPER_STATUS[task.state],
        "errorDialog": task.reason,
        "taskPriority": task.priority,
        "creationDate": moment(task.created),
        "modificationTime": moment(task.ended if task.ended is not None else now),
        "endTime": moment(task.ended),
        "nFiles": total,
        "nFilesFinished": finished,
        "nFilesFailed": failed,
        "pctFinished": 100 * finished // total if total else 0,
        "pctFailed": 100 * failed // total if total else 0,
    }


def _output_datasets(given: Mapping[str, Any]) -> list[str]:
    items = given.get("jobParameters")
    found = items if isinstance(items, list) else []
    return [
        str(item.get("dataset"))
        for item in found
        if isinstance(item, dict) and item.get("param_type") == "output" and item.get("dataset")
    ]


def datasets_and_files(dispatcher: Dispatcher, call: Call) -> Raw:
    """The files of a task, as datasets of a type: input (or what counts as one), output, log."""
    fields = asked(call)
    found = existing(dispatcher, call.caller, fields.number("task_id"))
    types = fields.fields.get("dataset_types")
    words = types if isinstance(types, list) else str(types or "input,pseudo_input").split(",")
    wanted = {str(word) for word in words}
    told = []
    with dispatcher.database.read() as connection:
        if wanted & {"input", "pseudo_input"}:
            told.append(_inputs(connection, found))
        for word, role in (("output", OutputRole.OUTPUT), ("log", OutputRole.LOG)):
            if word in wanted:
                told.append(_outputs(dispatcher, connection, found, word, role))
    return done(told)


def _inputs(connection: Connection, task: PandaTask) -> dict[str, Any]:
    found = list(units.page(connection, task.task_id, state=None, after=0, limit=MOST_FILES))
    pseudo = all(unit.did is None for unit in found)
    files = [
        {
            "file_id": unit.id,
            "lfn": unit.did.partition(":")[2] if unit.did else str(unit.seq),
            "scope": unit.did.partition(":")[0] if unit.did else None,
            "status": _FILE_STATUS[unit.state],
            "n_events": unit.events,
            "attempt_nr": unit.payload_failures,
        }
        for unit in found
    ]
    given = json.loads(task.parameters) if task.parameters is not None else {}
    name = "pseudo_dataset" if pseudo else given.get("dsForIN") or task.name
    kind = "pseudo_input" if pseudo else "input"
    return {"dataset": {"name": name, "id": task.task_id, "type": kind}, "files": files}


def _outputs(
    dispatcher: Dispatcher, connection: Connection, task: PandaTask, word: str, role: OutputRole
) -> dict[str, Any]:
    world = dispatcher.looks.get().world
    found, _ = outputs.page(connection, task.task_id, world, role=role.value, after=0, limit=MOST_FILES)
    files = [
        {
            "lfn": each.did.partition(":")[2],
            "scope": each.did.partition(":")[0],
            "status": "finished",
            "fsize": each.size,
            "checksum": each.checksum,
            "n_events": each.events,
            "panda_id": each.job_id,
        }
        for each in found
    ]
    return {"dataset": {"name": task.name, "id": task.task_id, "type": word}, "files": files}
