"""Tasks as PanDA's users know them, and the files that they uploaded by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from common.states import TaskState
from common.wire import FileSpec, OutputRole, ReplicaSpec
from server.store.access import Sight
from server.store.codes import OutputState
from server.store.schema import output, task, workflow
from server.store.schema_commands import sandbox_owner
from server.store.schema_outputs import dataset_file
from server.store.schema_panda_client import panda_dataset, panda_file, panda_task


@dataclass(frozen=True)
class PandaTask:
    """A task as PanDA's client knows it; ``parameters`` (JSON) only of those that it submitted."""

    task_id: int
    workflow_id: int
    owner: str
    group: str | None
    name: str
    state: TaskState
    reason: str
    priority: int
    created: float
    ended: float | None
    parameters: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Which tasks to list, the newest first; empty or None: whatever it is. ``since``: not over before."""

    owner: str | None = None
    task_ids: Sequence[int] = ()
    names: Sequence[str] = ()
    states: Sequence[TaskState] = ()
    since: float | None = None
    after: int = 0
    limit: int = 100


def keep_task(connection: Connection, task_id: int, workflow_id: int, owner: str, name: str, parameters: str) -> None:
    """Remember a task's own words."""
    values = {"task_id": task_id, "workflow_id": workflow_id, "owner": owner, "name": name, "parameters": parameters}
    connection.execute(insert(panda_task).values(values))


def keep_datasets(connection: Connection, task_id: int, owner: str, names: Mapping[int, str]) -> None:
    """Remember the datasets that a task writes, by the numbers of its output patterns."""
    rows = [{"task_id": task_id, "pattern": number, "owner": owner, "name": name} for number, name in names.items()]
    if rows:
        connection.execute(insert(panda_dataset), rows)


_COLUMNS = (
    task.c.id,
    task.c.workflow_id,
    workflow.c.owner,
    workflow.c.group_name,
    workflow.c.name.label("workflow_name"),
    task.c.stage,
    task.c.state,
    task.c.state_reason,
    task.c.priority,
    task.c.created,
    task.c.ended,
    panda_task.c.name,
)


def _query(*more: Column[Any]) -> Select[Any]:
    """Tasks without those that only help another one of their workflow, such as a build."""
    columns: tuple[ColumnElement[Any], ...] = (*_COLUMNS, *more)
    return (
        select(*columns)
        .join(workflow, workflow.c.id == task.c.workflow_id)
        .outerjoin(panda_task, panda_task.c.workflow_id == task.c.workflow_id)
        .where(or_(panda_task.c.task_id.is_(None), panda_task.c.task_id == task.c.id), ~task.c.outside)
    )


def get(connection: Connection, task_id: int) -> PandaTask | None:
    """A task with its parameters, if it was submitted by PanDA's client; else what is known of it."""
    row = connection.execute(_query(panda_task.c.parameters).where(task.c.id == task_id)).first()
    return None if row is None else _task(row, row.parameters)


def find(connection: Connection, wanted: Wanted, sight: Sight | None) -> list[PandaTask]:
    """Tasks, the newest first, those in ``sight`` only."""
    query = _query().where(task.c.id > wanted.after).order_by(task.c.id.desc()).limit(wanted.limit)
    if sight is not None:
        query = query.where(sight.workflows())
    if wanted.owner is not None:
        query = query.where(workflow.c.owner == wanted.owner)
    if wanted.task_ids:
        query = query.where(task.c.id.in_(list(wanted.task_ids)))
    if wanted.names:
        names = list(wanted.names)
        query = query.where(or_(panda_task.c.name.in_(names), workflow.c.name.in_(names)))
    if wanted.states:
        query = query.where(task.c.state.in_([state.value for state in wanted.states]))
    if wanted.since is not None:
        query = query.where(or_(task.c.ended.is_(None), task.c.ended >= wanted.since))
    return [_task(row, None) for row in connection.execute(query)]


def _task(row: Row[Any], parameters: str | None) -> PandaTask:
    return PandaTask(
        task_id=row.id,
        workflow_id=row.workflow_id,
        owner=row.owner,
        group=row.group_name,
        name=row.name if row.name is not None else f"{row.workflow_name}.{row.stage}",
        state=TaskState(row.state),
        reason=row.state_reason,
        priority=row.priority,
        created=row.created,
        ended=row.ended,
        parameters=parameters,
    )


