"""Outputs find their datasets; jobs that have ended are written into the books: records and accounting."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from common.wire import OutputRole, QueueSpec
from server.dispatch.context import Dispatcher
from server.engine.accounting import EndedJob, sum_up
from server.engine.datasets import Naming, assign_numbers, base_name, datasets_of
from server.engine.provenance import OutputOrigin, UnitOrigin, job_document
from server.store import accounting, datasets, provenance, workflows
from server.store.database import Connection
from server.store.datasets import Attached
from server.store.outputs import OutputRow
from server.store.provenance import JobPlace, NewRecord
from server.store.workflows import TaskRow

logger = logging.getLogger(__name__)


def attach_outputs(dispatcher: Dispatcher, connection: Connection, rows: Sequence[OutputRow], now: float) -> None:
    """Put outputs into their datasets. Those that are in some already stay as they are, so that it may be repeated."""
    rows = [row for row in rows if row.pattern is not None and row.role == OutputRole.OUTPUT.value]
    if not rows:
        return
    datasets.lock(connection)
    there = datasets.in_any(connection, [row.id for row in rows])
    rows = [row for row in rows if row.id not in there]
    names = _Names(dispatcher, connection, {row.task_id for row in rows})
    numbers = _numbers(connection, names, rows)
    found = []
    for row in rows:
        base = names.base(row)
        if base is not None:
            scope, name, pattern = base
            own = datasets_of(name, pattern, row.storage, numbers.get(row.id))
            found.append(Attached(row.id, row.task_id, row.size, scope, name, own))
    datasets.attach(connection, found, now)


class _Names:
    """What the datasets of some tasks' outputs are called."""

    def __init__(self, dispatcher: Dispatcher, connection: Connection, task_ids: Collection[int]) -> None:
        self._tasks = {task.id: task for task in dispatcher.tasks.get_all(connection, task_ids)}
        self._workflows = workflows.names(connection, {task.workflow_id for task in self._tasks.values()})
        self._bases: dict[tuple[int, int | None], tuple[str, str, Any] | None] = {}

    def base(self, row: OutputRow) -> tuple[str, str, Any] | None:
        """Scope, what the names begin with, and the pattern; None when task or pattern are gone."""
        key = row.task_id, row.pattern
        if key not in self._bases:
            self._bases[key] = self._base(row)
        return self._bases[key]

    def _base(self, row: OutputRow) -> tuple[str, str, Any] | None:
        task = self._tasks.get(row.task_id)
        if task is None or row.pattern is None or row.pattern > len(task.spec.outputs):
            return None
        name = self._workflows.get(task.workflow_id, "")
        return task.scope, _base_of(task, row.pattern, name), task.spec.outputs[row.pattern - 1]


def dataset_names(connection: Connection, task: TaskRow) -> list[str]:
    """The datasets of all outputs of a task, one for each of its patterns."""
    if not task.spec.outputs:
        return []
    name = workflows.names(connection, {task.workflow_id}).get(task.workflow_id, "")
    found = [(_base_of(task, number, name), each) for number, each in enumerate(task.spec.outputs, 1)]
    return [datasets_of(base, pattern, "", None)[0].name for base, pattern in found]


def _base_of(task: TaskRow, number: int, workflow: str) -> str:
    """What the names of the datasets of a task's ``number``-th pattern begin with."""
    naming = Naming(
        workflow=task.workflow_id, name=workflow, stage=task.stage, task=task.id, pattern=number, owner=task.owner
    )
    return base_name(task.spec.outputs[number - 1].dataset, naming)


def _numbers(connection: Connection, names: _Names, rows: Sequence[OutputRow]) -> dict[int, int]:
    """The number of the numbered dataset for each output that has one."""
    groups: dict[tuple[str, str], list[int]] = {}
    most: dict[tuple[str, str], int] = {}
    for row in rows:
        base = names.base(row)
        if base is not None and base[2].max_files_per_dataset is not None:
            groups.setdefault(base[:2], []).append(row.id)
            most[base[:2]] = base[2].max_files_per_dataset
    found: dict[int, int] = {}
    filled = datasets.filled(connection, groups)
    for key, ids in groups.items():
        numbers, _ = assign_numbers(filled[key], most[key], len(ids))
        found |= dict(zip(ids, numbers, strict=True))
    return found


def write_books(dispatcher: Dispatcher, connection: Connection, limit: int, now: float) -> int:
    """Write jobs that have ended into the books and take them off the list, all in this transaction; how many."""
    ids = accounting.take_ended(connection, limit)
    if not ids:
        return 0
    found = provenance.jobs(connection, ids)
    if len(found) < len(set(ids)):
        gone = sorted(set(ids) - set(found))
        logger.error("%d jobs were deleted before they were written into the books: %s …", len(gone), gone[:10])
    visible = provenance.written(connection, list(found))
    attach_outputs(dispatcher, connection, visible, now)
    records = provenance.record_tasks(connection, {ended.task_id for ended, _ in found.values()})
    units = provenance.units(connection, list(found))
    written: dict[int, list[OutputRow]] = {}
    for row in visible:
        written.setdefault(row.job_id, []).append(row)
    provenance.record_jobs(
        connection,
        [
            NewRecord(
                ended, place, records[ended.task_id], document_of(ended, place, units[job_id], written.get(job_id, ()))
            )
            for job_id, (ended, place) in found.items()
        ],
    )
    queues = dispatcher.looks.get().world.queues
    usual = QueueSpec(name="unknown", site="unknown").core_power
    powers = {name: spec.core_power for name, spec in queues.items()}
    accounting.add(connection, sum_up((ended, powers.get(ended.queue, usual)) for ended, _ in found.values()))
    return len(ids)


def document_of(
    ended: EndedJob, place: JobPlace, units: Sequence[UnitOrigin], written: Sequence[OutputRow]
) -> dict[str, Any]:
    """All that is kept of a job."""
    job: dict[str, Any] = {
        "job": ended.id,
        "state": ended.state.value,
        "site": ended.site,
        "queue": ended.queue,
        "cores": ended.cores,
        "claimed": ended.claimed,
        "started": ended.started,
        "ended": ended.ended,
        "wall_s": ended.metrics.wall_s if ended.metrics else None,
        "cpu_s": ended.metrics.cpu_s if ended.metrics else None,
        **vars(place),
    }
    return job_document(job, units, [_origin(row) for row in written])


def _origin(row: OutputRow) -> OutputOrigin:
    return OutputOrigin(
        did=row.did,
        name=row.name,
        role=row.role,
        state=row.state.name.lower(),
        storage=row.storage,
        path=row.path,
        size=row.size,
        checksum=row.checksum,
        events=row.events,
        attributes=row.attributes,
    )
