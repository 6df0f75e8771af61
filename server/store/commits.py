"""The writes of a confirmation in which all went well: one statement on PostgreSQL, a few short ones on SQLite.

All that a job held is processed. Its units are done and the job has finished, or, where the server registers the
outputs, they wait for that. The job's row must be held by the transaction, so that nobody else moves its units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Double,
    Integer,
    SmallInteger,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from common.states import JobState, UnitState
from server.store import accounting, datasets, events, job_counts, outputs, registrations, units
from server.store.codes import JOB_CODES, UNIT_CODES, OutputState
from server.store.events import Event
from server.store.job_counts import Move
from server.store.jobs import JobEnd, JobRow
from server.store.prepared import Prepared
from server.store.registrations import Phase
from server.store.schema import event, job, job_delta, unit, unit_delta
from server.store.schema_outputs import job_ended, registration
from server.store.units import UnitRow

_HELD = [UNIT_CODES[UnitState.RESERVED], UNIT_CODES[UnitState.OUTPUTTING]]


@dataclass(frozen=True)
class Conclusion:
    """What a confirmation brings about. ``registering``: the outputs have to be registered first.

    ``moved`` are the units that the job still holds; none, when they were settled one by one.
    """

    job: JobRow
    end: JobEnd
    told: Event
    registering: bool
    moved: Sequence[UnitRow] = ()

    @property
    def job_state(self) -> JobState:
        """Where the job goes; one that is transferring stays so."""
        if not self.registering:
            return self.end.state
        return JobState.TRANSFERRING if self.job.state == JobState.TRANSFERRING else JobState.HOLDING

    @property
    def unit_state(self) -> UnitState:
        """Where what was processed goes."""
        return UnitState.OUTPUTTING if self.registering else UnitState.DONE


def conclude(connection: Connection, what: Conclusion, now: float) -> None:
    """Write it all down."""
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for row in what.moved:
        changes[row.task_id, row.bucket_id, row.state] -= 1
        changes[row.task_id, row.bucket_id, what.unit_state] += 1
    if connection.dialect.name == "sqlite":
        _in_steps(connection, what, changes, now)
    else:
        _at_once(connection, what, changes, now)


def _end_of(what: Conclusion, now: float) -> dict[str, Any]:
    end = what.end
    return {
        "job_id": what.job.id,
        "job_state": JOB_CODES[what.job_state],
        "registering": what.registering,
        "now": now,
        "error_code": end.error_code,
        "error_detail": end.error_detail,
        "exit_code": end.exit_code,
        "log_tail": end.log_tail,
        "digest": end.digest,
        "reply": _json(end.reply),
        "metrics": _json(end.metrics),
    }


def _json(message: msgspec.Struct | None) -> str | None:
    return None if message is None else msgspec.json.encode(message).decode()


_KEPT = ("error_code", "error_detail", "exit_code", "log_tail", "digest", "reply")
_JOB_ID = bindparam("job_id", type_=BigInteger)
_NOW = bindparam("now", type_=Double)
_REGISTERING = bindparam("registering", type_=Boolean)
_TURN = (
    update(job)
    .where(job.c.id == _JOB_ID)
    .values(
        {name: bindparam(name, type_=job.c[name].type) for name in _KEPT}
        | {
            "state": bindparam("job_state", type_=SmallInteger),
            "confirmed": _NOW,
            "ended": case((_REGISTERING, null()), else_=_NOW),
            "metrics": func.coalesce(bindparam("metrics", type_=Text), job.c.metrics),
        }
    )
)
_MOVE = (
    update(unit)
    .where(unit.c.job_id == _JOB_ID, unit.c.state.in_([literal_column(str(code)) for code in _HELD]))
    .where(bindparam("moving", type_=Boolean))
    .values(state=bindparam("unit_state", type_=SmallInteger))
)


# ---------------------------------------------------------------- SQLite

_TURN_ALONE = Prepared(_TURN)
_MOVE_ALONE = Prepared(_MOVE)


def _in_steps(
    connection: Connection, what: Conclusion, changes: Counter[tuple[int, int, UnitState]], now: float
) -> None:
    held = what.job
    if what.moved:
        given = {"job_id": held.id, "unit_state": UNIT_CODES[what.unit_state], "moving": True}
        _MOVE_ALONE.count(connection, given)
        units.add_deltas(connection, changes)
    _TURN_ALONE.count(connection, _end_of(what, now))
    if what.job_state != held.state:
        job_counts.add(connection, Move(held.task_id, held.queue, held.cores, held.state, what.job_state))
    if what.registering:
        registrations.add(connection, held.id, held.task_id, now)
    else:
        accounting.note_ended(connection, [held.id])
    events.add(connection, what.told)


# ---------------------------------------------------------------- PostgreSQL

_TASK_ID = bindparam("task_id", type_=BigInteger)
_EVENT = ("kind", "subject", "subject_id", "source", "target", "detail")


def _at_once(
    connection: Connection, what: Conclusion, changes: Counter[tuple[int, int, UnitState]], now: float
) -> None:
    held, told = what.job, what.told
    deltas = [{"b": bucket_id, "s": UNIT_CODES[state], "n": n} for (_, bucket_id, state), n in changes.items() if n]
    given = _end_of(what, now) | {
        "task_id": held.task_id,
        "unit_state": UNIT_CODES[what.unit_state],
        "moving": bool(what.moved),
        "deltas": msgspec.json.encode(deltas).decode(),
        "queue": held.queue,
        "cores": held.cores,
        "old_state": JOB_CODES[held.state],
        "kind": told.kind,
        "subject": told.subject,
        "subject_id": str(told.subject_id),
        "source": told.source.value if told.source else None,
        "target": told.target.value if told.target else None,
        "detail": msgspec.json.encode(told.detail).decode() if told.detail else None,
    }
    _ALL.count(connection, given)


def _unit_deltas() -> Any:
    found = func.json_to_recordset(cast(bindparam("deltas", type_=Text), postgresql.JSON)).table_valued(
        column("b", BigInteger), column("s", SmallInteger), column("n", BigInteger)
    )
    rows = found.render_derived(name="given", with_types=True)
    return insert(unit_delta).from_select(
        ["task_id", "bucket_id", "state", "n"], select(_TASK_ID, rows.c.b, rows.c.s, rows.c.n)
    )


def _job_deltas() -> Any:
    queue, cores = bindparam("queue", type_=String), bindparam("cores", type_=Integer)
    old, new = bindparam("old_state", type_=SmallInteger), bindparam("job_state", type_=SmallInteger)
    row: Any = select(_TASK_ID, queue, old, new, literal_column("1"), cores).where(old != new)
    return insert(job_delta).from_select(["task_id", "queue", "source", "state", "n", "cores"], row)


def _told() -> Any:
    values = [bindparam(name, type_=event.c[name].type) for name in _EVENT]
    return insert(event).from_select(["time", "task_id", "job_id", *_EVENT], select(_NOW, _TASK_ID, _JOB_ID, *values))


def _waiting() -> Any:
    phase: Any = literal_column(str(int(Phase.REGISTER)))
    return insert(registration).from_select(
        ["job_id", "task_id", "phase", "since", "next_try"],
        select(_JOB_ID, _TASK_ID, phase, _NOW, _NOW).where(_REGISTERING),
    )


def _statement() -> Any:
    booked = insert(job_ended).from_select(["job_id"], select(_JOB_ID).where(~_REGISTERING))
    parts = {
        "moved": _MOVE,
        "unit_deltas": _unit_deltas(),
        "job_deltas": _job_deltas(),
        "told": _told(),
        "waiting": _waiting(),
        "booked": booked,
    }
    return _TURN.add_cte(*(part.cte(name) for name, part in parts.items()))


_ALL = Prepared(_statement())


# ---------------------------------------------------------------- after the registration


def finish_registered(connection: Connection, held: Sequence[JobRow], now: float) -> None:
    """The outputs of these confirmed jobs are registered: their units are done, their outputs visible. In bulk.

    The jobs' rows must be held by the transaction.
    """
    ids = [each.id for each in held]
    mine = and_(unit.c.job_id.in_(ids), unit.c.state == UNIT_CODES[UnitState.OUTPUTTING])
    n = func.count().label("n")
    rows = connection.execute(
        select(unit.c.task_id, unit.c.bucket_id, n).where(mine).group_by(unit.c.task_id, unit.c.bucket_id)
    ).all()
    connection.execute(update(unit).where(mine).values(state=UNIT_CODES[UnitState.DONE]))
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for row in rows:
        changes[row.task_id, row.bucket_id, UnitState.OUTPUTTING] -= row.n
        changes[row.task_id, row.bucket_id, UnitState.DONE] += row.n
    units.add_deltas(connection, changes)
    outputs.reveal(connection, ids)
    connection.execute(update(job).where(job.c.id.in_(ids)).values(state=JOB_CODES[JobState.FINISHED], ended=now))
    _count_ended(connection, [(each, JobState.FINISHED) for each in held])


def fail_confirmed(
    connection: Connection, held: JobRow, state: JobState, error_code: int, error_detail: str, now: float
) -> None:
    """A confirmed job ends without its outputs, which are abandoned. What its pilot said of it is kept."""
    datasets.detach(connection, [row.id for row in outputs.of_jobs(connection, [held.id], [OutputState.UPLOADED])])
    outputs.abandon(connection, [held.id], now)
    connection.execute(
        update(job)
        .where(job.c.id == held.id)
        .values(state=JOB_CODES[state], ended=now, error_code=error_code, error_detail=error_detail)
    )
    _count_ended(connection, [(held, state)])


def _count_ended(connection: Connection, ended: Sequence[tuple[JobRow, JobState]]) -> None:
    moves = [Move(held.task_id, held.queue, held.cores, held.state, state) for held, state in ended]
    job_counts.add(connection, *moves)
    accounting.note_ended(connection, [held.id for held, _ in ended])
