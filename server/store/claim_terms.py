"""What a claim asks for and gives, whatever the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Select, literal, select

from common.states import CLAIMABLE_TASK_STATES, ResourceState
from common.wire import ReplicaSpec
from server.store.schema import queue, task, unit_detail


@dataclass(frozen=True)
class ClaimTerms:
    """What may be taken: from which bucket, for which queue, how many, how large.

    ``disk_mb`` bounds the sum of the units' sizes (None: no bound); fewer than ``min_units`` ready means none.
    """

    bucket_id: int
    task_id: int
    queue: str
    limit: int
    min_units: int = 1
    disk_mb: int | None = None


@dataclass(frozen=True)
class TakenUnit:
    """A unit that a job has reserved, with what the pilot needs to know of it."""

    id: int
    seq: int
    did: str | None
    size: int | None
    events: int | None
    checksum: str | None
    counter: int | None
    attributes: dict[str, Any]
    replicas: list[ReplicaSpec]


DETAIL_COLUMNS = (
    unit_detail.c.did,
    unit_detail.c.size,
    unit_detail.c.events,
    unit_detail.c.checksum,
    unit_detail.c.counter,
    unit_detail.c.attributes,
    unit_detail.c.replicas,
    unit_detail.c.bad_storages,
)


def taken_unit(row: Any) -> TakenUnit:
    """From a row with ``id``, ``seq`` and :data:`DETAIL_COLUMNS`."""
    return TakenUnit(
        id=row.id,
        seq=row.seq,
        did=row.did,
        size=row.size,
        events=row.events,
        checksum=row.checksum,
        counter=row.counter,
        attributes=msgspec.json.decode(row.attributes) if row.attributes else {},
        replicas=usable_replicas(row.replicas, row.bad_storages),
    )


def usable_replicas(replicas: str | None, bad_storages: str | None) -> list[ReplicaSpec]:
    """The replicas of a unit's file, less those that turned out missing or damaged."""
    if not replicas:
        return []
    bad = set(bad_storages.split(",")) if bad_storages else set()
    return [each for each in msgspec.json.decode(replicas, type=list[ReplicaSpec]) if each.storage not in bad]


def may_run(terms: ClaimTerms) -> Select[Any]:
    """One row if the task and the queue may run now: rechecked in the claim itself, so that a pause is a pause."""
    return (
        select(literal(1))
        .select_from(task.join(queue, queue.c.name == terms.queue))
        .where(task.c.id == terms.task_id)
        .where(task.c.state.in_([state.value for state in CLAIMABLE_TASK_STATES]))
        .where(queue.c.status == ResourceState.ONLINE.value)
    )
