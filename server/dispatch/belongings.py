"""What a workflow names that its owner handed in before, or that has to be remembered beside it."""

from __future__ import annotations

from collections.abc import Mapping

from common.wire import WorkflowRequest
from server.dispatch.context import Dispatcher
from server.engine.notices import notify_problem
from server.engine.workflows import Problem
from server.store import notices, sandboxes, secrets
from server.store.database import Connection


def belongings_problems(
    dispatcher: Dispatcher, connection: Connection, owner: str, request: WorkflowRequest
) -> list[Problem]:
    """Sandboxes and secrets that are not there, and people who cannot be told."""
    problems = []
    hashes = sorted({stage.sandbox for stage in request.stages if stage.sandbox is not None})
    gone = sandboxes.missing(connection, hashes) if hashes else set()
    names = sorted({name for stage in request.stages for name in stage.secrets})
    known = set(secrets.sealed(connection, owner, names)) if names else set()
    for index, stage in enumerate(request.stages):
        if stage.sandbox in gone:
            words = "there is no such sandbox (any more): upload it with pilotage sandbox upload"
            problems.append(Problem(f"$.stages[{index}].sandbox", words))
        problems += [
            Problem(f"$.stages[{index}].secrets", f"{owner} has no secret {name!r}: set it with pilotage secret set")
            for name in stage.secrets
            if name not in known
        ]
    for index, spec in enumerate(request.notify):
        words = notify_problem(spec, dispatcher.config.notices)
        if words:
            problems.append(Problem(f"$.notify[{index}]", words))
    return problems


def keep_belongings(
    connection: Connection, workflow_id: int, tasks: Mapping[str, int], request: WorkflowRequest, now: float
) -> None:
    """Remember which task unpacks which sandbox, and whom to tell. ``tasks``: ids by stage."""
    uses = [(tasks[stage.name], stage.sandbox) for stage in request.stages if stage.sandbox is not None]
    sandboxes.use(connection, uses, now)
    notices.subscribe(connection, workflow_id, request.notify)
