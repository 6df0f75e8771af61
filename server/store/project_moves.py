"""Restarting and copying the files of projects: in slices, so that a million of them block nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, select, update

from common.states import UnitState
from common.wire import FileSpec, ReplicaSpec
from common.wire.projects import ProjectFile, RestartState
from server.engine.projects import RESTARTED, Outcome
from server.engine.sizing import raised
from server.store import inputs, recalls, reservations, units
from server.store.codes import UNIT_CODES, UNIT_STATES
from server.store.schema import unit, unit_detail
from server.store.schema_projects import project, project_file, reservation

U = UnitState


@dataclass(frozen=True)
class Restart:
    """A restart at work."""

    states: frozenset[RestartState]
    after: int


def begin_restart(connection: Connection, task_id: int, states: Collection[RestartState]) -> None:
    """Have files in some states restarted, from the first one on, besides those of a restart that was at work."""
    known = restart_of(connection, task_id)
    wanted = set(states) | (known.states if known else set())
    connection.execute(
        update(project)
        .where(project.c.task_id == task_id)
        .values(restart=",".join(sorted(each.value for each in wanted)), restart_after=0)
    )


def restart_of(connection: Connection, task_id: int) -> Restart | None:
    """The restart that is at work, if there is one."""
    query = select(project.c.restart, project.c.restart_after).where(project.c.task_id == task_id)
    row = connection.execute(query).first()
    if row is None or row.restart is None:
        return None
    return Restart(frozenset(RestartState(word) for word in row.restart.split(",")), row.restart_after)


def restarting(connection: Connection, limit: int = 100) -> list[int]:
    """Projects with a restart at work."""
    query = select(project.c.task_id).where(project.c.restart.is_not(None)).order_by(project.c.task_id).limit(limit)
    return [row.task_id for row in connection.execute(query)]


def end_restart(connection: Connection, task_id: int) -> None:
    """Nothing is left to restart."""
    connection.execute(update(project).where(project.c.task_id == task_id).values(restart=None, restart_after=0))


def restart_slice(connection: Connection, task_id: int, restart: Restart, size: int, now: float) -> tuple[int, bool]:
    """Restart the next files; how many, and whether that was the rest. The task's row must be held."""
    codes = [UNIT_CODES[state] for each in restart.states for state in RESTARTED[each]]
    found = connection.execute(
        select(unit.c.id)
        .where(unit.c.task_id == task_id, unit.c.id > restart.after, unit.c.state.in_(codes))
        .order_by(unit.c.id)
        .limit(size)
    ).all()
    ids = [row.id for row in found]
    moved = restart_units(connection, task_id, ids, codes, now)
    if len(ids) < size:
        end_restart(connection, task_id)
        return moved, True
    connection.execute(update(project).where(project.c.task_id == task_id).values(restart_after=ids[-1]))
    return moved, False


def restart_files(connection: Connection, task_id: int, dids: Iterable[str], now: float) -> tuple[int, list[str]]:
    """Restart files by their DIDs, whatever their state; how many, and the DIDs that the project does not have."""
    by_digest = {inputs.digest(did): did for did in dids}
    query = select(project_file.c.digest, project_file.c.unit_id).where(
        project_file.c.task_id == task_id, project_file.c.digest.in_(list(by_digest))
    )
    ids = {bytes(row.digest): row.unit_id for row in connection.execute(query)}
    unknown = [did for key, did in by_digest.items() if key not in ids]
    if unknown:
        return 0, unknown
    codes = [UNIT_CODES[state] for states in RESTARTED.values() for state in states]
    return restart_units(connection, task_id, sorted(ids.values()), codes, now), []


