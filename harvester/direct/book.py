"""What harvester remembers of direct jobs: a table of its own in the same database (:mod:`harvester.store`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import Boolean, Column, Float, Integer, MetaData, String, Table, Text, case, delete, select, update
from sqlalchemy.dialects.sqlite import insert

from common.states import WorkerState
from common.wire.direct import DirectFile, DirectOrder, DirectReport, Language
from harvester.store import Store

NEEDED = (WorkerState.PLANNED.value, WorkerState.SUBMITTING.value)
"""States of jobs that may still have to be submitted."""

_metadata = MetaData()
_run = Table(
    "direct_run",
    _metadata,
    Column("mark", String, primary_key=True),
    Column("queue", String, nullable=False, index=True),
    Column("state", String, nullable=False),
    Column("proxy_id", Integer, nullable=False),
    Column("language", String, nullable=False),
    Column("description", Text, nullable=False),
    Column("files", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("batch_id", String, nullable=False, server_default=""),
    Column("native", String, nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Column("host", String, nullable=False, server_default=""),
    Column("exit_code", Integer),
    Column("missing_count", Integer, nullable=False, server_default="0"),
    Column("cancel", Boolean, nullable=False, server_default="0"),
    Column("killed", Boolean, nullable=False, server_default="0"),
    Column("results", Boolean, nullable=False, server_default="0"),
    Column("left_out", Text, nullable=False, server_default=""),
    Column("cleaned", Boolean, nullable=False, server_default="0"),
)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A direct job as it is written down; without its ``description`` once it is submitted. Times are in seconds since the epoch; ``cancel``: its end was asked for."""

    mark: str
    queue: str
    state: WorkerState
    proxy_id: int
    language: Language
    description: str
    files: list[DirectFile]
    created: float
    updated: float
    batch_id: str = ""
    native: str = ""
    reason: str = ""
    host: str = ""
    exit_code: int | None = None
    missing_count: int = 0
    cancel: bool = False
    killed: bool = False
    results: bool = False
    left_out: str = ""
    cleaned: bool = False

    def report(self) -> DirectReport:
        """What the server is told of it."""
        return DirectReport(
            self.mark,
            self.state,
            self.batch_id or None,
            self.native[:255],
            self.reason[:4096],
            self.exit_code,
            self.host[:255],
            self.results,
            self.left_out[:4096],
            self.killed,
            self.cleaned,
        )


class Book:
    """The direct jobs of a harvester; every change is on the disk before the call returns. Raises Unwritable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.writing() as connection:
            _metadata.create_all(connection)

    def all(self, queues: Collection[str], states: Collection[WorkerState] = frozenset(WorkerState)) -> list[Run]:
        """Those of some queues in some states, oldest first; their descriptions only where they are still needed."""
        wanted = [state.value for state in states]
        text_ = case((_run.c.state.in_(NEEDED), _run.c.description), else_="").label("description")
        columns = [text_ if column.name == "description" else column for column in _run.columns]
        query = select(*columns).where(_run.c.queue.in_(sorted(queues)), _run.c.state.in_(wanted))
        with self._store.reading() as connection:
            return [
                msgspec.convert(
                    {**{str(name): row[name] for name in row}, "files": msgspec.json.decode(row["files"])}, Run
                )
                for row in connection.execute(query.order_by(_run.c.created, _run.c.mark)).mappings()
            ]

    def proxies(self) -> set[int]:
        """The proxies under which any of them run, of whatever queue."""
        with self._store.reading() as connection:
            return set(connection.execute(select(_run.c.proxy_id).distinct()).scalars())

    def drained(self) -> set[str]:
        """The queues that get nothing new."""
        return self._store.drained()

    def plan(self, orders: Sequence[DirectOrder], now: float) -> None:
        """Write orders down; those that are known stay as they are."""
        rows = [
            {
                "mark": each.mark,
                "queue": each.queue,
                "state": WorkerState.PLANNED.value,
                "proxy_id": each.proxy_id,
                "language": each.language.value,
                "description": each.description,
                "files": msgspec.json.encode(each.files).decode(),
                "created": now,
                "updated": now,
            }
            for each in orders
        ]
        if rows:
            with self._store.writing() as connection:
                connection.execute(insert(_run).on_conflict_do_nothing(), rows)

    def write(self, runs: Sequence[Run]) -> None:
        """Write down how these are now."""
        with self._store.writing() as connection:
            for run in runs:
                values = {
                    name: getattr(run, name)
                    for name in ("batch_id", "native", "reason", "host", "exit_code", "missing_count", "cancel", "killed",
                                 "results", "left_out", "cleaned", "updated")
                }  # fmt: skip
                connection.execute(update(_run).where(_run.c.mark == run.mark).values(state=run.state.value, **values))

    def forget(self, marks: Collection[str]) -> None:
        """Nothing is left of these."""
        if marks:
            with self._store.writing() as connection:
                connection.execute(delete(_run).where(_run.c.mark.in_(sorted(marks))))
