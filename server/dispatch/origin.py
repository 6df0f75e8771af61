"""Where an output comes from, told from the records, or from the live rows as long as it is not written down."""

from __future__ import annotations

from typing import Any

from common.wire import ProvenanceView
from server.dispatch.books import document_of
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.engine.naming import parse_output_did
from server.store import outputs, provenance
from server.store.access import Sight
from server.store.codes import OutputState
from server.store.database import Connection


def provenance_of(dispatcher: Dispatcher, did: str, sight: Sight | None) -> ProvenanceView:
    """All that is known of where an output comes from.

    Raises:
        NotFound: there is no such output, or it is not visible (yet, or to this caller).
    """
    named = parse_output_did(did)
    if named is not None:
        with dispatcher.database.read() as connection:
            found = provenance.recorded(connection, named.job_id) or _live(connection, named.job_id)
        if found is not None:
            job, task = found
            output = next((each for each in job["outputs"] if each["did"] == did), None)
            if output is not None and _seen(sight, task):
                job = {name: value for name, value in job.items() if name != "outputs"}
                return ProvenanceView(did=did, output=output, job=job, task=task)
    raise NotFound(f"there is no output {did!r}")


def _seen(sight: Sight | None, task: dict[str, Any]) -> bool:
    return sight is None or task["owner"] == sight.owner or task["group"] in sight.groups


def _live(connection: Connection, job_id: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    found = provenance.jobs(connection, [job_id]).get(job_id)
    if found is None:
        return None
    ended, place = found
    task = provenance.describe_task(connection, ended.task_id)
    if task is None:
        return None
    visible = outputs.of_jobs(connection, [job_id], [OutputState.CONFIRMED])
    return document_of(ended, place, provenance.units(connection, [job_id])[job_id], visible), task
