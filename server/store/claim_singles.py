"""Claims of one unit each for several pilots at once, on PostgreSQL: one statement, one commit.

Requests that arrive together are carried out together (:mod:`server.batching`), so that what a statement, a transaction
and a wait for the disk cost is shared by all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    CTE,
    BigInteger,
    Double,
    Integer,
    SmallInteger,
    String,
    Text,
    and_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql

from common.states import JobState
from server.store.claim_terms import DETAIL_COLUMNS, MAY_RUN, PILOT_MAY, Asked
from server.store.codes import JOB_CODES, UNIT_READY, UNIT_RESERVED
from server.store.prepared import Prepared, Step
from server.store.schema import event, job, job_delta, pilot, queue, task, unit, unit_delta, unit_detail

MOST = 32
"""Claims of one statement; also what the planner expects of it."""
LEFT_AT_MOST = 8
"""So far are the units counted that are still ready."""
TOO_LARGE, PILOT_MAY_NOT = -1, -2
"""Instead of a job's id: the unit does not fit; the pilot has ended or was taken for lost."""

_SENT: Any = literal_column(str(JOB_CODES[JobState.SENT]))
_READY: Any = literal_column(str(UNIT_READY))
_RESERVED: Any = literal_column(str(UNIT_RESERVED))
_ONE: Any = literal_column("1")


class _Line(msgspec.Struct):
    """One claim as the statement reads it; ``skip``: how many claims of the same bucket stand before it."""

    n: int
    bucket_id: int
    task_id: int
    queue: str
    status: str
    other_status: str
    pilot_id: int
    floor: int
    skip: int
    disk_mb: int | None
    spare_mb: int
    out_kb_per_event: float
    max_events: int | None
    cores: int
    site: str
    host: str
    request_id: str
    ordinal: int
    claimed: float
    detail: str


_KINDS: dict[str, Any] = {
    "n": Integer,
    "bucket_id": BigInteger,
    "task_id": BigInteger,
    "queue": String,
    "status": String,
    "other_status": String,
    "pilot_id": BigInteger,
    "floor": BigInteger,
    "skip": Integer,
    "disk_mb": BigInteger,
    "spare_mb": Integer,
    "out_kb_per_event": Double,
    "max_events": BigInteger,
    "cores": Integer,
    "site": String,
    "host": String,
    "request_id": String,
    "ordinal": SmallInteger,
    "claimed": Double,
    "detail": Text,
}


def _asked() -> CTE:
    """The claims that may be made: task, queue and pilot are asked in the statement itself, so that a pause is a pause.

    Of those whose pilot may not it is told.
    """
    given = func.json_to_recordset(cast(bindparam("asked", type_=Text), postgresql.JSON)).table_valued(
        *(column(name, kind) for name, kind in _KINDS.items())
    )
    lines = (
        select(given.render_derived(name="given", with_types=True)).limit(literal_column(str(MOST))).subquery("line")
    )
    return (
        select(lines, PILOT_MAY.label("pilot_may"))
        .join(task, task.c.id == lines.c.task_id)
        .join(queue, queue.c.name == lines.c.queue)
        .join(pilot, pilot.c.id == lines.c.pilot_id)
        .where(MAY_RUN, or_(queue.c.status == lines.c.status, queue.c.status == lines.c.other_status))
        .cte("asked")
        .prefix_with("MATERIALIZED")
    )


def _looked_at(asked: CTE) -> CTE:
    """The unit of each, and whether it ``fits``."""
    found = (
        select(unit.c.id, unit.c.seq, unit.c.size_mb, func.greatest(_ONE, unit.c.events).label("events"))
        .where(unit.c.bucket_id == asked.c.bucket_id, unit.c.state == _READY, unit.c.seq >= asked.c.floor)
        .order_by(unit.c.seq)
        .limit(_ONE)
        .offset(asked.c.skip)
        .with_for_update(skip_locked=True)
        .correlate(asked)
        .lateral("found")
    )
    produced = found.c.events * asked.c.out_kb_per_event / literal_column("1024.0")
    fits = and_(
        or_(asked.c.disk_mb.is_(None), found.c.size_mb + func.greatest(asked.c.spare_mb, produced) <= asked.c.disk_mb),
        or_(asked.c.max_events.is_(None), found.c.events <= asked.c.max_events),
    )
    return (
        select(asked, found.c.id.label("unit_id"), found.c.seq, fits.label("fits"))
        .select_from(asked.join(found, true()))
        .where(asked.c.pilot_may)
        .cte("looked_at")
        .prefix_with("MATERIALIZED")
    )


def _chosen(looked_at: CTE) -> CTE:
    """Those that fit. A unit that became free amid the statement might be found twice, and is given once."""
    above = _ready_units(looked_at, lambda seq: seq > looked_at.c.seq, LEFT_AT_MOST)
    # The floor is a hint only: before a bucket is taken for empty, what lies below is looked at, too.
    below = _ready_units(looked_at, lambda seq: seq < looked_at.c.floor, 1)
    left = func.coalesce(func.nullif(above, literal_column("0")), below)
    return (
        select(looked_at, left.label("left_over"))
        .where(looked_at.c.fits)
        .ext(postgresql.distinct_on(looked_at.c.unit_id))
        .cte("chosen")
        .prefix_with("MATERIALIZED")
    )


