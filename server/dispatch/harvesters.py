"""Commands for harvesters: an admin asks, the harvester fetches them with its next cycle and says what came of each."""

from __future__ import annotations

import msgspec

from common.wire import (
    HarvesterCommandKind,
    HarvesterCommandRequest,
    HarvesterCommandResult,
    HarvesterCommandView,
    Name,
)
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, NotFound, Unprocessable
from server.store import harvesters

KEPT_S = 7 * 86400.0
"""How long commands that are over are kept."""
_K = HarvesterCommandKind
_TAKES = {
    "queue": (_K.CANCEL, _K.DRAIN, _K.UNDRAIN, _K.SUBMIT),
    "marks": (_K.CANCEL, _K.FETCH_LOGS),
    "waiting_only": (_K.CANCEL,),
}


def ask(dispatcher: Dispatcher, harvester: str, request: HarvesterCommandRequest, who: str) -> HarvesterCommandView:
    """Write down a command. The same request again gets the same command.

    Raises:
        NotFound: no harvester can have such a name.
        Unprocessable: the command does not make sense.
        Conflict: another command was made by this request id.
    """
    try:
        msgspec.convert(harvester, Name)
    except msgspec.ValidationError as error:
        raise NotFound(f"{harvester!r} is no harvester's name: {error}") from error
    _check(dispatcher, request)
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        earlier = harvesters.requested(connection, harvester, request.request_id, now)
        if earlier is None:
            return harvesters.add(connection, harvester, request, who, now)
        if earlier[0] != request:
            raise Conflict(f"request_id {request.request_id!r} was for another command: give a new one")
        return earlier[1]


def _check(dispatcher: Dispatcher, request: HarvesterCommandRequest) -> None:
    kind = request.kind
    for name, kinds in _TAKES.items():
        if getattr(request, name) and kind not in kinds:
            raise Unprocessable(f"{kind.value} takes no {name}", [(f"$.{name}", "leave it out")])
    if request.workers != 1 and kind is not _K.SUBMIT:
        raise Unprocessable(f"{kind.value} takes no workers", [("$.workers", "leave it out")])
    if kind is _K.SUBMIT and request.queue is None:
        raise Unprocessable("submit needs a queue", [("$.queue", "name the queue that the test workers go to")])
    if kind is _K.FETCH_LOGS and not request.marks:
        raise Unprocessable("fetch_logs needs marks", [("$.marks", "name the workers")])
    if kind is _K.CANCEL and (request.queue is None) == (not request.marks):
        raise Unprocessable("cancel needs a queue or marks", [("$.queue", "name a queue, or the workers in marks")])
    queues = dispatcher.looks.get().world.queues
    if request.queue is not None and request.queue not in queues:
        known = ", ".join(sorted(queues)) or "none yet"
        raise Unprocessable(f"there is no queue {request.queue!r}", [("$.queue", f"known: {known}")])


def done(dispatcher: Dispatcher, harvester: str, command_id: int, result: HarvesterCommandResult) -> None:
    """Write down what came of a command; a repeat changes nothing.

    Raises:
        NotFound: this harvester has no such command.
    """
    with dispatcher.database.write() as connection:
        if not harvesters.end(connection, harvester, command_id, result, dispatcher.now()):
            raise NotFound(f"harvester {harvester!r} has no command {command_id}")


def drop_old(dispatcher: Dispatcher) -> int:
    """Take away commands that have long been over."""
    with dispatcher.database.write() as connection:
        return harvesters.drop_old(connection, dispatcher.now() - KEPT_S)
