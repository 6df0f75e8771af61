"""Harvester's memory: one SQLite file with a row for each worker. The only place of harvester with SQL.

Every change is durable before the call returns (``synchronous=FULL``), since what comes after it relies on it: the
intention to submit is written down before the submission. Several processes may use the file: one harvester that moves
workers, and commands that look, or ask for something by a flag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.engine import Connection

from common.clock import Clock
from common.config import ConfigError
from common.states import FINAL_WORKER_STATES, WorkerState, require
from common.wire import Shape

LIVE = frozenset(WorkerState) - FINAL_WORKER_STATES
"""The states of workers that have not ended."""
SCHEMA_VERSION = 1
BUSY_S = 10.0
"""How long a writer waits for another."""

_metadata = MetaData()
_worker = Table(
    "worker",
    _metadata,
    Column("mark", String, primary_key=True),
    Column("queue", String, nullable=False),
    Column("state", String, nullable=False),
    Column("shape", String, nullable=False),
    Column("batch_id", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("missing_count", Integer, nullable=False),
    Column("reported", Boolean, nullable=False),
    Column("cancel", Boolean, nullable=False),
    Column("exit_code", Integer),
    Column("reason", String, nullable=False),
    Index("worker_state", "state", "reported"),
)
_queue = Table(
    "queue",
    _metadata,
    Column("name", String, primary_key=True),
    Column("drained", Boolean, nullable=False),
)
_FINAL = sorted(state.value for state in FINAL_WORKER_STATES)


class StoreError(Exception):
    """A row was not as the caller believed it to be: two harvesters use one database."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it is written down.

    ``reported``: the server has accepted this very state. ``missing_count``: denials in a row. ``cancel``: somebody
    asked for its end. Times are in seconds since the epoch; ``updated`` is the last change of state.
    """

    mark: str
    queue: str
    state: WorkerState
    shape: Shape
    created: float
    updated: float
    batch_id: str = ""
    missing_count: int = 0
    reported: bool = False
    cancel: bool = False
    exit_code: int | None = None
    reason: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change of one worker that was in ``source``. ``batch_id`` None leaves it as it is."""

    mark: str
    source: WorkerState
    target: WorkerState
    missing_count: int = 0
    batch_id: str | None = None
    exit_code: int | None = None
    reason: str = ""


class Store:
    """The database in ``path``, made if it isn't there. Raises ConfigError for one of another version."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S})
        event.listen(self._engine, "connect", _configure)
        with self._engine.begin() as connection:
            _prepare(connection, path)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def live(self, states: Collection[WorkerState] = LIVE, queue: str | None = None) -> list[Worker]:
        """The workers in ``states`` (default: all that have not ended), oldest first; of one queue, if one is named."""
        query = select(_worker).where(_worker.c.state.in_([state.value for state in states]))
        if queue is not None:
            query = query.where(_worker.c.queue == queue)
        return self._workers(query.order_by(_worker.c.created, _worker.c.mark))

    def ended(self, limit: int) -> list[Worker]:
        """The workers that ended last."""
        query = select(_worker).where(_worker.c.state.in_(_FINAL)).order_by(_worker.c.updated.desc()).limit(limit)
        return self._workers(query)

    def unreported(self) -> list[Worker]:
        """Workers in a state that the server has not accepted yet."""
        return self._workers(select(_worker).where(_worker.c.reported.is_(False)).order_by(_worker.c.created))

    def counts(self) -> dict[tuple[str, WorkerState], int]:
        """How many workers each queue has in each state."""
        query = select(_worker.c.queue, _worker.c.state, func.count()).group_by(_worker.c.queue, _worker.c.state)
        with self._engine.connect() as connection:
            return {(queue, WorkerState(state)): count for queue, state, count in connection.execute(query)}

    def plan(self, planned: Iterable[tuple[str, str, Shape]]) -> None:
        """Write intentions down: mark, queue and shape of each new worker."""
        now = self._clock.now()
        rows = [
            _row(Worker(mark=mark, queue=queue, state=WorkerState.PLANNED, shape=shape, created=now, updated=now))
            for mark, queue, shape in planned
        ]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(insert(_worker), rows)

    def apply(self, changes: Sequence[Change]) -> None:
        """Change workers: all of them, or none.

        Raises:
            TransitionError: a move that workers don't have.
            StoreError: a worker wasn't in its ``source`` any more.
        """
        now = self._clock.now()
        moved, counted, placed = [], [], []
        for change in changes:
            if change.target is change.source:
                counted.append({"b_mark": change.mark, "b_count": change.missing_count})
                continue
            require(change.source, change.target)
            moved.append(_move_row(change, now))
            if change.batch_id is not None:
                placed.append({"b_mark": change.mark, "b_batch_id": change.batch_id})
        with self._engine.begin() as connection:
            if moved and connection.execute(_MOVE, moved).rowcount != len(moved):
                raise StoreError("a worker's state was changed by somebody else; run one harvester on each state_dir")
            if placed:
                connection.execute(_PLACE, placed)
            if counted:
                connection.execute(_COUNT, counted)

    def mark_reported(self, workers: Sequence[Worker]) -> None:
        """The server knows these workers' states; one that has moved on meanwhile stays unreported."""
        rows = [{"b_mark": worker.mark, "b_source": worker.state.value} for worker in workers]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(_REPORTED, rows)

    def request_cancel(self, queues: Sequence[str]) -> int:
        """Ask for the end of all living workers of some queues; how many there are."""
        statement = (
            update(_worker).where(_worker.c.queue.in_(queues), _worker.c.state.not_in(_FINAL)).values(cancel=True)
        )
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount

    def set_drained(self, queues: Sequence[str], drained: bool) -> None:
        """Give queues no new workers, or again."""
        statement = upsert(_queue).on_conflict_do_update(index_elements=["name"], set_={"drained": drained})
        with self._engine.begin() as connection:
            connection.execute(statement, [{"name": name, "drained": drained} for name in queues])

    def drained(self) -> set[str]:
        """The queues that get no new workers."""
        with self._engine.connect() as connection:
            return set(connection.execute(select(_queue.c.name).where(_queue.c.drained)).scalars())

    def forgettable(self, before: float) -> list[Worker]:
        """Workers that ended before a moment and were reported."""
        return self._workers(
            select(_worker).where(_worker.c.state.in_(_FINAL), _worker.c.reported, _worker.c.updated < before)
        )

    def forget(self, marks: Sequence[str]) -> None:
        """Remove ended workers."""
        # Not IN: SQLAlchemy can't expand a list in a statement that is run for many rows.
        ended = or_(*(_worker.c.state == state for state in _FINAL))
        statement = delete(_worker).where(_worker.c.mark == bindparam("b_mark"), ended)
        with self._engine.begin() as connection:
            connection.execute(statement, [{"b_mark": mark} for mark in marks])

    def _workers(self, query: Any) -> list[Worker]:
        with self._engine.connect() as connection:
            return [_from_row(row) for row in connection.execute(query)]


