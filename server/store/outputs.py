"""Outputs: recorded, uploaded, confirmed, or abandoned and swept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Double,
    Select,
    SmallInteger,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from common.wire import OutputRecord, OutputRole, OutputView, Registration
from server.engine.world import World
from server.store.codes import OutputState
from server.store.prepared import Prepared
from server.store.schema import output

REGISTRATION_CODES = {Registration.NONE: 0, Registration.PILOT: 1, Registration.SERVER: 2}
REGISTRATIONS = {code: mode for mode, code in REGISTRATION_CODES.items()}


@dataclass(frozen=True)
class OutputRow:
    """A recorded output. ``pattern`` is its number among its task's patterns, from 1 on; None for a log."""

    id: int
    job_id: int
    task_id: int
    name: str
    did: str
    role: str
    storage: str
    path: str
    size: int
    checksum: str
    events: int | None
    attributes: Mapping[str, Any]
    state: OutputState
    pattern: int | None


@dataclass(frozen=True)
class NewOutput:
    """A file that is about to be uploaded, and the place that was chosen for it."""

    file: OutputRecord
    did: str
    storage: str
    path: str
    pattern: int | None = None
    registration: Registration = Registration.NONE


@dataclass(frozen=True)
class Place:
    """Where a recorded output goes."""

    did: str
    storage: str
    path: str
    registration: Registration


@dataclass(frozen=True)
class Settled:
    """What became of an output when its job was confirmed."""

    did: str
    state: OutputState


def _text(value: Mapping[str, Any]) -> str | None:
    return msgspec.json.encode(value).decode() if value else None


def of_jobs(
    connection: Connection, job_ids: Collection[int], states: Collection[OutputState] = tuple(OutputState)
) -> list[OutputRow]:
    """All outputs that jobs recorded, or those in some states."""
    codes = sorted(int(state) for state in states)
    query = select(output).where(output.c.job_id.in_(list(job_ids)), output.c.state.in_(codes))
    return rows_of(connection, query.order_by(output.c.id))


