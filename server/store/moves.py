"""Moving the units of a whole task for a command: in slices, so that a million of them block nobody.

The task's state is set first and rechecked by every claim; then slices follow, each in a transaction of its own. The
row in :data:`task_move` says how far they got, so that an agent finishes what a request began, whatever dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from common.states import FINAL_JOB_STATES, UnitState
from common.wire import OutputRole
from server.engine.sizing import raised
from server.store import recalls, units
from server.store.codes import JOB_CODES, UNIT_CODES, UNIT_STATES, OutputState
from server.store.schema import job, output, unit, unit_detail
from server.store.schema_commands import task_move

U = UnitState
_FINAL_JOBS = sorted(JOB_CODES[state] for state in FINAL_JOB_STATES)


class MoveKind(str, Enum):
    """What is done with a task's units."""

    CANCEL = "cancel"
    """All that is not over is cancelled."""
    TRIM = "trim"
    """What no job holds is cancelled."""
    RETRY = "retry"
    """What failed or was lost is ready again, with all its attempts."""
    RESTART = "restart"
    """What is done is ready again, in its next generation."""

    @property
    def sources(self) -> tuple[UnitState, ...]:
        """The states that it moves units from."""
        return _SOURCES[self]

    @property
    def target(self) -> UnitState:
        """The state that it moves units to."""
        return U.CANCELLED if self in (MoveKind.CANCEL, MoveKind.TRIM) else U.READY


_SOURCES = {
    MoveKind.CANCEL: (U.PENDING, U.READY, U.RESERVED, U.OUTPUTTING),
    MoveKind.TRIM: (U.PENDING, U.READY),
    MoveKind.RETRY: (U.FAILED, U.LOST),
    MoveKind.RESTART: (U.DONE,),
}


@dataclass(frozen=True)
class Move:
    """A move at work."""

    task_id: int
    kind: MoveKind
    after_id: int
    skipped: int


def begin(connection: Connection, task_id: int, kind: MoveKind, now: float) -> None:
    """Have the units of a task moved, from the first one on; a move that was at work is forgotten.

    The task's row must be held by this transaction.
    """
    connection.execute(delete(task_move).where(task_move.c.task_id == task_id))
    connection.execute(insert(task_move).values(task_id=task_id, kind=kind.value, after_id=0, skipped=0, begun=now))


def of_task(connection: Connection, task_id: int) -> Move | None:
    """The move of a task that is at work, if there is one."""
    row = connection.execute(select(task_move).where(task_move.c.task_id == task_id)).first()
    return None if row is None else _move(row)


def at_work(connection: Connection, limit: int = 1000) -> list[Move]:
    """Moves that are not at their end."""
    return [_move(row) for row in connection.execute(select(task_move).order_by(task_move.c.task_id).limit(limit))]


def _move(row: Any) -> Move:
    return Move(row.task_id, MoveKind(row.kind), row.after_id, row.skipped)


@dataclass(frozen=True)
class Slice:
    """What one slice did: units moved, whether the move is at its end, whether it has to go over the task again."""

    moved: int = 0
    ended: bool = True
    again: bool = False


def work_slice(connection: Connection, task_id: int, size: int, now: float) -> Slice:
    """The next slice of a task's move. Jobs are locked first, then units; a unit whose job came up only between is left
    to the next pass."""
    row = connection.execute(select(task_move).where(task_move.c.task_id == task_id).with_for_update()).first()
    if row is None:
        return Slice()
    move = _move(row)
    codes = [UNIT_CODES[state] for state in move.kind.sources]
    found = connection.execute(
        select(unit.c.id, unit.c.job_id)
        .where(unit.c.task_id == task_id, unit.c.id > move.after_id, unit.c.state.in_(codes))
        .order_by(unit.c.id)
        .limit(size)
    ).all()
    if not found:
        if not move.skipped:
            connection.execute(delete(task_move).where(task_move.c.task_id == task_id))
            return Slice()
        _advance(connection, task_id, 0, 0)
        return Slice(ended=False, again=True)
    moved, skipped = _move_units(connection, move, found, codes, now)
    _advance(connection, task_id, found[-1].id, move.skipped + skipped)
    return Slice(moved, ended=False)


def _advance(connection: Connection, task_id: int, after_id: int, skipped: int) -> None:
    connection.execute(
        update(task_move).where(task_move.c.task_id == task_id).values(after_id=after_id, skipped=skipped)
    )