def helpers(connection: Connection, workflow_id: int) -> list[int]:
    """The tasks of a workflow, in the order of its stages."""
    query = select(task.c.id).where(task.c.workflow_id == workflow_id).order_by(task.c.position)
    return [row.id for row in connection.execute(query)]


def newest(connection: Connection, owner: str, name: str) -> tuple[int, TaskState] | None:
    """A person's newest task of a name, and its state."""
    query = (
        select(task.c.id, task.c.state)
        .join(panda_task, panda_task.c.task_id == task.c.id)
        .where(panda_task.c.owner == owner, panda_task.c.name == name)
        .order_by(task.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else (row.id, TaskState(row.state))


@dataclass(frozen=True)
class PandaFile:
    """An uploaded file: its owner's name for it, its SHA-256, size in bytes, and gzip's own checksum of the content."""

    name: str
    sha256: str
    size: int
    crc: int


def keep_file(connection: Connection, owner: str, file: PandaFile, now: float) -> None:
    """Remember a file's name; another of that name is forgotten."""
    made = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"sha256": file.sha256, "size": file.size, "crc": file.crc, "uploaded": now}
    statement = made(panda_file).values(owner=owner, name=file.name, **values)
    keys = [panda_file.c.owner, panda_file.c.name]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values))


def file(connection: Connection, owner: str, name: str) -> PandaFile | None:
    """A person's file of a name."""
    return _file(connection, _FILES.where(panda_file.c.owner == owner, panda_file.c.name == name))


def same_file(connection: Connection, owner: str, size: int, crc: int) -> PandaFile | None:
    """A person's file of this size and content, the newest."""
    query = _FILES.where(panda_file.c.owner == owner, panda_file.c.crc == crc, panda_file.c.size == size)
    return _file(connection, query.order_by(panda_file.c.uploaded.desc()).limit(1))


_FILES = select(panda_file).join(
    sandbox_owner, (sandbox_owner.c.sha256 == panda_file.c.sha256) & (sandbox_owner.c.owner == panda_file.c.owner)
)


def _file(connection: Connection, query: Select[Any]) -> PandaFile | None:
    row = connection.execute(query).first()
    return None if row is None else PandaFile(row.name, row.sha256, row.size, row.crc)


def writers(connection: Connection, owner: str, name: str) -> dict[tuple[int, int], TaskState]:
    """The tasks of a person that write a dataset, each with its output pattern's number, and their states."""
    query = (
        select(panda_dataset.c.task_id, panda_dataset.c.pattern, task.c.state)
        .join(task, task.c.id == panda_dataset.c.task_id)
        .where(panda_dataset.c.owner == owner, panda_dataset.c.name == name)
        .order_by(panda_dataset.c.task_id)
    )
    return {(row.task_id, row.pattern): TaskState(row.state) for row in connection.execute(query)}


def files_written(connection: Connection, task_id: int, pattern: int, most: int) -> list[FileSpec]:
    """The visible files of an output pattern of a task, as input for others; at the most so many."""
    query = _WRITTEN.where(output.c.task_id == task_id, output.c.pattern == pattern).order_by(output.c.id)
    return _specs(connection, query.limit(most))


def files_of_dataset(connection: Connection, dataset_id: int, most: int) -> list[FileSpec]:
    """The visible files of any dataset that tasks wrote, likewise."""
    query = _WRITTEN.join(dataset_file, dataset_file.c.output_id == output.c.id)
    query = query.where(dataset_file.c.dataset_id == dataset_id).order_by(dataset_file.c.output_id)
    return _specs(connection, query.limit(most))


def is_gathered(connection: Connection, task_id: int) -> bool:
    """Whether every output of a task is in its datasets."""
    loose = _WRITTEN.outerjoin(dataset_file, dataset_file.c.output_id == output.c.id)
    query = loose.where(output.c.task_id == task_id, output.c.pattern.is_not(None), dataset_file.c.output_id.is_(None))
    return connection.execute(query.limit(1)).first() is None


_WRITTEN = select(output).where(output.c.state == int(OutputState.CONFIRMED), output.c.role == OutputRole.OUTPUT.value)


def _specs(connection: Connection, query: Select[Any]) -> list[FileSpec]:
    return [
        FileSpec(
            did=row.did,
            size=row.size,
            events=row.events,
            checksum=row.checksum,
            replicas=[ReplicaSpec(row.storage, row.path)],
        )
        for row in connection.execute(query)
    ]
