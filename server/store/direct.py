"""Direct jobs and their runs: see ``docs/adr/0012``.

Whoever changes a job holds its row before its run's, and both before the rows of the task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from common.states import JobState, TaskState, WorkerState
from common.wire.direct import DirectPlace, Language
from server.engine.direct import Facts
from server.store.lists import among
from server.store.schema import task
from server.store.schema_direct import direct_file, direct_job, direct_place, direct_run
from server.store.schema_direct import direct_part as part

FOREVER_S = 10 * 365 * 86400.0
"""How long the worker of a direct job may last: its end is what the batch system says."""
SEEN_S = 60.0
"""How often it is written down that a harvester still serves its places."""
CLAIMABLE = (TaskState.READY, TaskState.RUNNING)


# ---------------------------------------------------------------- places


def put_places(connection: Connection, harvester: str, places: Iterable[DirectPlace], now: float) -> None:
    """Write down what a harvester serves; what it served before and serves no more goes.

    What was written down a moment ago is left alone.
    """
    wanted = sorted((each.queue, each.url, each.batch_queue) for each in places)
    mine = connection.execute(select(direct_place).where(direct_place.c.harvester == harvester)).all()
    fresh = all(row.seen > now - SEEN_S for row in mine)
    if fresh and sorted((row.queue, row.url, row.batch_queue) for row in mine) == wanted:
        return
    rows = [
        {"queue": queue, "harvester": harvester, "url": url, "batch_queue": batch_queue, "seen": now}
        for queue, url, batch_queue in wanted
    ]
    names = [row["queue"] for row in rows]
    gone = (direct_place.c.harvester == harvester) & direct_place.c.queue.not_in(names)
    connection.execute(delete(direct_place).where(gone))
    insert_ = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    for row in sorted(rows, key=lambda each: str(each["queue"])):
        values = {name: value for name, value in row.items() if name != "queue"}
        connection.execute(
            insert_(direct_place).values(**row).on_conflict_do_update(index_elements=["queue"], set_=values)
        )


def places(connection: Connection) -> list[DirectPlace]:
    """All that harvesters serve, by queue."""
    rows = connection.execute(select(direct_place).order_by(direct_place.c.queue))
    return [DirectPlace(row.queue, row.url, row.batch_queue) for row in rows]


# ---------------------------------------------------------------- jobs, as their owners have them


@dataclass(frozen=True)
class DirectRow:
    """A direct job with its present or last run, if it has one. Moments in seconds since the epoch."""

    id: int
    owner: str
    clusters: list[str]
    created: float
    changed: float
    name: str
    described: bool
    stdout: str | None
    stderr: str | None
    proxy_id: int | None
    task_id: int | None
    facts: Facts
    run: RunRow | None


@dataclass(frozen=True)
class RunRow:
    """One run of a direct job."""

    mark: str
    direct_id: int
    job_id: int
    harvester: str
    queue: str
    url: str
    proxy_id: int
    worker_state: WorkerState
    job_state: JobState
    batch_id: str | None
    native: str
    reason: str
    exit_code: int | None
    killing: bool
    lost: bool
    results: bool
    created: float
    started: float | None
    ended: float | None


def add(connection: Connection, owner: str, clusters: Sequence[str], now: float) -> int:
    """Write down a job that waits for its description; its number."""
    text = msgspec.json.encode(list(clusters)).decode()
    values = {"owner": owner, "clusters": text, "created": now, "changed": now}
    return int(connection.execute(insert(direct_job).values(**values).returning(direct_job.c.id)).scalar_one())


def count(connection: Connection, owner: str) -> int:
    """How many direct jobs a person has."""
    return int(connection.execute(select(func.count()).where(direct_job.c.owner == owner)).scalar_one())


@dataclass(frozen=True)
class Described:
    """What a description says that others than the computing element need."""

    text: str
    language: Language
    name: str
    stdout: str | None
    stderr: str | None


def describe(connection: Connection, direct_id: int, what: Described, proxy_id: int, task_id: int, now: float) -> None:
    """Write down a job's description, and which task it is; no pilot gets anything of that."""
    connection.execute(update(task).where(task.c.id == task_id).values(outside=True))
    connection.execute(
        update(direct_job)
        .where(direct_job.c.id == direct_id)
        .values(
            description=what.text,
            language=what.language.value,
            name=what.name,
            stdout=what.stdout,
            stderr=what.stderr,
            proxy_id=proxy_id,
            of_task=task_id,
            changed=now,
        )
    )


_RUN = [column.label(f"run_{column.name}") for column in direct_run.columns]
_JOBS = (
    select(direct_job, task.c.state.label("task_state"), *_RUN)
    .outerjoin(direct_run, direct_run.c.mark == direct_job.c.mark)
    .outerjoin(task, task.c.id == direct_job.c.of_task)
)


def _rows(connection: Connection, query: Select[Any]) -> list[DirectRow]:
    return [_row(row) for row in connection.execute(query).mappings()]


