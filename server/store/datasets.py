"""Datasets of outputs: made as files come, counted, looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, select, text, update

from common.wire import DatasetKind, DatasetView, OutputView
from server.engine.datasets import Dataset, Numbered, expires
from server.engine.world import World
from server.store import outputs
from server.store.access import Sight
from server.store.codes import OutputState
from server.store.lists import Insert, among, put
from server.store.schema import output
from server.store.schema_outputs import dataset, dataset_file

_LOCK = 7_046_029_254_391
"""Key of the PostgreSQL advisory lock of whoever attaches, so that numbered datasets are filled one by one."""


@dataclass(frozen=True)
class Attached:
    """An output and the datasets that it belongs to; ``base`` is what their names begin with."""

    output_id: int
    task_id: int
    size: int
    scope: str
    base: str
    datasets: Sequence[Dataset]


@dataclass(frozen=True)
class Membership:
    """A dataset that an output is in, as a catalogue needs to know it. ``expires`` is when its rule ends, if ever."""

    did: str
    storage: str | None
    lifetime_days: int | None
    expires: float | None


def lock(connection: Connection) -> None:
    """Have nobody else attach until the transaction ends."""
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def in_any(connection: Connection, output_ids: Collection[int]) -> set[int]:
    """Those of the outputs that are in a dataset already."""
    query = select(dataset_file.c.output_id).where(among(connection, dataset_file.c.output_id, output_ids)).distinct()
    return {row.output_id for row in connection.execute(query)}


def filled(connection: Connection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Numbered]:
    """For each (scope, base) the numbered dataset that is being filled. To be called under :func:`lock`."""
    found = {key: Numbered() for key in keys}
    for scope, base in sorted(keys):
        row = connection.execute(
            select(dataset.c.number, dataset.c.n_files)
            .where(dataset.c.scope == scope, dataset.c.base == base, dataset.c.number.is_not(None))
            .order_by(dataset.c.number.desc())
            .limit(1)
        ).first()
        if row is not None:
            found[scope, base] = Numbered(row.number, row.n_files)
    return found


def attach(connection: Connection, files: Sequence[Attached], now: float) -> None:
    """Put outputs into their datasets, which are made if they are not there. To be called under :func:`lock`."""
    wanted: dict[tuple[str, str], tuple[Attached, Dataset]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    members: dict[tuple[str, str], list[int]] = {}
    for file in files:
        for each in file.datasets:
            key = (file.scope, each.name)
            wanted.setdefault(key, (file, each))
            sizes[key] += file.size
            members.setdefault(key, []).append(file.output_id)
    if not wanted:
        return
    rows = [
        {
            "scope": scope,
            "name": name,
            "kind": each.kind.value,
            "first_task": file.task_id,
            "base": file.base,
            "number": each.number,
            "storage": each.storage,
            "lifetime_days": each.lifetime_days,
            "created": now,
            "n_files": len(members[scope, name]),
            "bytes": sizes[scope, name],
        }
        for (scope, name), (file, each) in sorted(wanted.items())
    ]
    returned = put(connection, dataset, rows, _add_files, (dataset.c.id, dataset.c.scope, dataset.c.name))
    links = [
        {"dataset_id": row.id, "output_id": output_id} for row in returned for output_id in members[row.scope, row.name]
    ]
    put(connection, dataset_file, links)


def _add_files(statement: Insert) -> Insert:
    added = {
        "n_files": dataset.c.n_files + statement.excluded.n_files,
        "bytes": dataset.c.bytes + statement.excluded.bytes,
    }
    return statement.on_conflict_do_update(index_elements=["scope", "name"], set_=added)


def detach(connection: Connection, output_ids: Collection[int]) -> None:
    """Take outputs out of their datasets: they will never be visible."""
    ids = list(output_ids)
    query = (
        select(dataset_file.c.dataset_id, func.count().label("n"), func.sum(output.c.size).label("bytes"))
        .join(output, output.c.id == dataset_file.c.output_id)
        .where(dataset_file.c.output_id.in_(ids))
        .group_by(dataset_file.c.dataset_id)
        .order_by(dataset_file.c.dataset_id)
    )
    less = [{"b_id": row.dataset_id, "b_n": row.n, "b_bytes": int(row.bytes)} for row in connection.execute(query)]
    if less:
        connection.execute(delete(dataset_file).where(dataset_file.c.output_id.in_(ids)))
        connection.execute(_LESS, less)


_LESS = (
    update(dataset)
    .where(dataset.c.id == bindparam("b_id"))
    .values(n_files=dataset.c.n_files - bindparam("b_n"), bytes=dataset.c.bytes - bindparam("b_bytes"))
)


def memberships(connection: Connection, output_ids: Collection[int]) -> dict[int, list[Membership]]:
    """The datasets of each output."""
    query = (
        select(dataset_file.c.output_id, dataset)
        .join(dataset, dataset.c.id == dataset_file.c.dataset_id)
        .where(dataset_file.c.output_id.in_(list(output_ids)))
        .order_by(dataset.c.id)
    )
    found: dict[int, list[Membership]] = {output_id: [] for output_id in output_ids}
    for row in connection.execute(query):
        ends = expires(row.created, row.lifetime_days)
        found[row.output_id].append(Membership(f"{row.scope}:{row.name}", row.storage, row.lifetime_days, ends))
    return found


@dataclass(frozen=True)
class Wanted:
    """Which datasets to list: those that a task was the first to write to, of a scope, of a kind."""

    task_id: int | None = None
    scope: str | None = None
    kind: DatasetKind | None = None


def page(connection: Connection, wanted: Wanted, sight: Sight | None, *, after: int, limit: int) -> list[DatasetView]:
    """Datasets by id."""
    query = _seen(sight).where(dataset.c.id > after).order_by(dataset.c.id).limit(limit)
    if wanted.task_id is not None:
        query = query.where(dataset.c.first_task == wanted.task_id)
    if wanted.scope is not None:
        query = query.where(dataset.c.scope == wanted.scope)
    if wanted.kind is not None:
        query = query.where(dataset.c.kind == wanted.kind.value)
    return [_view(row) for row in connection.execute(query)]


def by_did(connection: Connection, did: str, sight: Sight | None = None) -> DatasetView | None:
    """A dataset by its DID."""
    scope, _, name = did.partition(":")
    row = connection.execute(_seen(sight).where(dataset.c.scope == scope, dataset.c.name == name)).first()
    return None if row is None else _view(row)


def _seen(sight: Sight | None) -> Select[Any]:
    query: Select[Any] = select(dataset)
    return query if sight is None else query.where(dataset.c.first_task.in_(sight.tasks()))


def _view(row: Row[Any]) -> DatasetView:
    return DatasetView(
        id=row.id,
        did=f"{row.scope}:{row.name}",
        kind=DatasetKind(row.kind),
        task_id=row.first_task,
        number=row.number,
        storage=row.storage,
        created=row.created,
        lifetime_days=row.lifetime_days,
        expires=expires(row.created, row.lifetime_days),
        files=row.n_files,
        bytes=row.bytes,
    )


def files(
    connection: Connection, dataset_id: int, world: World, *, after: int, limit: int
) -> tuple[Sequence[OutputView], int | None]:
    """The visible outputs of a dataset, and the id to go on from."""
    query: Select[Any] = (
        select(output)
        .join(dataset_file, dataset_file.c.output_id == output.c.id)
        .where(dataset_file.c.dataset_id == dataset_id, dataset_file.c.output_id > after)
        .where(output.c.state == int(OutputState.CONFIRMED))
        .order_by(dataset_file.c.output_id)
        .limit(limit)
    )
    rows = outputs.rows_of(connection, query)
    return outputs.views(rows, world), rows[-1].id if len(rows) == limit else None
