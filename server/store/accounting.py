"""Accounting: jobs that have ended and are not in the books yet, and what was used by the day."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    String,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
)

from common.wire import AccountingRow
from server.engine.accounting import HOUR_S, JOULES_PER_KWH, ApelRecord, Key, Usage, day_words
from server.store.access import Sight
from server.store.lists import Insert, put
from server.store.prepared import Prepared
from server.store.schema_outputs import accounting_day, job_ended

_NOTE = Prepared(insert(job_ended).inline().values(job_id=bindparam("job_id", type_=BigInteger)))


def note_ended(connection: Connection, job_ids: Collection[int]) -> None:
    """Jobs have ended: to be written in the transaction that ends them."""
    _NOTE.many(connection, [{"job_id": job_id} for job_id in job_ids])


def take_ended(connection: Connection, limit: int) -> list[int]:
    """Jobs that are not in the books yet, in the order of their ends; they are taken off the list in this transaction.

    To be called by one agent at a time.
    """
    ids = select(job_ended.c.id).order_by(job_ended.c.id).limit(limit)
    rows = connection.execute(
        delete(job_ended).where(job_ended.c.id.in_(ids)).returning(job_ended.c.id, job_ended.c.job_id)
    )
    return [row.job_id for row in sorted(rows, key=lambda row: int(row.id))]


def waiting(connection: Connection, most: int) -> int:
    """How many jobs are not in the books yet, counted up to ``most``."""
    some = select(job_ended.c.id).limit(most).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


_SUMS = ("jobs_ok", "jobs_failed", "wall_s", "cpu_s", "wall_hs23_s", "cpu_hs23_s", "energy_j")
_KEY = ("day", "queue", "task_id", "cores", "site")


def add(connection: Connection, used: Mapping[Key, Usage]) -> None:
    """Write use into the books."""
    rows = [
        {
            "day": key.day,
            "queue": key.queue,
            "task_id": key.task_id,
            "cores": key.cores,
            "site": key.site,
            "owner": key.owner,
            "group_name": key.group,
            "first_end": usage.first_end,
            "last_end": usage.last_end,
            **{name: getattr(usage, name) for name in _SUMS},
        }
        for key, usage in sorted(used.items(), key=lambda item: (item[0].day, item[0].task_id, item[0].queue))
    ]
    put(connection, accounting_day, rows, _add_use)


def _add_use(statement: Insert) -> Insert:
    old, new = accounting_day.c, statement.excluded
    changed: dict[str, Any] = {name: old[name] + new[name] for name in _SUMS}
    changed["first_end"] = case((old.first_end < new.first_end, old.first_end), else_=new.first_end)
    changed["last_end"] = case((old.last_end > new.last_end, old.last_end), else_=new.last_end)
    return statement.on_conflict_do_update(index_elements=_KEY, set_=changed)


GROUPS: Mapping[str, ColumnElement[Any]] = {
    "site": accounting_day.c.site,
    "group": accounting_day.c.group_name,
    "user": accounting_day.c.owner,
    "task": cast(accounting_day.c.task_id, String),
    "queue": accounting_day.c.queue,
    "day": accounting_day.c.day,
}
"""What use may be filtered and grouped by."""


def report(
    connection: Connection,
    *,
    first: int,
    behind: int,
    by: Sequence[str],
    filters: Mapping[str, str],
    sight: Sight | None,
    limit: int,
) -> list[AccountingRow]:
    """Use of the days from ``first`` to before ``behind``, summed up for each combination of what ``by`` names.

    The first ``limit`` rows, in the order of the combinations.
    """
    columns = [GROUPS[word].label(f"by_{word}") for word in by]
    sums = [func.sum(accounting_day.c[name]).label(name) for name in _SUMS]
    wall_core = func.sum(accounting_day.c.wall_s * accounting_day.c.cores).label("wall_core_s")
    query = (
        select(*columns, *sums, wall_core)
        .where(accounting_day.c.day >= first, accounting_day.c.day < behind)
        .where(*(GROUPS[word] == value for word, value in filters.items()))
        .having(func.count() > 0)
        .limit(limit)
    )
    if sight is not None:
        mine = or_(accounting_day.c.owner == sight.owner, accounting_day.c.group_name.in_(sight.groups))
        query = query.where(mine)
    if columns:
        query = query.group_by(*(GROUPS[word] for word in by)).order_by(*(GROUPS[word] for word in by))
    return [
        AccountingRow(
            key={word: day_words(value) if word == "day" else str(value) for word, value in zip(by, row, strict=False)},
            jobs_ok=int(row.jobs_ok),
            jobs_failed=int(row.jobs_failed),
            wall_core_h=row.wall_core_s / HOUR_S,
            cpu_h=row.cpu_s / HOUR_S,
            wall_hs23_h=row.wall_hs23_s / HOUR_S,
            cpu_hs23_h=row.cpu_hs23_s / HOUR_S,
            energy_kwh=row.energy_j / JOULES_PER_KWH,
        )
        for row in connection.execute(query)
    ]


def apel(connection: Connection, first: int, behind: int, site: str | None) -> list[ApelRecord]:
    """Use of some days for each site, user, group and number of cores."""
    day = accounting_day.c
    keys = (day.site, day.owner, day.group_name, day.cores)
    query = (
        select(
            *keys,
            *(func.sum(day[name]).label(name) for name in _SUMS),
            func.min(day.first_end).label("first_end"),
            func.max(day.last_end).label("last_end"),
        )
        .where(day.day >= first, day.day < behind)
        .group_by(*keys)
        .order_by(*keys)
    )
    if site is not None:
        query = query.where(day.site == site)
    return [
        ApelRecord(
            row.site,
            row.owner,
            row.group_name,
            row.cores,
            Usage(**{name: getattr(row, name) for name in (*_SUMS, "first_end", "last_end")}),
        )
        for row in connection.execute(query)
    ]
