"""What becomes of a job's units when it ends, or lets some of them go: the rules of attempts, applied to rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from common.errors import ErrorCode
from common.states import JobState, UnitState
from common.wire import BadReplica, UnitOutcome
from server.dispatch import failing
from server.dispatch.context import Look
from server.dispatch.failing import Ended, Had
from server.engine.outcomes import Fate, Fault, fate, fault_of, outcome_of
from server.engine.retry_rules import Judgement, Verdict, counted
from server.engine.sizing import told
from server.store import events, retry_rules, units, workflows
from server.store.database import Connection
from server.store.jobs import JobRow
from server.store.retry_rules import JobFacts, Place
from server.store.units import UnitRow
from server.store.workflows import TaskRow

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

    A ``job_state`` that is not final says that the job goes on and only lets go of the units in ``outcomes``. When it
    is ``registering``, what was processed is done only once the catalogue knows the outputs.
    """

    job_state: JobState
    outcomes: dict[int, UnitOutcome] = field(default_factory=dict)
    error_code: int | None = None
    error_detail: str = ""
    bad_replicas: Sequence[BadReplica] = ()
    registering: bool = False
    exit_code: int | None = None


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
    outcomes = {row.id: _outcome(row, said, left.get(row.id)) for row in rows}
    judgement, facts = _judge(connection, look, job, task, said, now)
    fates = _fates(look, task, rows, outcomes, judgement, said)
    # From here on rows that others write too, always in this order: site, host, then the buckets.
    if any(to.state == UnitState.DONE for _, to in fates):
        failing.note_success(connection, look.failing, job)
    elif any(to.attempts.site > row.attempts.site for row, to in fates if row.id not in left):
        failing.note_site_fault(connection, job, now)
    if facts is not None and not left:  # a bad replica is none of the site's or the host's
        failing.note_host(connection, look.failing, job, said.error_code, facts, now)
    fates = _moved(connection, look, fates, left, judgement, said, now)
    failing.tell_rules(connection, job, judgement.applied, len(rows), now)
    error = failing.told_error(said.error_code, said.error_detail, judgement.verdict.last)
    units.settle(connection, fates, error, now)
    return {row.id: to.state for row, to in fates}


def _judge(
    connection: Connection, look: Look, job: JobRow, task: TaskRow, said: Said, now: float
) -> tuple[Judgement, JobFacts | None]:
    """What the retry rules want of the units of a failed job, and what was asked of it for that."""
    if said.job_state != JobState.FAILED or fault_of(said.error_code) == Fault.NONE:
        return Judgement(), None
    facts = retry_rules.facts(connection, job.id)
    place = retry_rules.places(connection, [job.bucket_id])[job.bucket_id]
    ended = Ended(said.error_code, said.error_detail, said.exit_code)
    asked = told(task.spec, task.measured, look.knobs)
    had = Had(max(place.memory_mb, asked.memory_mb), place.wall_s or asked.wall_s)
    return failing.judge_job(look.failing, look.world, job, task.spec, ended, facts, had, now), facts


def _fates(
    look: Look,
    task: TaskRow,
    rows: Sequence[UnitRow],
    outcomes: dict[int, UnitOutcome],
    judgement: Judgement,
    said: Said,
) -> list[tuple[UnitRow, Fate]]:
    """Where each unit goes, its bucket apart."""
    caps = judgement.caps(look.knobs.caps(task.spec.max_attempts), said.error_code)
    progress = UnitOutcome.PROCESSED in outcomes.values()
    fates = []
    for row in rows:
        outcome = outcomes[row.id]
        to = fate(outcome, row.seq, row.attempts, caps, said.error_code, progress)
        if outcome == UnitOutcome.PROCESSED and (said.registering or said.job_state == JobState.RUNNING):
            to = replace(to, state=UnitState.OUTPUTTING)
        if (
            judgement.verdict.last
            and to.state == UnitState.READY
            and counted(row.attempts, to.attempts, said.error_code)
        ):
            to = replace(to, state=UnitState.FAILED)
        fates.append((row, to))
    return fates


def _moved(
    connection: Connection,
    look: Look,
    fates: Sequence[tuple[UnitRow, Fate]],
    left: dict[int, list[str]],
    judgement: Judgement,
    said: Said,
    now: float,
) -> list[tuple[UnitRow, Fate]]:
    """The same, each unit in the bucket of the replicas that remain to it, and of its memory and time if they grow."""
    verdict = judgement.verdict
    grown = {
        row.id
        for row, to in fates
        if (verdict.memory_mb or verdict.wall_s) and counted(row.attempts, to.attempts, said.error_code)
    }
    moving = {
        row.id: row.bucket_id for row, to in fates if to.state == UnitState.READY and row.id in grown | left.keys()
    }
    places = retry_rules.places(connection, sorted(set(moving.values())))
    found: dict[tuple[int, tuple[str, ...], bool], int] = {}
    moved = []
    for row, to in fates:
        if row.id in moving:
            place = places[row.bucket_id]
            locations = look.world.locations_of(left[row.id]) if row.id in left else place.locations
            key = (row.bucket_id, locations, row.id in grown)
            if key not in found:
                found[key] = _bucket(connection, row.task_id, place, locations, verdict if key[2] else Verdict(), now)
            to = replace(to, bucket_id=found[key])
        moved.append((row, to))
    return moved


def _bucket(
    connection: Connection, task_id: int, place: Place, locations: tuple[str, ...], verdict: Verdict, now: float
) -> int:
    memory_mb, wall_s = verdict.memory_mb or place.memory_mb, verdict.wall_s or place.wall_s
    bucket_id = units.bucket_for(
        connection, task_id, locations, now, memory_mb=memory_mb, wall_s=wall_s, grouping=place.grouping
    )
    retry_rules.take_size(connection, bucket_id, place.unit_mb)
    return bucket_id


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
