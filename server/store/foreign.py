"""Jobs of other systems' pilots."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from common.wire import Offer
from server.store.codes import OutputState
from server.store.schema import output, pilot
from server.store.schema_foreign import foreign_job, foreign_offer


@dataclass(frozen=True)
class ForeignJob:
    """A job that a pilot of another system fetched: whose it is. See :data:`server.store.schema_foreign.foreign_job`."""

    job_id: int
    pilot_id: int
    caller: str
    name: str | None
    units: Sequence[int]
    told: int | None


def add(connection: Connection, job_id: int, pilot_id: int, caller: str, units: Sequence[int]) -> None:
    """A caller fetched a job."""
    text = msgspec.json.encode(list(units)).decode()
    connection.execute(insert(foreign_job).values(job_id=job_id, pilot_id=pilot_id, caller=caller, units=text))


def get(connection: Connection, job_id: int) -> ForeignJob | None:
    """Whose a job is; None if no pilot of another system fetched it, or it was too long ago."""
    row = connection.execute(select(foreign_job).where(foreign_job.c.job_id == job_id)).first()
    if row is None:
        return None
    return ForeignJob(row.job_id, row.pilot_id, row.caller, row.name, msgspec.json.decode(row.units), row.told)


def bind(connection: Connection, job_id: int, name: str) -> bool:
    """The job is this pilot's from now on; False if it is another's."""
    free = or_(foreign_job.c.name.is_(None), foreign_job.c.name == name)
    statement = update(foreign_job).where(foreign_job.c.job_id == job_id, free).values(name=name)
    return bool(connection.execute(statement).rowcount)


def tell(connection: Connection, job_id: int, peek_id: int | None) -> None:
    """The job's pilot is told of a request to look at it; None: it has answered."""
    connection.execute(update(foreign_job).where(foreign_job.c.job_id == job_id).values(told=peek_id))


def forget(connection: Connection, pilot_ids: Collection[int]) -> None:
    """Pilots are deleted."""
    connection.execute(delete(foreign_job).where(foreign_job.c.pilot_id.in_(list(pilot_ids))))


def next_node(connection: Connection, mark: str) -> int:
    """A number for the next pilot of a worker, whose row is locked."""
    query = select(func.coalesce(func.max(pilot.c.node), -1)).where(pilot.c.worker == mark)
    return int(connection.execute(query).scalar_one()) + 1


def note_offer(connection: Connection, queue: str, offer: Offer, now: float) -> None:
    """A pilot of another system asked in vain."""
    dialect_insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"offer": msgspec.json.encode(offer).decode(), "asked": now}
    statement = dialect_insert(foreign_offer).values(queue=queue, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=[foreign_offer.c.queue], set_=values))


def last_offer(connection: Connection, queue: str) -> tuple[Offer, float] | None:
    """What was last asked for in vain, and when."""
    row = connection.execute(select(foreign_offer).where(foreign_offer.c.queue == queue)).first()
    return None if row is None else (msgspec.json.decode(row.offer, type=Offer), row.asked)


def set_path(connection: Connection, job_id: int, name: str, path: str) -> None:
    """A recorded output that is not settled yet lies at another path of its storage."""
    mine = (output.c.job_id == job_id) & (output.c.name == name) & (output.c.state == int(OutputState.RECORDED))
    connection.execute(update(output).where(mine).values(path=path))
