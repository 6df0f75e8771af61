"""Writes down at a job's end that it went wrong, for the agent that pauses problem tasks."""

from __future__ import annotations

from collections.abc import Sequence

from common.states import JobState
from common.wire import FinishRequest, UnitOutcome
from server.engine.problems import how_wrong
from server.store import problems, units
from server.store.database import Connection


def note_end(
    connection: Connection, task_id: int, job_id: int, unit_ids: Sequence[int], request: FinishRequest, now: float
) -> None:
    """Note the end of a job if it went wrong. ``unit_ids``: those that it held. A good end costs nothing."""
    outcomes = [each.outcome for each in request.units]
    if request.state == JobState.FINISHED and (UnitOutcome.PROCESSED in outcomes or not outcomes):
        return
    has_files = request.state == JobState.FINISHED and bool(units.dids(connection, unit_ids))
    wrong = how_wrong(request.state, request.error_code, outcomes, request.asked, has_files)
    if wrong is not None:
        problems.note(connection, task_id, job_id, wrong, now)