def restart_units(
    connection: Connection, task_id: int, unit_ids: Sequence[int], codes: Sequence[int], now: float
) -> int:
    """Make units ready again, each at its first place: those that are reserved are taken from their workers."""
    if not unit_ids:
        return 0
    # Reservations first, as everybody who locks both does.
    taken = reservations.held(connection, reservation.c.unit_id.in_(unit_ids)) if U_RESERVED in codes else []
    moved = reservations.give_back(connection, [(each, Outcome.REVOKED) for each in taken], now)
    others = [code for code in codes if code != U_RESERVED]
    rows = connection.execute(
        select(unit.c.id, unit.c.bucket_id, unit.c.state)
        .where(unit.c.task_id == task_id, unit.c.id.in_(unit_ids), unit.c.state.in_(others))
        .order_by(unit.c.id)
        .with_for_update()
    ).all()
    _make_ready(connection, rows, [each.unit_id for each in moved])
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for row in rows:
        changes[task_id, row.bucket_id, UNIT_STATES[row.state]] -= 1
        changes[task_id, row.bucket_id, U.READY] += 1
    units.add_deltas(connection, changes)
    units.wake(connection, {row.bucket_id for row in rows}, now)
    recalls.rewind(connection, [row.id for row in rows], now)
    return len(rows) + len(moved)


U_RESERVED = UNIT_CODES[U.RESERVED]


def _make_ready(connection: Connection, rows: Sequence[Any], taken: Sequence[int]) -> None:
    values: dict[str, object] = {
        "state": UNIT_CODES[U.READY],
        "payload_failures": 0,
        "lost_pilots": 0,
        "seq": unit.c.seq.bitwise_and(raised(-1, 0)),
    }
    done = [row.id for row in rows if row.state == UNIT_CODES[U.DONE]]
    others = [row.id for row in rows if row.state != UNIT_CODES[U.DONE]]
    if done:
        connection.execute(update(unit).where(unit.c.id.in_(done)).values(**values, generation=unit.c.generation + 1))
    if others or taken:
        connection.execute(update(unit).where(unit.c.id.in_([*others, *taken])).values(**values))


# ---------------------------------------------------------------- copying


@dataclass(frozen=True)
class Copying:
    """A project whose files are being copied from another one."""

    task_id: int
    source: int
    after: int
    attributes: dict[str, Any]


def copying(connection: Connection, limit: int = 100) -> list[Copying]:
    """Projects whose files are not all copied yet."""
    query = select(project).where(project.c.copy_after.is_not(None)).order_by(project.c.task_id).limit(limit)
    return [
        Copying(row.task_id, row.copy_of, row.copy_after, msgspec.json.decode(row.copy_attributes))
        for row in connection.execute(query)
    ]


def has_copies_at_work(connection: Connection, task_id: int) -> bool:
    """Whether somebody copies the files of a project just now."""
    query = select(project.c.task_id).where(project.c.copy_of == task_id, project.c.copy_after.is_not(None))
    return connection.execute(query.limit(1)).first() is not None


def copy_slice(connection: Connection, of: Copying, size: int) -> tuple[list[FileSpec], int | None]:
    """The next files of the source, with the attributes of the copy, and behind which unit to go on; None: those are all."""
    query = (
        select(unit_detail, unit.c.id)
        .join(unit, unit.c.id == unit_detail.c.unit_id)
        .where(unit.c.task_id == of.source, unit.c.id > of.after)
        .order_by(unit.c.id)
        .limit(size)
    )
    rows = connection.execute(query).all()
    return [_file(row, of.attributes) for row in rows], rows[-1].id if len(rows) == size else None


def _file(row: Any, attributes: dict[str, Any]) -> FileSpec:
    own = msgspec.json.decode(row.attributes) if row.attributes else {}
    return ProjectFile(
        did=row.did,
        size=row.size,
        events=row.events,
        checksum=row.checksum,
        replicas=msgspec.json.decode(row.replicas, type=list[ReplicaSpec]) if row.replicas else [],
        attributes={**own, **attributes},
    )


def copied(connection: Connection, of: Copying, after: int | None) -> bool:
    """Files are copied up to and with this unit, or all of them; False if somebody else did that meanwhile."""
    found = connection.execute(
        update(project)
        .where(project.c.task_id == of.task_id, project.c.copy_after == of.after)
        .values(copy_after=after)
    )
    return bool(found.rowcount)
