"""Harvester's memory: one SQLite file with a row for each worker. The only place of harvester with SQL,
but for the tables of :mod:`harvester.steering_store` and :mod:`harvester.direct.book`.

Every change is durable before the call returns (``synchronous=FULL``), since what comes after it relies on it: the
intention to submit is written down before the submission. Several processes may use the file: one harvester that moves
workers (:mod:`harvester.workers` keeps them in its memory), and commands that look, or ask for something by a flag.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from common.clock import Clock
from common.config import ConfigError
from common.states import FINAL_WORKER_STATES, WorkerState, require
from common.wire import Shape

LIVE = frozenset(WorkerState) - FINAL_WORKER_STATES
"""The states of workers that have not ended."""
SCHEMA_VERSION = 1
BUSY_S = 10.0
"""How long a writer waits for another."""

FORGOTTEN = 10_000
"""Most workers that are forgotten at once."""
_FINAL = sorted(state.value for state in FINAL_WORKER_STATES)
# SQLite uses an index over part of a table when the query has the very words that the index was made with.
_IS_CANCELLED = "cancel"
_IS_DONE = f"reported AND state IN ({', '.join(repr(state) for state in _FINAL)})"

_IS_WANTED = "NOT done"
_IS_UNTOLD = "done AND NOT told AND url != ''"

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
    Index("worker_cancelled", "queue", sqlite_where=text(_IS_CANCELLED)),
    Index("worker_done", "queue", "updated", sqlite_where=text(_IS_DONE)),
)
_queue = Table(
    "queue",
    _metadata,
    Column("name", String, primary_key=True),
    Column("drained", Boolean, nullable=False),
)
_log = Table(
    "worker_log",
    _metadata,
    Column("mark", String, primary_key=True),
    Column("queue", String, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next", Float, nullable=False),
    Column("url", String, nullable=False),
    Column("tail", String, nullable=False),
    Column("done", Boolean, nullable=False),
    Column("told", Boolean, nullable=False),
    Index("worker_log_wanted", "queue", "next", sqlite_where=text(_IS_WANTED)),
    Index("worker_log_untold", "mark", sqlite_where=text(_IS_UNTOLD)),
)


class StoreError(Exception):
    """A row was not as the caller believed it to be: two harvesters use one database."""


class Unwritable(Exception):
    """The database could not be written or read (a full disk, a lock held for too long): nothing was changed."""


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


class LogRow(NamedTuple):
    """How it stands with the output of a worker that has ended.

    After ``tries`` it is ``done``: brought home, to be seen at ``url``, with its last lines in ``tail``; or given up, and the
    URL is empty. Until then the next try is at ``next``, in seconds since the epoch.
    """

    mark: str
    tries: int
    next: float
    url: str
    tail: str
    done: bool


class Store:
    """The database in ``path``, made if it isn't there. Threads may share it.

    Raises ConfigError for a database of another version. Every method raises Unwritable.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S})
        event.listen(self._engine, "connect", _configure)
        with self._writing() as connection:
            _prepare(connection, path)

    def close(self) -> None:
        """Close all connections. Whoever would still write is refused from now on."""
        with self._lock:
            self._closed = True
        self._engine.dispose()

    def live(self, states: Collection[WorkerState] = LIVE, queue: str | None = None) -> list[Worker]:
        """The workers in ``states`` (default: all that have not ended), oldest first; of one queue, if one is named."""
        query = select(_worker).where(_worker.c.state.in_([state.value for state in states]))
        if queue is not None:
            query = query.where(_worker.c.queue == queue)
        return self._workers(query.order_by(_worker.c.created, _worker.c.mark))

    def open(self) -> list[Worker]:
        """The workers that something is still to be done for: those alive, and those whose end was not reported."""
        live = [state.value for state in LIVE]
        query = select(_worker).where(or_(_worker.c.state.in_(live), _worker.c.reported.is_(False)))
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
        with self._reading() as connection:
            return {(queue, WorkerState(state)): count for queue, state, count in connection.execute(query)}

    def plan(self, planned: Iterable[tuple[str, str, Shape]]) -> list[Worker]:
        """Write intentions down: mark, queue and shape of each new worker. Returns the workers."""
        now = self._clock.now()
        workers = [
            Worker(mark=mark, queue=queue, state=WorkerState.PLANNED, shape=shape, created=now, updated=now)
            for mark, queue, shape in planned
        ]
        if workers:
            with self._writing() as connection:
                connection.execute(insert(_worker), [_row(worker) for worker in workers])
        return workers

    def apply(self, changes: Sequence[Change]) -> float:
        """Change workers: all of them, or none. Returns the time that is written down as that of the change.

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
        with self._writing() as connection:
            if moved and connection.execute(_MOVE, moved).rowcount != len(moved):
                raise StoreError("a worker's state was changed by somebody else; run one harvester on each state_dir")
            if placed:
                connection.execute(_PLACE, placed)
            if counted:
                connection.execute(_COUNT, counted)
            ended = [{"b_mark": row["b_mark"]} for row in moved if row["b_target"] in _FINAL]
            if ended:
                connection.execute(_WANT_LOG, ended)
        return now

    def mark_reported(self, workers: Sequence[Worker]) -> None:
        """The server knows these workers' states; one that has moved on meanwhile stays unreported."""
        rows = [{"b_mark": worker.mark, "b_source": worker.state.value} for worker in workers]
        if rows:
            with self._writing() as connection:
                connection.execute(_REPORTED, rows)

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """What these workers are to ask their batch system for."""
        rows = [{"b_mark": mark, "b_shape": msgspec.json.encode(shape).decode()} for mark, shape in shapes.items()]
        if rows:
            with self._writing() as connection:
                connection.execute(_SHAPE, rows)

    def request_cancel(self, queues: Sequence[str]) -> int:
        """Ask for the end of all living workers of some queues; how many there are."""
        statement = (
            update(_worker).where(_worker.c.queue.in_(queues), _worker.c.state.not_in(_FINAL)).values(cancel=True)
        )
        with self._writing() as connection:
            return connection.execute(statement).rowcount

    def cancelled(self, queues: Collection[str]) -> list[str]:
        """The marks of the living workers of some queues whose end was asked for."""
        living = _worker.c.state.not_in(_FINAL)
        query = select(_worker.c.mark).where(_worker.c.queue.in_(queues), text(_IS_CANCELLED), living)
        with self._reading() as connection:
            return list(connection.execute(query).scalars())

    def set_drained(self, queues: Sequence[str], drained: bool) -> None:
        """Give queues no new workers, or again."""
        statement = upsert(_queue).on_conflict_do_update(index_elements=["name"], set_={"drained": drained})
        with self._writing() as connection:
            connection.execute(statement, [{"name": name, "drained": drained} for name in queues])

    def drained(self) -> set[str]:
        """The queues that get no new workers."""
        with self._reading() as connection:
            return set(connection.execute(select(_queue.c.name).where(_queue.c.drained)).scalars())

    def forgettable(self, before: float, queues: Collection[str] | None = None, limit: int = FORGOTTEN) -> list[Worker]:
        """The first ``limit`` workers (of some queues; default: of all) that ended before a moment and were reported."""
        query = select(_worker).where(text(_IS_DONE), _worker.c.updated < before)
        if queues is not None:
            query = query.where(_worker.c.queue.in_(queues))
        return self._workers(query.limit(limit))

    def queues(self) -> set[str]:
        """The queues that workers were ever planned for, those forgotten left out."""
        with self._reading() as connection:
            return set(connection.execute(select(_worker.c.queue).distinct()).scalars())

    def forget(self, marks: Sequence[str]) -> None:
        """Remove ended workers."""
        # Not IN: SQLAlchemy can't expand a list in a statement that is run for many rows.
        ended = or_(*(_worker.c.state == state for state in _FINAL))
        statement = delete(_worker).where(_worker.c.mark == bindparam("b_mark"), ended)
        if marks:
            with self._writing() as connection:
                connection.execute(statement, [{"b_mark": mark} for mark in marks])
                connection.execute(_FORGET_LOG, [{"b_mark": mark} for mark in marks])

    def logs_wanted(self, queues: Collection[str], now: float, since: float, limit: int) -> list[Worker]:
        """The first workers of some queues that ended after ``since`` and whose output is to be brought home now."""
        wanted = (text(_IS_WANTED), _log.c.queue.in_(queues), _log.c.next <= now)
        query = select(_worker).join(_log, _log.c.mark == _worker.c.mark).where(*wanted)
        return self._workers(query.where(_worker.c.state.in_(_FINAL), _worker.c.updated >= since).limit(limit))

    def log_tries(self, marks: Collection[str]) -> dict[str, int]:
        """How often it was tried to bring the output of these workers home; those never tried are left out."""
        with self._reading() as connection:
            query = select(_log.c.mark, _log.c.tries).where(_log.c.mark.in_(marks))
            return {row.mark: row.tries for row in connection.execute(query)}

    def note_logs(self, rows: Sequence[LogRow]) -> None:
        """Remember how it stands with the output of workers; those that are forgotten are left out."""
        statement = upsert(_log)
        columns = {name: statement.excluded[name] for name in ("tries", "next", "url", "tail", "done", "told")}
        statement = statement.on_conflict_do_update(index_elements=["mark"], set_=columns)
        query = select(_worker.c.mark, _worker.c.queue).where(_worker.c.mark.in_([row.mark for row in rows]))
        with self._writing() as connection:
            queues = {row.mark: row.queue for row in connection.execute(query)}
            values = [{**row._asdict(), "queue": queues[row.mark], "told": False} for row in rows if row.mark in queues]
            if values:
                connection.execute(statement, values)

    def untold_logs(self, limit: int) -> list[tuple[Worker, LogRow]]:
        """Output that is home, of workers whose end the server has accepted, but not where their output is."""
        columns = [_log.c[name] for name in LogRow._fields]
        query = select(*columns).where(text(_IS_UNTOLD)).limit(limit)
        with self._reading() as connection:
            rows = {row.mark: LogRow(*row) for row in connection.execute(query)}
        workers = self._workers(select(_worker).where(_worker.c.mark.in_(rows), _worker.c.reported))
        return [(worker, rows[worker.mark]) for worker in workers]

    def mark_logs_told(self, marks: Sequence[str]) -> None:
        """The server knows where the output of these workers is."""
        with self._writing() as connection:
            connection.execute(update(_log).where(_log.c.mark.in_(marks)).values(told=True))

    def _workers(self, query: Any) -> list[Worker]:
        with self._reading() as connection:
            return list(_from_rows(connection.execute(query)))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction, one at a time; what it did is on the disk when it is left."""
        with self._lock, self._explained():
            if self._closed:
                raise Unwritable(f"{self._path}: it is closed")
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._explained(), self._engine.connect() as connection:
            yield connection

    # For the tables of other modules.
    writing, reading = _writing, _reading

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise Unwritable(
                f"{self._path}: {error.orig}; make it readable and writable again, and make room"
            ) from error


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
_WANT_LOG = (
    upsert(_log)
    .from_select(
        ["mark", "queue", "tries", "next", "url", "tail", "done", "told"],
        select(
            _worker.c.mark, _worker.c.queue, literal(0), literal(0.0), literal(""), literal(""), false(), false()
        ).where(_worker.c.mark == bindparam("b_mark"), _worker.c.batch_id != ""),
    )
    .on_conflict_do_update(index_elements=["mark"], set_={"tries": 0, "next": 0.0, "done": False})
)
"""A worker has ended that was in its batch system: its output is to be brought home."""
_FORGET_LOG = delete(_log).where(_log.c.mark == bindparam("b_mark"))
_PLACE = update(_worker).where(_worker.c.mark == bindparam("b_mark")).values(batch_id=bindparam("b_batch_id"))
_COUNT = update(_worker).where(_worker.c.mark == bindparam("b_mark")).values(missing_count=bindparam("b_count"))
_SHAPE = update(_worker).where(_worker.c.mark == bindparam("b_mark")).values(shape=bindparam("b_shape"))
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
    for index in _worker.indexes:  # those that came later than the database
        index.create(connection, checkfirst=True)
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


def _from_rows(rows: Iterable[Sequence[Any]]) -> Iterator[Worker]:
    """Rows with the columns in the table's order; equal shapes, queues and reasons are one object."""
    shapes: dict[str, Shape] = {}
    texts: dict[str, str] = {}
    for (
        mark,
        queue,
        state,
        shape,
        batch_id,
        created,
        updated,
        missing_count,
        reported,
        cancel,
        exit_code,
        reason,
    ) in rows:
        if shape not in shapes:
            shapes[shape] = msgspec.json.decode(shape, type=Shape)
        yield Worker(
            mark=mark,
            queue=texts.setdefault(queue, queue),
            state=WorkerState(state),
            shape=shapes[shape],
            batch_id=batch_id,
            created=created,
            updated=updated,
            missing_count=missing_count,
            reported=reported,
            cancel=cancel,
            exit_code=exit_code,
            reason=texts.setdefault(reason, reason),
        )
