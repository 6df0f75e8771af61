"""The connection to the database: one way to read, one way to write, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from server.batching import Batcher

__all__ = ["Connection", "Database", "DatabaseUnavailable", "IntegrityError", "UnstorableValue"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
WAL_TRIES = 20
GROUP_LINGER_S = 0.004
"""How long pieces of work for SQLite wait for one another at the most, where several come: each wait for the disk is one."""
_PLAIN = {"jit": "off", "max_parallel_workers_per_gather": "0"}
"""No query is worth compiling, and none of an agent's may take all cores from the requests."""
_HOT = {
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
}
"""Planning a large statement costs more than running it, so that is done once, perhaps while a table is still empty.

All these statements go by indexes, a few rows at a time; a plan made for an empty table must not read it whole later.
"""


class DatabaseUnavailable(Exception):
    """The database cannot be reached now; trying again later is right."""


class UnstorableValue(Exception):
    """A number that is too large for the database, or a text that is too long."""


class Database:
    """A pool of connections.

    ``url`` is SQLAlchemy's: ``sqlite:////path/file.db`` or ``postgresql+psycopg://…``.

    Raises:
        ValueError: the URL is not understood.
    """

    def __init__(self, url: str, pool_size: int = 16) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise ValueError(f"database: {error}; use sqlite:////path/file.db or postgresql+psycopg://…") from error
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError(f"database: {parsed.get_backend_name()} is not served; use sqlite or postgresql")
        self.url = parsed
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._writer = _FairLock()
        self._group: Batcher[Any, _Outcome] = Batcher(linger_s=GROUP_LINGER_S)
        if self.is_sqlite:
            self.engine = _sqlite_engine(parsed.render_as_string(hide_password=False), pool_size)
        else:
            self.engine = _postgres_engine(parsed, max(4, pool_size // 2), _PLAIN)
            self._at_once = _postgres_engine(
                # A connection that commits by itself is never given back with a transaction open.
                parsed, pool_size, _PLAIN | _HOT, isolation_level="AUTOCOMMIT", pool_reset_on_return=None,
            )  # fmt: skip

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading; nothing is committed.

        Raises:
            DatabaseUnavailable: no connection could be had.
        """
        with self._translate(), self.engine.connect() as connection:
            yield connection

    def one_read(self) -> AbstractContextManager[Connection]:
        """A connection for a statement or two that read a few rows by indexes, each by itself.

        Raises:
            DatabaseUnavailable: no connection could be had.
        """
        return self.read() if self.is_sqlite else self.at_once()

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction: commits at the end, rolls back on any error.

        With ``durable=False`` a crash of the database may lose it although it was answered: for heartbeats only.

        Raises:
            DatabaseUnavailable: no connection could be had, or it broke.
        """
        if self.is_sqlite:
            # Competing writers of one process would starve each other in SQLite's busy handler; here they queue.
            with self._writer, self._translate(), self.engine.connect() as connection:
                with connection.execution_options(immediate=True).begin():
                    yield connection
            return
        with self._translate(), self.engine.begin() as connection:
            if not durable:
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            yield connection

    @contextmanager
    def at_once(self) -> Iterator[Connection]:
        """A connection for one statement that is a transaction by itself: durable when it has returned.

        On SQLite the same as :meth:`write`, for several.

        Raises:
            DatabaseUnavailable: no connection could be had, or it broke.
        """
        if self.is_sqlite:
            with self.write() as connection:
                yield connection
            return
        with self._translate(), self._at_once.connect() as connection:
            yield connection

    def together(self, work: Callable[[Connection], T]) -> T:
        """Do a small piece of work in a durable transaction; its result once that is committed.

        On PostgreSQL it is one statement that is a transaction by itself. On SQLite pieces of several threads share a
        transaction, and so the wait for the disk; what goes wrong in one is undone and told to its own thread only.

        Raises:
            DatabaseUnavailable: no connection could be had, or it broke.
        """
        if not self.is_sqlite:
            with self.at_once() as connection:
                return work(connection)
        outcome = self._group.do(work, self._work_together)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[no-any-return]

    def _work_together(self, pieces: list[Callable[[Connection], Any]]) -> list[_Outcome]:
        with self.write() as connection:
            return [_alone(connection, piece) for piece in pieces]

    def check(self) -> None:
        """One round trip.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    @contextmanager
    def _translate(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if _is_broken(error):
                self._forget_connections()
            if isinstance(error, DataError):
                raise UnstorableValue(str(error.orig).partition("\n")[0]) from error
            if isinstance(error, OperationalError) or error.connection_invalidated:
                raise DatabaseUnavailable(str(error.orig)) from error
            raise
        except PoolTimeout as error:
            raise DatabaseUnavailable(str(error)) from error
        except OverflowError as error:  # SQLite's driver, for a number of more than 64 bits
            raise UnstorableValue(str(error)) from error

    def _forget_connections(self) -> None:
        """One of them broke: most likely all did. Those that are at work are not used again."""
        self.close()

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()
        if not self.is_sqlite:
            self._at_once.dispose()


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any = None
    error: Exception | None = None


def _alone(connection: Connection, piece: Callable[[Connection], Any]) -> _Outcome:
    """One piece among others, as if it were alone."""
    raw: Any = connection.connection.dbapi_connection
    # Not SQLAlchemy's own savepoints: those cost more than what they are for.
    raw.execute("SAVEPOINT piece")
    try:
        outcome = _Outcome(piece(connection))
    except Exception as error:  # noqa: BLE001 - its own thread is told
        connection.exec_driver_sql("ROLLBACK TO piece")
        outcome = _Outcome(error=error)
    raw.execute("RELEASE piece")
    return outcome


class _FairLock:
    """A mutex that serves its waiters in the order of their coming."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiters: list[threading.Event] = []
        self._held = False

    def __enter__(self) -> None:
        with self._mutex:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._waiters.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            if self._waiters:
                self._waiters.pop(0).set()
            else:
                self._held = False


def _is_broken(error: DBAPIError) -> bool:
    """Whether an error says that the connection has ended, or that the database ends it (PostgreSQL's classes 08, 57)."""
    code = getattr(error.orig, "sqlstate", "") or ""
    return error.connection_invalidated or code.startswith(("08", "57P"))


def _options(url: URL, settings: Mapping[str, str]) -> str:
    """What the URL itself asks the server for (``?options=…``), and what we do."""
    given = url.query.get("options", "")
    ours = (f"-c {name}={value}" for name, value in settings.items())
    return " ".join([given] if isinstance(given, str) else given) + " " + " ".join(ours)


def _postgres_engine(url: URL, pool_size: int, settings: Mapping[str, str], **options: Any) -> Engine:
    arguments = {"options": _options(url, settings)}
    # Those that were used last are used first: the database's processes have at hand what they need.
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size // 2,
        pool_timeout=10,
        pool_use_lifo=True,
        connect_args=arguments,
        **options,
    )

    from psycopg.types.numeric import Int8Dumper
    from psycopg.types.string import StrDumper

    class NoNul(StrDumper):
        """PostgreSQL keeps no NUL in a text, and the end of a payload's log may well have one."""

        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.adapters.register_dumper(str, NoNul)
        # Always the same type, however small the number, so that a statement is prepared once and not for each.
        connection.adapters.register_dumper(int, Int8Dumper)

    return engine


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    for _ in range(WAL_TRIES):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            # Two programs open a new database at once. The switch does not wait for a lock; a transaction does.
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("ROLLBACK")
    cursor.execute("PRAGMA journal_mode=WAL")


def _sqlite_engine(url: str, pool_size: int) -> Engine:
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=pool_size, max_overflow=pool_size, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        cursor = connection.cursor()
        for pragma in ("busy_timeout=30000", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        _switch_to_wal(cursor)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