_MOVE = (
    update(_worker)
    .where(_worker.c.mark == bindparam("b_mark"), _worker.c.state == bindparam("b_source"))
    .values(
        state=bindparam("b_target"),
        updated=bindparam("b_now"),
        missing_count=bindparam("b_count"),
        exit_code=bindparam("b_exit_code"),
        reason=bindparam("b_reason"),
        reported=False,
    )
)
_PLACE = update(_worker).where(_worker.c.mark == bindparam("b_mark")).values(batch_id=bindparam("b_batch_id"))
_COUNT = update(_worker).where(_worker.c.mark == bindparam("b_mark")).values(missing_count=bindparam("b_count"))
_REPORTED = (
    update(_worker)
    .where(_worker.c.mark == bindparam("b_mark"), _worker.c.state == bindparam("b_source"))
    .values(reported=True)
)


def _configure(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _prepare(connection: Connection, path: Path) -> None:
    found = connection.execute(text("PRAGMA user_version")).scalar_one()
    if found not in (0, SCHEMA_VERSION):
        raise ConfigError(
            f"{path}: it was written by another version of harvester (schema {found}, this one has {SCHEMA_VERSION}); "
            "run that version, or choose another state_dir once its workers have ended"
        )
    _metadata.create_all(connection)
    connection.execute(text(f"PRAGMA user_version={SCHEMA_VERSION}"))


def _row(worker: Worker) -> dict[str, Any]:
    return {
        "mark": worker.mark,
        "queue": worker.queue,
        "state": worker.state.value,
        "shape": msgspec.json.encode(worker.shape).decode(),
        "batch_id": worker.batch_id,
        "created": worker.created,
        "updated": worker.updated,
        "missing_count": worker.missing_count,
        "reported": worker.reported,
        "cancel": worker.cancel,
        "exit_code": worker.exit_code,
        "reason": worker.reason,
    }


def _move_row(change: Change, now: float) -> dict[str, Any]:
    return {
        "b_mark": change.mark,
        "b_source": change.source.value,
        "b_target": change.target.value,
        "b_now": now,
        "b_count": change.missing_count,
        "b_exit_code": change.exit_code,
        "b_reason": change.reason,
    }


def _from_row(row: Row[Any]) -> Worker:
    values = dict(row._mapping)
    shape = msgspec.json.decode(values.pop("shape"), type=Shape)
    return Worker(state=WorkerState(values.pop("state")), shape=shape, **values)
