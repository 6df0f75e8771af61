"""Projects, beside the tasks that they are: their making, what people see of them, their signs of life."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, RowMapping, and_, bindparam, exists, insert, not_, or_, select, update

from common.states import TaskState, UnitState
from common.wire import DatasetInput, ReplicaSpec, StageSpec
from common.wire.projects import ProjectFileView, ProjectRequest, ProjectState, ProjectView
from server.engine.projects import Condition, Facts, project_state, searchable, task_states
from server.store import units
from server.store.access import Sight
from server.store.codes import UNIT_CODES, UNIT_STATES
from server.store.inputs import digest
from server.store.prepared import Prepared
from server.store.schema import task, unit, unit_detail, workflow
from server.store.schema_projects import project, project_attribute, project_file, reservation


@dataclass(frozen=True)
class Copy:
    """Whose files a new project takes, and the attributes that replace theirs."""

    source: int
    attributes: Mapping[str, Any]


def add(connection: Connection, task_id: int, request: ProjectRequest, now: float, copy: Copy | None = None) -> None:
    """Make a project of a new task, which no pilot gets anything of."""
    connection.execute(update(task).where(task.c.id == task_id).values(outside=True))
    connection.execute(
        insert(project).values(
            task_id=task_id,
            virtual=request.virtual,
            retry_on_timeout=request.retry_on_timeout,
            worker_timeout_s=request.worker_timeout_s,
            idle_timeout_s=request.idle_timeout_s,
            users=_json(sorted(set(request.users))),
            roles=_json(sorted(set(request.roles))),
            file_attributes=_json(request.file_attributes),
            active=now,
            idle_at=None if request.idle_timeout_s is None else now + request.idle_timeout_s,
            copy_of=copy.source if copy else None,
            copy_after=0 if copy else None,
            copy_attributes=_json(dict(copy.attributes)) if copy else None,
        )
    )
    rows = [
        {"task_id": task_id, "name": name, "text": text, "number": number}
        for name, text, number in searchable(request.attributes)
    ]
    if rows:
        connection.execute(insert(project_attribute), rows)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def is_virtual(connection: Connection, task_id: int) -> bool:
    """Whether nobody asks where the files of a project lie."""
    return bool(connection.execute(select(project.c.virtual).where(project.c.task_id == task_id)).scalar())


def know_files(connection: Connection, task_id: int, found: Iterable[tuple[str, int]]) -> None:
    """Remember which units files of a project are: (DID, unit) of each."""
    rows = [{"task_id": task_id, "digest": digest(did), "unit_id": unit_id} for did, unit_id in found]
    connection.execute(insert(project_file), rows)


_ALL = (
    select(project, task, workflow.c.owner, workflow.c.group_name, workflow.c.name.label("project_name"))
    .join(task, task.c.id == project.c.task_id)
    .join(workflow, workflow.c.id == task.c.workflow_id)
)


def facts(connection: Connection, task_id: int) -> Facts | None:
    """What of a project never changes."""
    row = connection.execute(_ALL.where(project.c.task_id == task_id)).mappings().first()
    if row is None:
        return None
    return Facts(
        id=row["task_id"],
        owner=row["owner"],
        group=row["group_name"],
        users=frozenset(msgspec.json.decode(row["users"])),
        roles=frozenset(msgspec.json.decode(row["roles"])),
        worker_timeout_s=row["worker_timeout_s"],
        idle_timeout_s=row["idle_timeout_s"],
        attributes=_stage(row).attributes,
        file_attributes=msgspec.json.decode(row["file_attributes"]),
    )


def _stage(row: RowMapping) -> StageSpec:
    return msgspec.json.decode(row["spec"], type=StageSpec)


def state(connection: Connection, task_id: int) -> TaskState | None:
    """The state of a project's task; None when it is gone."""
    found = _STATE.run(connection, {"task_id": task_id})
    return TaskState(found[0][0]) if found else None


_STATE = Prepared(select(task.c.state).where(task.c.id == bindparam("task_id"), task.c.outside))


# ---------------------------------------------------------------- what people see


def view(connection: Connection, task_id: int) -> ProjectView | None:
    """A project as people see it."""
    found = _views(connection, [project.c.task_id == task_id], 1)
    return found[0] if found else None


@dataclass(frozen=True)
class Wanted:
    """Which projects to list; what is left out does not matter."""

    owner: str | None = None
    states: Sequence[ProjectState] = ()
    conditions: Sequence[Condition] = ()
    sight: Sight | None = None

    def terms(self) -> list[ColumnElement[bool]]:
        """As conditions."""
        found: list[ColumnElement[bool]] = []
        if self.owner is not None:
            found.append(workflow.c.owner == self.owner)
        if self.states:
            found.append(task.c.state.in_([one.value for each in self.states for one in task_states(each)]))
        if self.sight is not None:
            found.append(self.sight.workflows())
        return found + [_has(each) for each in self.conditions]


def _has(condition: Condition) -> ColumnElement[bool]:
    """Whether a project has an attribute of that name for which the condition holds."""
    mine = select(project_attribute.c.task_id).where(project_attribute.c.name == condition.name, _holds(condition))
    return project.c.task_id.in_(mine)


def _holds(condition: Condition) -> ColumnElement[bool]:
    text, number = project_attribute.c.text, project_attribute.c.number
    if condition.operator in _ORDERS:
        return number.op(condition.operator, is_comparison=True)(condition.number)
    same = text == condition.text
    if condition.number is not None:
        same = or_(same, and_(number.is_not(None), number == condition.number))
    return same if condition.operator == "=" else not_(same)


_ORDERS = ("<", "<=", ">", ">=")


