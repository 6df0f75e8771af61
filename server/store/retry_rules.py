"""Retry rules, and what they ask of a job that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from common.wire import Offer, RetryRule
from server.store.schema import bucket, job, pilot_report, task, workflow
from server.store.schema_failures import retry_rule


def every(connection: Connection) -> list[RetryRule]:
    """All rules, in the order in which they are asked."""
    return [msgspec.json.decode(text, type=RetryRule) for text in texts(connection)]


def texts(connection: Connection) -> Sequence[str]:
    """The same as JSON, for whoever has read them before."""
    query = select(retry_rule.c.spec).order_by(retry_rule.c.position, retry_rule.c.name)
    return [row.spec for row in connection.execute(query)]


def one(connection: Connection, name: str) -> RetryRule | None:
    """The rule of that name, if there."""
    spec = connection.execute(select(retry_rule.c.spec).where(retry_rule.c.name == name)).scalar()
    return None if spec is None else msgspec.json.decode(spec, type=RetryRule)


def put(connection: Connection, rule: RetryRule) -> None:
    """Write a rule."""
    values: dict[str, Any] = {"position": rule.position, "spec": msgspec.json.encode(rule).decode()}
    if not connection.execute(update(retry_rule).where(retry_rule.c.name == rule.name).values(**values)).rowcount:
        connection.execute(insert(retry_rule).values(name=rule.name, **values))


def remove(connection: Connection, name: str) -> bool:
    """Delete a rule; False if it was not there."""
    return bool(connection.execute(delete(retry_rule).where(retry_rule.c.name == name)).rowcount)


@dataclass(frozen=True)
class JobFacts:
    """What is asked of a job only when it fails. ``probed`` are the tags that its pilot found on its node."""

    host: str
    claimed: float
    started: float | None
    labels: dict[str, str]
    probed: list[str]


def facts(connection: Connection, job_id: int) -> JobFacts:
    """What rules may ask of a job beside its row and its task."""
    query = (
        select(job.c.host, job.c.claimed, job.c.started, workflow.c.labels, pilot_report.c.offer)
        .join(task, task.c.id == job.c.task_id)
        .join(workflow, workflow.c.id == task.c.workflow_id)
        .outerjoin(pilot_report, pilot_report.c.pilot_id == job.c.pilot_id)
        .where(job.c.id == job_id)
    )
    row = connection.execute(query).one()
    offer = msgspec.json.decode(row.offer, type=Offer) if row.offer else None
    return JobFacts(row.host, row.claimed, row.started, msgspec.json.decode(row.labels), offer.tags if offer else [])


def host_of(connection: Connection, job_id: int) -> str:
    """The host of a job."""
    return str(connection.execute(select(job.c.host).where(job.c.id == job_id)).scalar_one())


@dataclass(frozen=True)
class Place:
    """What tells a bucket from others of its task. Zero memory and time are the task's own."""

    locations: tuple[str, ...]
    memory_mb: int
    wall_s: int
    grouping: str
    unit_mb: int


def places(connection: Connection, bucket_ids: Sequence[int]) -> dict[int, Place]:
    """What tells these buckets apart."""
    columns = (
        bucket.c.id,
        bucket.c.locations,
        bucket.c.memory_mb,
        bucket.c.wall_s,
        bucket.c.grouping,
        bucket.c.unit_mb,
    )
    return {row.id: _place(row) for row in connection.execute(select(*columns).where(bucket.c.id.in_(bucket_ids)))}


def _place(row: Any) -> Place:
    locations = tuple(row.locations.split(",")) if row.locations else ()
    return Place(locations, row.memory_mb, row.wall_s, row.grouping, row.unit_mb)


def take_size(connection: Connection, bucket_id: int, unit_mb: int) -> None:
    """A bucket gets units that may be as large as this: matching asks the slot's disk for it."""
    where = (bucket.c.id == bucket_id) & (bucket.c.unit_mb < unit_mb)
    connection.execute(update(bucket).where(where).values(unit_mb=unit_mb))