def rows_of(connection: Connection, query: Select[Any]) -> list[OutputRow]:
    """The outputs that a query of whole rows finds."""
    return [
        OutputRow(
            row.id, row.job_id, row.task_id, row.name, row.did, row.role, row.storage, row.path, row.size,
            row.checksum, row.events, msgspec.json.decode(row.attributes) if row.attributes else {},
            OutputState(row.state), row.pattern,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


# ---------------------------------------------------------------- the two steps of the commit

GIVEN: dict[str, Any] = {
    "name": String, "did": Text, "role": String, "storage": String, "path": Text, "size": BigInteger,
    "checksum": String, "events": BigInteger, "attributes": Text, "pattern": SmallInteger,
    "registration": SmallInteger,
}  # fmt: skip
"""What is written down of a file that is about to be uploaded."""
AMENDED = ("size", "checksum", "events", "attributes")
"""Of these what is written anew when the same name is recorded again."""
_COLUMNS = ["job_id", "task_id", "state", "recorded", *GIVEN]
PLACE = (output.c.name, output.c.did, output.c.storage, output.c.path, output.c.registration)


def _fixed() -> list[Any]:
    return [
        bindparam("job_id", type_=BigInteger),
        bindparam("task_id", type_=BigInteger),
        literal_column(str(int(OutputState.RECORDED))),
        bindparam("now", type_=Double),
    ]


def _record_on_postgresql() -> Any:
    given = func.json_to_recordset(cast(bindparam("rows", type_=Text), postgresql.JSON))
    table = given.table_valued(*(column(name, kind) for name, kind in GIVEN.items()))
    rows = table.render_derived(name="given", with_types=True)
    statement = postgresql.insert(output).from_select(_COLUMNS, select(*_fixed(), *(rows.c[name] for name in GIVEN)))
    changed = {name: statement.excluded[name] for name in AMENDED}
    return statement.on_conflict_do_update(index_elements=["job_id", "name"], set_=changed).returning(*PLACE)


def _record_on_sqlite() -> Any:
    rows = func.json_each(bindparam("rows", type_=Text)).table_valued("value", name="given")
    found = [func.json_extract(rows.c.value, literal_column(f"'$.{name}'")) for name in GIVEN]
    # Without a WHERE, SQLite would take ON CONFLICT for the condition of a join.
    statement = sqlite.insert(output).from_select(_COLUMNS, select(*_fixed(), *found).where(true()))
    changed = {name: statement.excluded[name] for name in AMENDED}
    return statement.on_conflict_do_update(index_elements=["job_id", "name"], set_=changed).returning(*PLACE)


_RECORD = {"postgresql": Prepared(_record_on_postgresql()), "sqlite": Prepared(_record_on_sqlite())}


def record(
    connection: Connection, job_id: int, task_id: int, files: Sequence[NewOutput], now: float
) -> dict[str, Place]:
    """Reserve names, in one statement; where each goes, by name.

    A name that was recorded before keeps its place and gets the new size and checksum.
    """
    rows = msgspec.json.encode([given_of(new) for new in files]).decode()
    given = {"job_id": job_id, "task_id": task_id, "now": now, "rows": rows}
    found = _RECORD[connection.dialect.name].run(connection, given)
    return {row.name: place_of(row) for row in found}


def move(connection: Connection, job_id: int, moved: Iterable[NewOutput]) -> None:
    """Have recorded outputs that did not reach their storage go to another; paths are the same everywhere."""
    for new in moved:
        connection.execute(
            update(output)
            .where(
                output.c.job_id == job_id,
                output.c.name == new.file.name,
                output.c.state == int(OutputState.RECORDED),
            )
            .values(storage=new.storage, registration=REGISTRATION_CODES[new.registration])
        )


def given_of(new: NewOutput) -> dict[str, Any]:
    """The columns of :data:`GIVEN`."""
    return {
        "name": new.file.name,
        "did": new.did,
        "role": new.file.role.value,
        "storage": new.storage,
        "path": new.path,
        "size": new.file.size,
        "checksum": new.file.checksum,
        "events": new.file.events,
        "attributes": _text(new.file.attributes),
        "pattern": new.pattern,
        "registration": REGISTRATION_CODES[new.registration],
    }


def place_of(row: Any) -> Place:
    """From a row of :data:`PLACE`."""
    return Place(row.did, row.storage, row.path, REGISTRATIONS[row.registration])


def places(connection: Connection, job_id: int) -> dict[str, str]:
    """The storages of what a job has recorded, by name."""
    query = select(output.c.name, output.c.storage).where(output.c.job_id == job_id)
    return {row.name: row.storage for row in connection.execute(query)}


def _settle(listed: Any) -> Any:
    codes: dict[OutputState, Any] = {state: literal_column(str(int(state))) for state in OutputState}
    # Outputs belong to units that are done; a log belongs to its job, however it ended.
    is_log = output.c.role == literal_column(f"'{OutputRole.LOG.value}'")
    visible = and_(output.c.did.in_(listed), or_(is_log, bindparam("done", type_=Boolean)))
    later = output.c.registration == literal_column(str(REGISTRATION_CODES[Registration.SERVER]))
    return (
        update(output)
        .where(output.c.job_id == bindparam("job_id", type_=BigInteger), output.c.state == codes[OutputState.RECORDED])
        .values(
            state=case(
                (and_(visible, later), codes[OutputState.UPLOADED]),
                (visible, codes[OutputState.CONFIRMED]),
                else_=codes[OutputState.ABANDONED],
            ),
            sweep_since=case((visible, null()), else_=bindparam("now", type_=Double)),
        )
        .returning(output.c.did, output.c.state)
    )


_LISTED_ON_POSTGRESQL = select(func.unnest(bindparam("dids", type_=postgresql.ARRAY(Text))))
_LISTED_ON_SQLITE = select(func.json_each(bindparam("dids", type_=Text)).table_valued("value").c.value)
_SETTLE = {
    "postgresql": Prepared(_settle(_LISTED_ON_POSTGRESQL)),
    "sqlite": Prepared(_settle(_LISTED_ON_SQLITE)),
}


def settle(connection: Connection, job_id: int, listed: Collection[str], done: bool, now: float) -> list[Settled]:
    """At a job's confirmation, in one statement: what became of everything that it had recorded.

    Those ``listed`` become visible, or wait for their registration; without a ``done`` unit only logs do. All others
    are abandoned.
    """
    dids = list(listed)
    given: dict[str, Any] = {"job_id": job_id, "done": done, "now": now, "dids": dids}
    if connection.dialect.name == "sqlite":
        given["dids"] = msgspec.json.encode(dids).decode()
    found = _SETTLE[connection.dialect.name].run(connection, given)
    return [Settled(row.did, OutputState(row.state)) for row in found]


def reveal(connection: Connection, job_ids: Collection[int]) -> None:
    """What waited for its registration is visible from now on."""
    connection.execute(
        update(output)
        .where(output.c.job_id.in_(list(job_ids)), output.c.state == int(OutputState.UPLOADED))
        .values(state=int(OutputState.CONFIRMED))
    )


def abandon(connection: Connection, job_ids: Collection[int], now: float) -> None:
    """Nothing that these jobs wrote and that is not visible is wanted any more."""
    pending = [int(OutputState.RECORDED), int(OutputState.UPLOADED)]
    connection.execute(
        update(output)
        .where(output.c.job_id.in_(list(job_ids)), output.c.state.in_(pending))
        .values(state=int(OutputState.ABANDONED), sweep_since=now)
    )


# ---------------------------------------------------------------- feeding, sweeping, looking


def unfed(connection: Connection, task_id: int, limit: int) -> list[OutputRow]:
    """Confirmed outputs of a task that were not given to the stages behind it yet; rows are locked."""
    query = (
        select(output)
        .where(output.c.task_id == task_id, output.c.state == OutputState.CONFIRMED, ~output.c.fed)
        .order_by(output.c.id)
        .limit(limit)
        .with_for_update()
    )
    return rows_of(connection, query)


def mark_fed(connection: Connection, ids: Sequence[int]) -> None:
    """They were given to the stages behind."""
    if ids:
        connection.execute(update(output).where(output.c.id.in_(ids)).values(fed=True))


def unswept(connection: Connection, before: float, storages: Collection[str], limit: int) -> list[OutputRow]:
    """Abandoned outputs on these storages, longest first, whose last try to remove them lies before a moment."""
    query = (
        select(output)
        .where(output.c.state == literal_column(str(int(OutputState.ABANDONED))), output.c.sweep_since < before)
        .where(output.c.storage.in_(list(storages)))
        .order_by(output.c.sweep_since, output.c.id)
        .limit(limit)
    )
    return rows_of(connection, query)


def put_off_sweep(connection: Connection, ids: Collection[int], now: float) -> None:
    """They could not be removed: others have their turn first."""
    if ids:
        connection.execute(
            update(output)
            .where(output.c.id.in_(list(ids)), output.c.state == int(OutputState.ABANDONED))
            .values(sweep_since=now)
        )


def mark_removed(connection: Connection, ids: Sequence[int]) -> None:
    """They were removed from their storage."""
    if ids:
        connection.execute(
            update(output)
            .where(output.c.id.in_(ids), output.c.state == int(OutputState.ABANDONED))
            .values(state=int(OutputState.REMOVED))
        )


def by_did(connection: Connection, job_id: int, did: str) -> OutputRow | None:
    """A job's output by its DID, whatever became of it."""
    return next(iter(rows_of(connection, select(output).where(output.c.job_id == job_id, output.c.did == did))), None)


def page(
    connection: Connection, task_id: int, world: World, *, role: str | None, after: int, limit: int
) -> tuple[Sequence[OutputView], int | None]:
    """Confirmed outputs of a task, and the id to go on from."""
    query = (
        select(output)
        .where(output.c.task_id == task_id, output.c.id > after, output.c.state == OutputState.CONFIRMED)
        .order_by(output.c.id)
        .limit(limit)
    )
    if role is not None:
        query = query.where(output.c.role == role)
    rows = rows_of(connection, query)
    return views(rows, world), rows[-1].id if len(rows) == limit else None


def views(rows: Iterable[OutputRow], world: World) -> list[OutputView]:
    """Outputs as people see them."""
    found = []
    for row in rows:
        urls = world.urls(row.storage, row.path, "", write=False) if row.storage in world.storages else []
        found.append(
            OutputView(
                did=row.did,
                task_id=row.task_id,
                job_id=row.job_id,
                role=row.role,
                storage=row.storage,
                url=urls[0] if urls else "",
                size=row.size,
                checksum=row.checksum,
                events=row.events,
                attributes=dict(row.attributes),
            )
        )
    return found
