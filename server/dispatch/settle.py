"""What becomes of a job's units when it ends, or lets some of them go: the rules of attempts, applied to rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from common.errors import ErrorCode
from common.states import JobState, UnitState
from common.wire import BadReplica, UnitOutcome
from server.dispatch.context import Look
from server.engine.outcomes import Fate, fate, outcome_of
from server.store import events, faults, units, workflows
from server.store.database import Connection
from server.store.jobs import JobRow
from server.store.units import UnitRow

HELD = (UnitState.RESERVED, UnitState.OUTPUTTING)
"""States of units that a live job has to answer for."""

_BAD = frozenset(
    {
        ErrorCode.NO_SUCH_FILE,
        ErrorCode.MISSING_INPUT,
        ErrorCode.GET_ADLER32_MISMATCH,
        ErrorCode.GET_MD5_MISMATCH,
    }
)
"""Errors that say that a replica itself is bad, and not the way to it."""


@dataclass(frozen=True)
class Said:
    """What is known of a job's end: by its pilot, or by whoever gave it up.

    A ``job_state`` that is not final says that the job goes on and only lets go of the units in ``outcomes``.
    """

    job_state: JobState
    outcomes: dict[int, UnitOutcome] = field(default_factory=dict)
    error_code: int | None = None
    error_detail: str = ""
    bad_replicas: Sequence[BadReplica] = ()


def held_units(rows: Iterable[UnitRow]) -> list[UnitRow]:
    """Those that the job still has to answer for."""
    return [row for row in rows if row.state in HELD]


def settle_units(
    connection: Connection, look: Look, job: JobRow, rows: Sequence[UnitRow], said: Said, now: float
) -> dict[int, UnitState]:
    """Move units to where the rules say; their new states. The job's row must be held by this transaction."""
    if not rows:
        return {}
    task = workflows.get_task(connection, job.task_id)
    if task is None:
        raise AssertionError(f"task {job.task_id} of job {job.id} is gone")
    left = _drop_bad_replicas(connection, rows, said.bad_replicas, job, now)
    caps = look.knobs.caps(task.spec.max_attempts)
    fates: list[tuple[UnitRow, Fate]] = []
    outcomes = {row.id: _outcome(row, said, left.get(row.id)) for row in rows}
    progress = UnitOutcome.PROCESSED in outcomes.values()
    for row in rows:
        outcome = outcomes[row.id]
        to = fate(outcome, row.seq, row.attempts, caps, said.error_code, progress)
        if said.job_state == JobState.RUNNING and outcome == UnitOutcome.PROCESSED:
            to = replace(to, state=UnitState.OUTPUTTING)
        bucket_id = row.bucket_id
        if row.id in left and to.state == UnitState.READY:
            locations = look.world.locations_of(left[row.id])
            bucket_id = units.bucket_for(connection, row.task_id, locations, now)
        fates.append((row, replace(to, bucket_id=bucket_id)))
    _note_site(connection, job, [each for each in fates if each[0].id not in left], now)
    units.settle(connection, fates, (said.error_code, said.error_detail), now)
    return {row.id: to.state for row, to in fates}


def _note_site(connection: Connection, job: JobRow, fates: Sequence[tuple[UnitRow, Fate]], now: float) -> None:
    """Faults of a site in a row keep it from failing the rest; a success ends them. A bad replica is none of its."""
    if any(to.state == UnitState.DONE for _, to in fates):
        faults.forget(connection, job.bucket_id, job.site)
    elif any(to.attempts.site > row.attempts.site for row, to in fates):
        n = faults.note(connection, job.bucket_id, job.site, now)
        detail = {"site": job.site, "in_a_row": n}
        events.add(connection, events.Event(now, "SITE_FAULT", "site", job.site, job.task_id, job.id, detail=detail))


def _outcome(row: UnitRow, said: Said, left: Sequence[str] | None) -> UnitOutcome:
    said_of_it = said.outcomes.get(row.id)
    if said.job_state == JobState.RUNNING:
        return said_of_it or UnitOutcome.RETURNED
    outcome = outcome_of(row.state, said_of_it, said.job_state, said.error_code)
    if outcome == UnitOutcome.LOST and left != []:
        # Lost is only what has no replica left by our own books: a pilot's word is not enough.
        return UnitOutcome.RETURNED
    if outcome == UnitOutcome.RETURNED and left == []:
        return UnitOutcome.LOST
    return outcome


def _drop_bad_replicas(
    connection: Connection, rows: Sequence[UnitRow], reports: Sequence[BadReplica], job: JobRow, now: float
) -> dict[int, list[str]]:
    """Note bad replicas of the units; for each one concerned the storages that remain."""
    bad: dict[str, set[str]] = {}
    for report in reports:
        if report.error_code in _BAD:
            bad.setdefault(report.did, set()).add(report.storage)
    if not bad:
        return {}
    left = {}
    for unit_id, did in units.dids(connection, [row.id for row in rows]).items():
        if did in bad:
            left[unit_id] = [each.storage for each in units.mark_bad(connection, unit_id, bad[did])]
    events.add(
        connection,
        *(
            events.Event(
                now, "REPLICA_BAD", "unit", report.did, job.task_id, job.id,
                detail={"storage": report.storage, "error_code": report.error_code, "detail": report.detail[:500]},
            )
            for report in reports
        ),
    )  # fmt: skip
    return left
