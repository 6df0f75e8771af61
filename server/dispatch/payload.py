"""What a stage's payload is given beside its files: filled-in placeholders, the sandbox, secrets."""

from __future__ import annotations

from common.placeholders import fill_in
from common.wire import AssignedSandbox, Assignment, StageSpec
from server.dispatch.context import Dispatcher
from server.dispatch.secrets import open_secrets
from server.engine.placeholders import has_placeholders
from server.store import sandboxes


def complete(dispatcher: Dispatcher, spec: StageSpec, owner: str, assignment: Assignment) -> Assignment:
    """The assignment with all that. A stage that asks for none of it costs nothing."""
    if has_placeholders(spec):
        fill_in(assignment)
    if spec.sandbox is not None:
        with dispatcher.database.read() as connection:
            row = sandboxes.get(connection, spec.sandbox)
        # One that is not there any more fails the job at once with words, as its size cannot be right.
        assignment.sandbox = AssignedSandbox(spec.sandbox, row.size if row is not None else 0)
    if spec.secrets:
        assignment.secrets = open_secrets(dispatcher, owner, spec.secrets)
    return assignment