def _ready_units(looked_at: CTE, where: Callable[[Any], Any], most: int) -> Any:
    """How many ready units of the same bucket lie there, counted up to ``most``."""
    other = unit.alias()
    some = (
        select(_ONE.label("one"))
        .where(other.c.bucket_id == looked_at.c.bucket_id, other.c.state == _READY, where(other.c.seq))
        .limit(literal_column(str(most)))
        .correlate(looked_at)
        .subquery("some")
    )
    return select(func.count()).select_from(some).scalar_subquery()


_JOB_COLUMNS = (
    "task_id",
    "bucket_id",
    "pilot_id",
    "cores",
    "queue",
    "site",
    "host",
    "request_id",
    "ordinal",
    "claimed",
)


def _made(chosen: CTE) -> CTE:
    """The jobs, as (job_id, and all of ``chosen``)."""
    rows = select(*(chosen.c[name] for name in _JOB_COLUMNS), _SENT, _ONE)
    made = (
        insert(job)
        .from_select([*_JOB_COLUMNS, "state", "n_units"], rows)
        .returning(job.c.id, job.c.pilot_id, job.c.request_id, job.c.ordinal)
        .cte("made")
    )
    same = and_(
        made.c.pilot_id == chosen.c.pilot_id,
        made.c.request_id == chosen.c.request_id,
        made.c.ordinal == chosen.c.ordinal,
    )
    return select(made.c.id.label("job_id"), chosen).join(chosen, same).cte("taken").prefix_with("MATERIALIZED")


def _counted(taken: CTE) -> list[CTE]:
    n = func.count()
    by_bucket = (taken.c.task_id, taken.c.bucket_id)
    moves = select(*by_bucket, _READY, _RESERVED, n).group_by(*by_bucket)
    by_queue = (taken.c.task_id, taken.c.queue)
    begun = select(*by_queue, _SENT, n, func.sum(taken.c.cores)).group_by(*by_queue)
    return [
        insert(unit_delta).from_select(["task_id", "bucket_id", "source", "state", "n"], moves).cte("units_counted"),
        insert(job_delta).from_select(["task_id", "queue", "state", "n", "cores"], begun).cte("jobs_counted"),
    ]


def _told(taken: CTE) -> CTE:
    rows = select(
        taken.c.claimed, literal_column("'JOB_CLAIMED'"), literal_column("'job'"), cast(taken.c.job_id, Text),
        taken.c.task_id, taken.c.job_id, literal_column(f"'{JobState.SENT.value}'"),
        literal_column("'{\"units\":1'") + taken.c.detail,
    )  # fmt: skip
    columns = ["time", "kind", "subject", "subject_id", "task_id", "job_id", "target", "detail"]
    return insert(event).from_select(columns, rows).cte("told")


def _statement() -> Any:
    asked = _asked()
    looked_at = _looked_at(asked)
    taken = _made(_chosen(looked_at))
    moved = update(unit).where(unit.c.id == taken.c.unit_id).values(state=_RESERVED, job_id=taken.c.job_id).cte("moved")
    got = select(
        taken.c.n, taken.c.job_id, taken.c.left_over, taken.c.unit_id, taken.c.seq, *DETAIL_COLUMNS
    ).select_from(taken.join(unit_detail, unit_detail.c.unit_id == taken.c.unit_id))
    nothing = [null() for _ in range(3 + len(DETAIL_COLUMNS))]
    too_large = select(looked_at.c.n, literal_column(str(TOO_LARGE)), *nothing).where(not_(looked_at.c.fits))
    refused = select(asked.c.n, literal_column(str(PILOT_MAY_NOT)), *nothing).where(not_(asked.c.pilot_may))
    return union_all(got, too_large, refused).add_cte(moved, *_counted(taken), _told(taken))


_CLAIM = Prepared(_statement())


def step(asked: Sequence[tuple[Asked, int]]) -> Step:
    """The statement for these claims, at most :data:`MOST`, each with the seq to look from.

    To be carried out as a transaction by itself, or in one that is about to end.
    """
    before: Counter[int] = Counter()
    lines = []
    for n, (each, floor) in enumerate(asked):
        lines.append(_line(n, each, floor, before[each.terms.bucket_id]))
        before[each.terms.bucket_id] += 1
    return _CLAIM, {"asked": msgspec.json.encode(lines).decode()}


def in_order(rows: Sequence[Any], count: int) -> list[Any]:
    """For each of ``count`` claims the row of its job and unit, or None.

    A row is (line, job id, units that are still ready in its bucket up to :data:`LEFT_AT_MOST`, unit id, seq, the unit's
    detail), or the line and :data:`TOO_LARGE` or :data:`PILOT_MAY_NOT`.
    """
    found: list[Any] = [None] * count
    for row in rows:
        found[row[0]] = row
    return found


def _line(n: int, asked: Asked, floor: int, skip: int) -> _Line:
    terms, by = asked.terms, asked.claimant
    bounds, statuses = terms.bounds, terms.statuses
    return _Line(
        n, terms.bucket_id, terms.task_id, terms.queue, statuses["status"], statuses["other_status"], by.pilot_id, floor,
        skip, bounds.disk_mb, bounds.spare_mb, bounds.out_kb_per_event, bounds.max_events, asked.cores, by.site, by.host,
        # A text of PostgreSQL keeps no NUL, and JSON's escape for it is refused.
        asked.request_id.replace("\0", "\N{REPLACEMENT CHARACTER}"), asked.ordinal, asked.now, by.told,
    )  # fmt: skip
