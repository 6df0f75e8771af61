"""The buckets that have ready units, as matching wants them."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select, union_all

from common.states import CLAIMABLE_TASK_STATES, TaskState
from common.wire import StageSpec
from server.engine.matching import Candidate
from server.store import faults
from server.store.codes import UNIT_READY
from server.store.schema import bucket, task, unit_count, unit_delta


def load(connection: Connection, *, claimable_only: bool = True) -> list[Candidate]:
    """All buckets that have ready units; with ``claimable_only=False`` also those of tasks that may not run."""
    query = select(bucket, task.c.state, task.c.spec, task.c.created, task.c.input_closed).join(
        task, task.c.id == bucket.c.task_id
    )
    query = query.where(bucket.c.maybe_ready)
    if claimable_only:
        query = query.where(task.c.state.in_([state.value for state in CLAIMABLE_TASK_STATES]))
    rows = connection.execute(query).all()
    failing = faults.by_bucket(connection)
    ready = _ready(connection, sorted({row.task_id for row in rows}))
    specs: dict[int, StageSpec] = {}
    found = []
    for row in rows:
        if ready.get(row.id, 0) <= 0:
            continue  # the hint is older than the counts
        spec = specs.get(row.task_id) or specs.setdefault(row.task_id, msgspec.json.decode(row.spec, type=StageSpec))
        found.append(
            Candidate(
                bucket_id=row.id,
                task_id=row.task_id,
                task_state=TaskState(row.state),
                locations=tuple(row.locations.split(",")) if row.locations else (),
                requirements=spec.requirements,
                share=spec.share,
                priority=spec.priority,
                created=row.created,
                ready_since=row.ready_since,
                units_per_job=spec.merge.max_files if spec.merge else spec.files_per_job,
                ready_units=ready[row.id],
                unit_mb=row.unit_mb,
                min_units=spec.merge.min_files if spec.merge and not row.input_closed else 1,
                max_distance=spec.max_distance,
                far_after_s=spec.far_after_s,
                needs_container=spec.image is not None,
                output_storages=tuple(sorted({each.storage for each in spec.outputs}, key=str)),
                site_faults=failing.get(row.id, {}),
            )
        )
    return found


def _ready(connection: Connection, task_ids: list[int]) -> dict[int, int]:
    if not task_ids:
        return {}
    parts = union_all(
        *(
            select(table.c.bucket_id, table.c.n).where(table.c.task_id.in_(task_ids), table.c.state == UNIT_READY)
            for table in (unit_count, unit_delta)
        )
    ).subquery()
    query = select(parts.c.bucket_id, func.sum(parts.c.n).label("n")).group_by(parts.c.bucket_id)
    return {row.bucket_id: int(row.n) for row in connection.execute(query)}