def _row(row: Any) -> DirectRow:
    run = None if row["run_mark"] is None else run_of({name[4:]: row[name] for name in row if name.startswith("run_")})
    facts = facts_of(run, row["description"] is not None, row["task_state"], bool(row["fetch"]))
    return DirectRow(
        id=row["id"],
        owner=row["owner"],
        clusters=msgspec.json.decode(row["clusters"], type=list[str]),
        created=row["created"],
        changed=row["changed"],
        name=row["name"],
        described=row["description"] is not None,
        stdout=row["stdout"],
        stderr=row["stderr"],
        proxy_id=row["proxy_id"],
        task_id=row["of_task"],
        facts=facts,
        run=run,
    )


def facts_of(run: RunRow | None, described: bool, task_state: str | None, fetch: bool) -> Facts:
    """What is known of a job, given the state of its task and its present or last run."""
    return Facts(
        described=described,
        aborted=task_state == TaskState.ABORTED.value,
        worker=None if run is None else run.worker_state,
        job=None if run is None else run.job_state,
        killing=run is not None and run.killing,
        lost=run is not None and run.lost,
        results=run is not None and run.results,
        fetch=fetch,
    )


def run_of(row: Any) -> RunRow:
    """A run by its row."""
    return RunRow(
        mark=row["mark"],
        direct_id=row["direct_id"],
        job_id=row["of_job"],
        harvester=row["harvester"],
        queue=row["queue"],
        url=row["url"],
        proxy_id=row["proxy_id"],
        worker_state=WorkerState(row["worker_state"]),
        job_state=JobState(row["job_state"]),
        batch_id=row["batch_id"],
        native=row["native"],
        reason=row["reason"],
        exit_code=row["exit_code"],
        killing=bool(row["killing"]),
        lost=bool(row["lost"]),
        results=bool(row["results"]),
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
    )


def of_owner(connection: Connection, owner: str, ids: Collection[int] | None, name: str, limit: int) -> list[DirectRow]:
    """A person's direct jobs, by number: those of ``ids`` if any are given, whose name contains ``name``."""
    query = _JOBS.where(direct_job.c.owner == owner).order_by(direct_job.c.id).limit(limit)
    if ids is not None:
        query = query.where(among(connection, direct_job.c.id, sorted(ids)))
    if name:
        query = query.where(direct_job.c.name.contains(name, autoescape=True))
    return _rows(connection, query)


def get(connection: Connection, direct_id: int) -> DirectRow | None:
    """A direct job, whoever's it is."""
    found = _rows(connection, _JOBS.where(direct_job.c.id == direct_id))
    return found[0] if found else None


def hold(connection: Connection, direct_id: int) -> DirectRow | None:
    """A direct job, its row and its run's held until the transaction ends."""
    held = select(direct_job.c.mark).where(direct_job.c.id == direct_id).with_for_update()
    row = connection.execute(held).first()
    if row is None:
        return None
    if row.mark is not None:
        connection.execute(select(direct_run.c.mark).where(direct_run.c.mark == row.mark).with_for_update()).first()
    return get(connection, direct_id)


def description_of(connection: Connection, direct_id: int) -> str | None:
    """A job's description, if it has one."""
    query = select(direct_job.c.description).where(direct_job.c.id == direct_id)
    return connection.execute(query).scalar()


def is_direct(connection: Connection, task_id: int) -> bool:
    """Whether a task is a direct job's."""
    return connection.execute(select(direct_job.c.id).where(direct_job.c.of_task == task_id)).first() is not None


def ask_fetch(connection: Connection, direct_id: int, now: float) -> None:
    """What a failed job left is wanted."""
    connection.execute(update(direct_job).where(direct_job.c.id == direct_id).values(fetch=True, changed=now))


def run_again(connection: Connection, direct_id: int, proxy_id: int, now: float) -> None:
    """The next claim makes a new run; what the last one left is not kept."""
    values = {"mark": None, "fetch": False, "proxy_id": proxy_id, "changed": now}
    connection.execute(update(direct_job).where(direct_job.c.id == direct_id).values(**values))


def remove(connection: Connection, direct_id: int) -> None:
    """Forget a direct job with its files; a run that is still there is cleaned by its harvester."""
    files = select(direct_file.c.id).where(direct_file.c.direct_id == direct_id)
    connection.execute(delete(part).where(part.c.file_id.in_(files)))
    connection.execute(delete(direct_file).where(direct_file.c.direct_id == direct_id))
    connection.execute(delete(direct_job).where(direct_job.c.id == direct_id))


def old(connection: Connection, before: float, limit: int) -> list[int]:
    """Direct jobs of which nothing changed since a moment."""
    query = select(direct_job.c.id).where(direct_job.c.changed < before).order_by(direct_job.c.id).limit(limit)
    return [row.id for row in connection.execute(query)]
