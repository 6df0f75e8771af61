"""The verbs of PanDA's pilots."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from common.errors import PilotageError
from common.wire import PeekKind, PeekRequest
from server.api.routing import Call, Handler, Raw
from server.compat.face import as_json
from server.compat.panda import catalogue
from server.compat.panda.asking import GETJOB, asking_of, queue_of
from server.compat.panda.fields import Fields, id_of
from server.compat.panda.jobs import Told, job_of, seal, texts
from server.compat.panda.program import Sandbox, program
from server.compat.panda.reporting import report
from server.compat.panda.resources import RESOURCE_TYPES
from server.compat.panda.words import STATUS_OF
from server.dispatch import foreign, peeks
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, NotFound
from server.dispatch.foreign import Asking, Given, Nothing
from server.dispatch.preassigned import described
from server.store import foreign as store
from server.store import jobs, outputs, sandboxes

NO_JOB = 20
FAILED = 30
MOST_IDS = 1000
MOST_TRIES = 5
"""How many jobs are claimed for one request, if they turn out to be none that its pilot can be told."""
HARMLESS = frozenset({"updateWorkerPilotStatus", "isAlive"})
"""Verbs that there is nothing to do for, answered as if it was done: what a worker does, its harvester says."""
NEVER = frozenset({"getProxy", "getKeyPair", "get_access_token", "getTokenKey", "get_token_key", "getVomsAttr"})
"""Verbs that would give a credential: they never give anything."""


class NotGiven(Forbidden):
    """What was asked for is a credential."""

    type = "pilotage:not-given"


def of_vo(handler: Handler) -> Handler:
    """The same for callers that name this server's virtual organisation, if it has one; others raise Forbidden."""

    def checked(dispatcher: Dispatcher, call: Call) -> Any:
        vo = dispatcher.config.compat.panda.vo
        if vo and call.header("Origin") != vo:
            raise Forbidden(f"this server is of {vo}: name it in the header Origin")
        return handler(dispatcher, call)

    return checked


def address_of(dispatcher: Dispatcher, call: Call) -> str:
    """Where the caller reaches this server."""
    config = dispatcher.config
    if config.compat.panda.url:
        return config.compat.panda.url.rstrip("/")
    return f"{'https' if config.tls_cert else 'http'}://{call.header('Host') or 'localhost'}"


def fetch(dispatcher: Dispatcher, call: Call, asking: Asking, label: str) -> dict[str, Any] | Nothing:
    """One job in PanDA's words, or why there is none. A job that cannot be told keeps nobody from the next one."""
    found = _fetch(dispatcher, call, asking, label)
    for _ in range(MOST_TRIES - 1):
        if not (isinstance(found, Nothing) and found.again):
            break
        last, found = found, _fetch(dispatcher, call, asking, label)
        if isinstance(found, Nothing) and not found.again:
            return last  # it says more
    return found


def _fetch(dispatcher: Dispatcher, call: Call, asking: Asking, label: str) -> dict[str, Any] | Nothing:
    given = foreign.fetch(dispatcher, call.caller.name, asking)
    if not isinstance(given, Given):
        return given
    try:
        return job_of(dispatcher, given, Told(address_of(dispatcher, call), label))
    except PilotageError as error:
        return foreign.fail(dispatcher, given, error.code, error.detail)


def get_job(dispatcher: Dispatcher, call: Call) -> Raw:
    """``getJob``."""
    fields = Fields(call.body.json_or_form())
    asking = asking_of(dispatcher, fields, GETJOB, call.header("User-Agent") or "")
    found = fetch(dispatcher, call, asking, fields.text("prodSourceLabel"))
    if isinstance(found, Nothing):
        return as_json({"StatusCode": NO_JOB, "errorDialog": found.words[:1000]})
    return as_json({"StatusCode": 0} | texts(found))


def update_job(dispatcher: Dispatcher, call: Call) -> Raw:
    """``updateJob``."""
    fields = Fields(call.body.json_or_form())
    command = report(
        dispatcher, call.caller.name, fields.id("jobId"), fields.text("pilotID"), fields.text("state"), fields
    )
    return as_json({"StatusCode": 0, "command": command or "NULL", "pilotSecrets": {}})


