"""The buckets that have ready units, as matching wants them: all at once, or what changed since a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, func, literal_column, select, union_all

from common.states import FINAL_TASK_STATES, TaskState
from common.wire import Measured, StageSpec
from server.config import Knobs
from server.engine import scouts, sizing
from server.engine.matching import Candidate, Traits
from server.store import triggers
from server.store.codes import UNIT_READY
from server.store.schema import bucket, task, unit_count, unit_delta, workflow
from server.store.schema_projects import project


@dataclass(frozen=True, slots=True)
class BucketRow:
    """A bucket as its row says."""

    id: int
    task_id: int
    locations: tuple[str, ...]
    maybe_ready: bool
    ready_since: float
    unit_mb: int
    memory_mb: int
    wall_s: int

    def candidate(self, traits: Traits, ready_units: int | None = None) -> Candidate:
        """For matching."""
        return Candidate(
            bucket_id=self.id,
            traits=traits,
            locations=self.locations,
            ready_since=self.ready_since,
            ready_units=ready_units,
            unit_mb=self.unit_mb,
            memory_mb=self.memory_mb,
            wall_s=self.wall_s,
        )


@dataclass(frozen=True)
class Cursor:
    """From which change on to look again."""

    task: int
    bucket: int


@dataclass(frozen=True)
class News:
    """Tasks and buckets that are new or have changed."""

    tasks: Sequence[Traits]
    buckets: Sequence[BucketRow]
    cursor: Cursor


def everything(connection: Connection, knobs: Knobs) -> News:
    """All tasks that are not over, and all buckets of theirs that may have ready units."""
    cursor = _cursor(connection)
    over = [state.value for state in FINAL_TASK_STATES]
    tasks = connection.execute(_TASKS.where(task.c.state.not_in(over))).all()
    rows = connection.execute(_BUCKETS.where(bucket.c.maybe_ready)).all()
    return News([traits(row, knobs) for row in tasks], [_bucket(row) for row in rows], cursor)


def since(connection: Connection, cursor: Cursor, knobs: Knobs) -> News:
    """What changed; a little may be told twice."""
    new = _cursor(connection)
    tasks = connection.execute(_TASKS.where(task.c.changed >= cursor.task)).all()
    rows = connection.execute(_BUCKETS.where(bucket.c.changed >= cursor.bucket)).all()
    return News([traits(row, knobs) for row in tasks], [_bucket(row) for row in rows], new)


def there(connection: Connection) -> tuple[set[int], set[int]]:
    """The tasks that are not over, and the buckets that may have ready units."""
    over = [state.value for state in FINAL_TASK_STATES]
    tasks = connection.execute(select(task.c.id).where(task.c.state.not_in(over)))
    buckets = connection.execute(select(bucket.c.id).where(bucket.c.maybe_ready))
    return {row.id for row in tasks}, {row.id for row in buckets}


def _cursor(connection: Connection) -> Cursor:
    return Cursor(triggers.horizon(connection, "task"), triggers.horizon(connection, "bucket"))


_TASKS = select(
    task.c.id, task.c.state, task.c.priority, task.c.share, task.c.spec, task.c.created, task.c.input_closed,
    task.c.resolved, task.c.measured, task.c.scouts_left, task.c.scout_sites, task.c.workflow_id, task.c.stage,
    workflow.c.owner, workflow.c.group_name, workflow.c.scope,
).join(workflow, workflow.c.id == task.c.workflow_id).where(~task.c.outside)  # fmt: skip
_BUCKETS = select(
    bucket.c.id, bucket.c.task_id, bucket.c.locations, bucket.c.maybe_ready, bucket.c.ready_since, bucket.c.unit_mb,
    bucket.c.memory_mb, bucket.c.wall_s,
).where(bucket.c.task_id.not_in(select(project.c.task_id)))  # fmt: skip
"""Files of projects are for workers outside: no pilot ever claims them."""


def traits(row: Any, knobs: Knobs) -> Traits:
    """A task as matching wants it."""
    spec = _SPEC.decode(row.spec)
    state = TaskState(row.state)
    scouting = scouts.scouting_of(state, spec, row.resolved, row.scouts_left, row.scout_sites, knobs)
    measured = _MEASURED.decode(row.measured) if row.measured and scouting is None else None
    requirements = sizing.needed(spec, measured, knobs)
    priority = scouts.boosted(row.priority, scouting, knobs)
    return Traits(
        task_id=row.id,
        state=state,
        requirements=requirements,
        share=row.share,
        priority=float(priority),
        created=row.created,
        own_priority=float(priority),
        owner=row.owner,
        group=row.group_name,
        workflow_id=row.workflow_id,
        stage=row.stage,
        scope=row.scope,
        spec=spec,
        measured=measured,
        min_units=spec.merge.min_files if spec.merge and not row.input_closed else 1,
        max_distance=spec.max_distance,
        far_after_s=spec.far_after_s,
        needs_container=spec.image is not None,
        output_storages=tuple(sorted({each.storage for each in spec.outputs}, key=str)),
        sites=frozenset(spec.sites),
        exclude_sites=frozenset(spec.exclude_sites),
        scouting=scouting,
        cpu_s=0.0 if requirements.wall_s else sizing.bare_cpu(spec, measured, knobs) or 0.0,
        base_s=knobs.sizing_base_s,
    )


_SPEC = msgspec.json.Decoder(StageSpec)
_MEASURED = msgspec.json.Decoder(Measured)


def _bucket(row: Any) -> BucketRow:
    return BucketRow(
        row.id,
        row.task_id,
        tuple(row.locations.split(",")) if row.locations else (),
        bool(row.maybe_ready),
        row.ready_since,
        row.unit_mb,
        row.memory_mb,
        row.wall_s,
    )


def counted(
    connection: Connection, knobs: Knobs, *, task_id: int | None = None, limit: int | None = None
) -> list[Candidate]:
    """The first ``limit`` buckets that have ready units, of one task or of all, with how many: for people."""
    ready = ready_units(connection, task_id)
    open_ = task.c.state.not_in([state.value for state in FINAL_TASK_STATES])
    query: Select[Any] = _BUCKETS.where(bucket.c.task_id.in_(select(task.c.id).where(open_)))
    tasks: Select[Any] = _TASKS.where(open_)
    if task_id is not None:
        query, tasks = query.where(bucket.c.task_id == task_id), _TASKS.where(task.c.id == task_id)
    first = sorted(bucket_id for bucket_id, n in ready.items() if n > 0)[:limit]
    if len(first) == limit:
        query = query.where(bucket.c.id <= first[-1])
    known = {row.id: traits(row, knobs) for row in connection.execute(tasks)}
    return [
        found.candidate(known[found.task_id], ready[found.id])
        for found in map(_bucket, connection.execute(query))
        if found.task_id in known and ready.get(found.id, 0) > 0
    ]


def ready_units(connection: Connection, task_id: int | None = None) -> dict[int, int]:
    """How many units are ready in each bucket, of one task or of all."""
    ready: Any = literal_column(str(UNIT_READY))
    parts = union_all(
        *(
            select(state.table.c.bucket_id, (sign * state.table.c.n).label("n")).where(
                state == ready, *((state.table.c.task_id == task_id,) if task_id is not None else ())
            )
            for state, sign in ((unit_count.c.state, 1), (unit_delta.c.state, 1), (unit_delta.c.source, -1))
        )
    ).subquery()
    query = select(parts.c.bucket_id, func.sum(parts.c.n).label("n")).group_by(parts.c.bucket_id)
    return {row.bucket_id: int(row.n) for row in connection.execute(query)}