def restart_units(connection: Connection, task_id: int, unit_ids: Sequence[int], now: float) -> int:
    """Restart single units that are done, with the others of their jobs, as their outputs are one; how many."""
    codes = [UNIT_CODES[U.DONE]]
    query = select(unit.c.id, unit.c.job_id).where(
        unit.c.task_id == task_id, unit.c.id.in_(unit_ids), unit.c.state.in_(codes)
    )
    found = connection.execute(query.order_by(unit.c.id)).all()
    return _move_units(connection, Move(task_id, MoveKind.RESTART, 0, 0), found, codes, now)[0] if found else 0


def _move_units(
    connection: Connection, move: Move, found: Sequence[Any], codes: list[int], now: float
) -> tuple[int, int]:
    """Moves what it may; how many it moved and how many it had to leave for now."""
    job_ids = sorted({row.job_id for row in found if row.job_id is not None})
    held = _lock_jobs(connection, job_ids)
    where = unit.c.id.in_([row.id for row in found])
    if move.kind == MoveKind.RESTART:
        where = unit.c.job_id.in_(job_ids)
    rows = connection.execute(
        select(unit.c.id, unit.c.bucket_id, unit.c.state, unit.c.job_id)
        .where(where, unit.c.task_id == move.task_id, unit.c.state.in_(codes))
        .order_by(unit.c.id)
        .with_for_update()
    ).all()
    wanted = {True, False} if move.kind == MoveKind.CANCEL else {False}
    mine = [row for row in rows if row.job_id is None or held.get(row.job_id) in wanted]
    _write(connection, move, mine, now)
    return len(mine), len(rows) - len(mine)


def _lock_jobs(connection: Connection, job_ids: list[int]) -> dict[int, bool]:
    """Hold these jobs' rows; whether each is alive. Those that are gone from the table are over."""
    found: dict[int, bool] = dict.fromkeys(job_ids, False)
    if job_ids:
        query = select(job.c.id, job.c.state).where(job.c.id.in_(job_ids)).order_by(job.c.id).with_for_update()
        found |= {row.id: row.state not in _FINAL_JOBS for row in connection.execute(query)}
    return found


def _write(connection: Connection, move: Move, rows: Sequence[Any], now: float) -> None:
    if not rows:
        return
    ids = [row.id for row in rows]
    connection.execute(update(unit).where(unit.c.id.in_(ids)).values(**_values(move.kind)))
    if move.kind.target == U.READY:
        fresh = {"error_code": None, "error_detail": None, "bad_storages": None}
        connection.execute(update(unit_detail).where(unit_detail.c.unit_id.in_(ids)).values(**fresh))
    if move.kind == MoveKind.RESTART:
        _retire(connection, sorted({row.job_id for row in rows if row.job_id is not None}))
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for row in rows:
        changes[move.task_id, row.bucket_id, UNIT_STATES[row.state]] -= 1
        changes[move.task_id, row.bucket_id, move.kind.target] += 1
    units.add_deltas(connection, changes)
    if move.kind.target == U.READY:
        units.wake(connection, {row.bucket_id for row in rows}, now)
        recalls.rewind(connection, ids, now)


def _values(kind: MoveKind) -> dict[str, object]:
    values: dict[str, object] = {"state": UNIT_CODES[kind.target]}
    if kind.target == U.READY:
        values |= {"job_id": None, "payload_failures": 0, "site_failures": 0, "lost_pilots": 0, "preemptions": 0}
        values["seq"] = unit.c.seq.bitwise_and(raised(-1, 0))
    if kind == MoveKind.RESTART:
        values["generation"] = unit.c.generation + 1
    return values


def _retire(connection: Connection, job_ids: list[int]) -> None:
    """Outputs of the last generation are no longer visible."""
    connection.execute(
        update(output)
        .where(output.c.job_id.in_(job_ids), output.c.state == OutputState.CONFIRMED)
        .where(output.c.role == OutputRole.OUTPUT.value)
        .values(state=int(OutputState.RETIRED))
    )


def fed_outputs(connection: Connection, task_id: int) -> bool:
    """Whether a later stage has taken an output of this task."""
    query = select(output.c.id).where(
        output.c.task_id == task_id, output.c.state == OutputState.CONFIRMED, output.c.fed
    )
    return connection.execute(query.limit(1)).first() is not None