def get_status(dispatcher: Dispatcher, call: Call) -> Raw:
    """``getStatus``: the states of jobs, of those that the caller fetched."""
    said = Fields(call.body.json_or_form()).text("ids", 20 * MOST_IDS)
    found = [status_of(dispatcher, call.caller.name, each) for each in said.split(",")[:MOST_IDS]]
    return as_json({"StatusCode": 0, "status": ",".join(found), "attemptNr": ",".join("0" for _ in found)})


def status_of(dispatcher: Dispatcher, caller: str, text: object) -> str:
    """The state of a job that a caller fetched."""
    job_id = id_of(text)
    if job_id is None:
        return "notfound"
    with dispatcher.database.read() as connection:
        mine = store.get(connection, job_id)
        view = jobs.view(connection, job_id) if mine is not None and mine.caller == caller else None
    return "notfound" if view is None else STATUS_OF[view.state]


def get_resource_types(dispatcher: Dispatcher, call: Call) -> Raw:
    """``getResourceTypes``."""
    return as_json({"StatusCode": 0, "ResourceTypes": [each.told() for each in RESOURCE_TYPES.values()]})


def set_debug_mode(dispatcher: Dispatcher, call: Call) -> Raw:
    """``setDebugMode``: a person wants to see the end of a job's output. Turned off, there is nothing to do."""
    fields = Fields(call.body.json_or_form())
    job_id = fields.id("pandaID")
    if str(fields.raw("modeOn")).lower() in ("true", "1"):
        peeks.ask(dispatcher, call.caller, job_id, PeekRequest(kind=PeekKind.TAIL, path="stdout"))
    return as_json({"StatusCode": 0})


def other(dispatcher: Dispatcher, call: Call) -> Raw:
    """Every other verb. Raises NotGiven for what would give a credential, NotFound for what nobody knows."""
    verb = call.path["verb"]
    if verb in NEVER:
        raise NotGiven(f"{verb}: this server gives no credentials to other systems' pilots")
    if verb not in HARMLESS:
        raise NotFound(f"there is no verb {verb!r} here")
    return as_json({"StatusCode": 0})


def queue_data(dispatcher: Dispatcher, call: Call) -> Raw:
    """A queue's data, for anybody, as in PanDA's own cache."""
    name = call.path["queue"]
    return as_json(catalogue.queue_data(dispatcher.looks.get().world, queue_of(dispatcher, name), name))


def storage_data(dispatcher: Dispatcher, call: Call) -> Raw:
    """All storages, or those in ``ddmendpoint``."""
    wanted = call.query.get("ddmendpoint")
    names = wanted.split(",") if wanted else None
    return as_json(catalogue.storage_data(dispatcher.looks.get().world, names))


def serve_program(dispatcher: Dispatcher, call: Call) -> Raw:
    """The program of a job that runs, for whoever was told its address."""
    job_id = call.number("job_id")
    if not hmac.compare_digest(call.path["seal"].encode(), seal(dispatcher, job_id).encode()):
        raise NotFound("there is no such program")
    look = dispatcher.looks.get()
    with dispatcher.database.read() as connection:
        row = jobs.get(connection, job_id)
        mine = store.get(connection, job_id)
        files = outputs.of_jobs(connection, [job_id]) if mine is not None else []
    queue = None if row is None else look.world.queues.get(row.queue)
    found = described(dispatcher, look, row.site, queue, [job_id]) if row is not None and mine is not None else []
    if not found:
        raise NotFound("there is no such program, or its job is over")
    made = found[0].assignment
    renamed = {each.name: each.did.partition(":")[2] for each in files if each.role == "output"}
    sandbox = None
    if made.sandbox is not None:
        sandbox = Sandbox(made.sandbox.size, sandboxes.pieces(dispatcher.database.read, made.sandbox.sha256))
    return Raw(program(made, renamed, sandbox), "text/x-shellscript")


VERBS: Mapping[str, Handler] = {
    "getJob": get_job,
    "updateJob": update_job,
    "getStatus": get_status,
    "getResourceTypes": get_resource_types,
}