def page(connection: Connection, wanted: Wanted, *, after: int, limit: int) -> list[ProjectView]:
    """Projects by id."""
    return _views(connection, [project.c.task_id > after, *wanted.terms()], limit)


def _views(connection: Connection, terms: Sequence[ColumnElement[bool]], limit: int) -> list[ProjectView]:
    rows = connection.execute(_ALL.where(*terms).order_by(project.c.task_id).limit(limit)).mappings().all()
    counts = units.counts(connection, [row["task_id"] for row in rows])
    return [_view(row, counts[row["task_id"]]) for row in rows]


def _view(row: RowMapping, counts: Mapping[UnitState, int]) -> ProjectView:
    stage = _stage(row)
    dataset = stage.input if isinstance(stage.input, DatasetInput) else None
    return ProjectView(
        id=row["task_id"],
        name=row["project_name"],
        owner=row["owner"],
        group=row["group_name"],
        state=project_state(TaskState(row["state"])),
        reason=row["state_reason"],
        attributes=stage.attributes,
        file_attributes=msgspec.json.decode(row["file_attributes"]),
        files={each.value: n for each, n in counts.items()},
        open=not row["input_closed"],
        catalog=dataset.catalog if dataset else None,
        query=dataset.query if dataset else None,
        worker_timeout_s=row["worker_timeout_s"],
        idle_timeout_s=row["idle_timeout_s"],
        retry_on_timeout=row["retry_on_timeout"],
        virtual=row["virtual"],
        users=msgspec.json.decode(row["users"]),
        roles=msgspec.json.decode(row["roles"]),
        created=row["created"],
        active=row["active"],
        ended=row["ended"],
        copied_from=row["copy_of"],
    )


@dataclass(frozen=True)
class FileRow:
    """A file as people see it, and its replicas as they were given."""

    view: ProjectFileView
    replicas: Sequence[ReplicaSpec]


def page_files(
    connection: Connection, of: Facts, *, state: UnitState | None, did: str | None, after: int, limit: int
) -> list[FileRow]:
    """Files of a project by id; one of them by its DID."""
    query = (
        select(unit, unit_detail, reservation)
        .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
        .outerjoin(reservation, reservation.c.unit_id == unit.c.id)
        .where(unit.c.task_id == of.id, unit.c.id > after)
        .order_by(unit.c.id)
        .limit(limit)
    )
    if state is not None:
        query = query.where(unit.c.state == UNIT_CODES[state])
    if did is not None:
        mine = select(project_file.c.unit_id).where(
            project_file.c.task_id == of.id, project_file.c.digest == digest(did)
        )
        query = query.where(unit.c.id.in_(mine))
    return [_file(row, of) for row in connection.execute(query).mappings()]


def _file(row: RowMapping, of: Facts) -> FileRow:
    own = msgspec.json.decode(row[unit_detail.c.attributes]) if row[unit_detail.c.attributes] else {}
    replicas = row[unit_detail.c.replicas]
    shown = ProjectFileView(
        id=row[unit.c.id],
        did=row[unit_detail.c.did] or "",
        state=UNIT_STATES[row[unit.c.state]],
        size=row[unit_detail.c.size],
        events=row[unit_detail.c.events],
        checksum=row[unit_detail.c.checksum],
        worker=row[reservation.c.worker],
        attempts=row[reservation.c.attempts] or 0,
        timeouts=row[unit.c.lost_pilots],
        reserved=row[reservation.c.reserved],
        expires=row[reservation.c.expires],
        attributes={**of.file_attributes, **own},
        error=row[unit_detail.c.error_detail] or "",
    )
    return FileRow(shown, msgspec.json.decode(replicas, type=list[ReplicaSpec]) if replicas else [])


# ---------------------------------------------------------------- signs of life


def seen(connection: Connection, of: Facts, now: float) -> None:
    """Write down that a worker was heard of, unless that was done a moment ago."""
    idle_at = None if of.idle_timeout_s is None else now + of.idle_timeout_s
    connection.execute(
        update(project)
        .where(project.c.task_id == of.id)
        .where(or_(project.c.active < now - of.idle_step_s / 2, project.c.idle_at.is_(None)))
        .values(active=now, idle_at=idle_at)
    )


def idle(connection: Connection, now: float, limit: int = 100) -> list[int]:
    """Projects of which nothing was heard for too long."""
    query = select(project.c.task_id).where(project.c.idle_at.is_not(None), project.c.idle_at <= now)
    return [row.task_id for row in connection.execute(query.order_by(project.c.idle_at).limit(limit))]


def still_idle(connection: Connection, task_id: int, now: float) -> bool:
    """Whether that is still so, its task's row being held; it is not looked at again until somebody is heard of."""
    found = connection.execute(
        update(project).where(project.c.task_id == task_id, project.c.idle_at <= now).values(idle_at=None)
    )
    return bool(found.rowcount)


def begun(connection: Connection, limit: int = 100) -> list[int]:
    """Projects whose task is ready though files were reserved of it already."""
    used = exists().where(reservation.c.task_id == task.c.id)
    query = select(task.c.id).where(task.c.state == TaskState.READY.value, task.c.outside, used)
    return [row.id for row in connection.execute(query.order_by(task.c.id).limit(limit))]


def failing(connection: Connection, task_ids: Iterable[int]) -> set[int]:
    """Those of some projects whose files fail when their worker times out."""
    query = select(project.c.task_id).where(project.c.task_id.in_(sorted(set(task_ids))), ~project.c.retry_on_timeout)
    return {row.task_id for row in connection.execute(query)}


def tasks_of(connection: Connection, unit_ids: Sequence[int]) -> set[int]:
    """The projects that reserved files belong to."""
    query = select(reservation.c.task_id).where(reservation.c.unit_id.in_(unit_ids)).distinct()
    return {row.task_id for row in connection.execute(query)}
