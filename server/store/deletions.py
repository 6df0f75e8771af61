"""Taking away workflows that are over: row by row, in slices, whatever tables know of their tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Table, delete, func, insert, select, update

from common.states import FINAL_TASK_STATES
from common.wire import DeletionView
from server.store.codes import OutputState
from server.store.schema import bucket, metadata, output, site_fault, task, unit, unit_detail, workflow
from server.store.schema_commands import notice, workflow_deletion, workflow_notify

KEPT = frozenset({"event", "task"})
"""Tables whose rows outlive a workflow: history has its own end, and the tasks themselves go last."""
KEPT_PREFIXES = ("accounting", "trace", "audit")
"""What was used by whom is told of years later."""
_UNSWEPT = (int(OutputState.RECORDED), int(OutputState.ABANDONED))


@dataclass(frozen=True)
class Deletion:
    """A workflow that is being deleted."""

    workflow_id: int
    owner: str
    who: str
    ended: float | None


def ask(connection: Connection, workflow_id: int, who: str, forced: bool, now: float) -> None:
    """Have a workflow deleted that is there; asked again it stays as it was."""
    if is_asked(connection, workflow_id):
        return
    row = connection.execute(select(workflow).where(workflow.c.id == workflow_id)).one()
    connection.execute(
        insert(workflow_deletion).values(
            workflow_id=workflow_id, name=row.name, owner=row.owner, who=who, forced=forced, asked=now
        )
    )


def is_asked(connection: Connection, workflow_id: int) -> bool:
    """Whether a workflow is being deleted, or was."""
    return get(connection, workflow_id) is not None


def get(connection: Connection, workflow_id: int) -> Deletion | None:
    """The deletion of a workflow, also of one that is gone."""
    row = connection.execute(select(workflow_deletion).where(workflow_deletion.c.workflow_id == workflow_id)).first()
    return None if row is None else Deletion(row.workflow_id, row.owner, row.who, row.ended)


def view(connection: Connection, workflow_id: int) -> DeletionView:
    """The same, as people see it."""
    row = connection.execute(select(workflow_deletion).where(workflow_deletion.c.workflow_id == workflow_id)).one()
    return DeletionView(workflow_id=row.workflow_id, asked=row.asked, who=row.who, ended=row.ended)


def at_work(connection: Connection, limit: int = 100) -> list[Deletion]:
    """Deletions that are not at their end."""
    query = select(workflow_deletion).where(workflow_deletion.c.ended.is_(None)).limit(limit)
    rows = connection.execute(query.order_by(workflow_deletion.c.workflow_id))
    return [Deletion(row.workflow_id, row.owner, row.who, row.ended) for row in rows]


def hold_tasks(connection: Connection, workflow_id: int) -> list[tuple[int, bool]]:
    """The tasks of a workflow, their rows held, and whether each is over."""
    final = {state.value for state in FINAL_TASK_STATES}
    query = select(task.c.id, task.c.state).where(task.c.workflow_id == workflow_id).order_by(task.c.id)
    return [(row.id, row.state in final) for row in connection.execute(query.with_for_update())]


def confirmed_outputs(connection: Connection, task_ids: list[int]) -> int:
    """How many outputs of these tasks lie on storages as confirmed."""
    query = select(func.count()).where(output.c.task_id.in_(task_ids), output.c.state == OutputState.CONFIRMED)
    return int(connection.execute(query).scalar_one())


def unswept_outputs(connection: Connection, task_id: int) -> bool:
    """Whether the sweeper still has files of a task to remove: its rows are all that knows of them."""
    query = select(output.c.id).where(output.c.task_id == task_id, output.c.state.in_(_UNSWEPT)).limit(1)
    return connection.execute(query).first() is not None


def delete_slice(connection: Connection, task_id: int, size: int) -> int:
    """Delete some rows of a task that is over; how many. None left: 0."""
    ids = [row.id for row in connection.execute(select(unit.c.id).where(unit.c.task_id == task_id).limit(size))]
    if ids:
        connection.execute(delete(unit_detail).where(unit_detail.c.unit_id.in_(ids)))
        connection.execute(delete(unit).where(unit.c.id.in_(ids)))
        return len(ids)
    buckets = select(bucket.c.id).where(bucket.c.task_id == task_id)
    connection.execute(delete(site_fault).where(site_fault.c.bucket_id.in_(buckets)))
    for table, column in _tables():
        keys = list(table.primary_key.columns)
        rows = connection.execute(select(*(keys or [column])).where(column == task_id).limit(size)).all()
        if not rows:
            continue
        if len(keys) == 1:
            connection.execute(delete(table).where(keys[0].in_([row[0] for row in rows])))
        else:
            connection.execute(delete(table).where(column == task_id))
        return len(rows)
    return 0


def _tables() -> Iterator[tuple[Table, Column[int]]]:
    """Every table with rows of single tasks, those first that refer to others."""
    for table in reversed(metadata.sorted_tables):
        if table.name in KEPT or table.name.startswith(KEPT_PREFIXES) or table is unit:
            continue
        for column in table.columns:
            if column.name in ("task_id", "child_id"):
                yield table, column


def delete_rest(connection: Connection, workflow_id: int, now: float) -> None:
    """The tasks themselves and the workflow, when nothing else is left of them."""
    connection.execute(delete(task).where(task.c.workflow_id == workflow_id))
    connection.execute(delete(notice).where(notice.c.workflow_id == workflow_id))
    connection.execute(delete(workflow_notify).where(workflow_notify.c.workflow_id == workflow_id))
    connection.execute(delete(workflow).where(workflow.c.id == workflow_id))
    connection.execute(
        update(workflow_deletion).where(workflow_deletion.c.workflow_id == workflow_id).values(ended=now)
    )
