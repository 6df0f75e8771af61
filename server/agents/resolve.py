"""Resolve input: make the units of tasks, a slice at a time, so that a million-file task blocks nobody.

File lists wait in parts beside their task; datasets are asked of their catalogue page by page, outside of any
transaction. An open input is looked at again when somebody adds files, a dataset's from time to time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from common.states import TaskState
from common.wire import CounterInput, DatasetInput, FilesInput, FileSpec, SingleInput, StageInput
from server.agents.making import empty_streams, make_units, missing_stages
from server.catalogs.base import CatalogError, CatalogUnavailable, Page, UnknownDataset
from server.dispatch.context import Dispatcher
from server.engine.inputs import matches, sources_of
from server.engine.outcomes import site_wait
from server.store import events, inputs, recalls, units, workflows
from server.store.database import Connection
from server.store.inputs import Source
from server.store.units import NewUnit
from server.store.workflows import TaskRow

logger = logging.getLogger(__name__)

SLICE = 5000
"""Units made in one transaction, of what needs no list."""
WAITING = (TaskState.DEFINED, TaskState.PENDING)
"""States of tasks that wait for their first units."""


def resolve_input(dispatcher: Dispatcher) -> int:
    """One slice of each task whose input is not resolved yet; how many tasks."""
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        plain = inputs.without_source(connection)
        listed = inputs.due(connection, now)
        ended = inputs.ended(connection)
    if ended:
        with dispatcher.database.write() as connection:
            inputs.put_aside(connection, ended)
    for task_id in plain:
        _resolve_plain(dispatcher, task_id)
    for task_id in listed:
        _resolve_listed(dispatcher, task_id)
    if plain or listed:
        dispatcher.changed()
    return len(plain) + len(listed)


# ---------------------------------------------------------------- counters, single units, outputs of stages


def _resolve_plain(dispatcher: Dispatcher, task_id: int) -> None:
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        task = workflows.get_task(connection, task_id, lock=True)
        if task is None or task.state != TaskState.DEFINED:
            return
        given = task.spec.input
        if isinstance(given, StageInput):
            names = ", ".join(each.stage for each in sources_of(given))
            _begin(connection, task, task.resolved, f"takes the outputs of stage {names}", now)
            return
        made = list(_slice(task))
        if made:
            units.create(connection, task.id, made, now)
        resolved = task.resolved + len(made)
        closed = resolved >= (given.count if isinstance(given, CounterInput) else 1)
        workflows.set_resolved(connection, task.id, resolved, closed)
        if closed:
            _begin(connection, task, resolved, "", now)


def _slice(task: TaskRow) -> Iterator[NewUnit]:
    given = task.spec.input
    first = task.resolved
    if isinstance(given, CounterInput):
        for seq in range(first, min(first + SLICE, given.count)):
            yield NewUnit(seq, counter=given.first + seq, events=given.events)
    elif isinstance(given, SingleInput):
        yield NewUnit(0)


def _begin(connection: Connection, task: TaskRow, claimable: int, reason: str, now: float) -> None:
    """Move a task on whose input was resolved: to ready if a job can be made, else it waits, and says what for."""
    missing = missing_stages(connection, task)
    problem = "" if missing else empty_streams(connection, task)
    if missing:
        _wait(connection, task, f"waits for the end of stage {', '.join(missing)}", now)
    elif problem:
        workflows.move(connection, task, TaskState.BROKEN, now, reason=problem, final=True)
    elif claimable:
        workflows.move(connection, task, TaskState.READY, now)
    else:
        _wait(connection, task, reason, now)


def _wait(connection: Connection, task: TaskRow, reason: str, now: float) -> None:
    if task.state == TaskState.PENDING:
        workflows.explain(connection, task, reason)
    else:
        workflows.move(connection, task, TaskState.PENDING, now, reason=reason)


# ---------------------------------------------------------------- file lists and datasets


def _resolve_listed(dispatcher: Dispatcher, task_id: int) -> None:
    with dispatcher.database.read() as connection:
        task = workflows.get_task(connection, task_id)
        source = inputs.source_of(connection, task_id)
    if task is None or source is None:
        return
    given = task.spec.input
    if isinstance(given, FilesInput):
        _take_part(dispatcher, task_id)
    elif isinstance(given, DatasetInput):
        try:
            page = _ask(dispatcher, given, source.after)
        except CatalogError as error:
            _note_failure(dispatcher, task_id, source, given, error)
        else:
            _take_page(dispatcher, task_id, source, page)


def _take_part(dispatcher: Dispatcher, task_id: int) -> None:
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        held = _hold(connection, task_id)
        if held is None:
            return
        task, source = held
        part = inputs.first_chunk(connection, task_id)
        more = False
        files: list[FileSpec] = []
        if part is not None:
            number, files = part
            more = inputs.drop_chunk(connection, task_id, number)
        _take(dispatcher, connection, task, source, files, now if more else None, now)


def _hold(connection: Connection, task_id: int) -> tuple[TaskRow, Source] | None:
    task = workflows.get_task(connection, task_id, lock=True)
    source = inputs.source_of(connection, task_id)
    if task is None or source is None or task.input_closed or task.state.value not in inputs.WORKABLE:
        return None
    return task, source


def _ask(dispatcher: Dispatcher, given: DatasetInput, after: str) -> Page:
    catalog = dispatcher.plugins.catalogs.get(given.catalog)
    if catalog is None:
        raise CatalogUnavailable("the server's configuration has no such catalogue any more")
    return catalog.files(given.query, after)


def _take_page(dispatcher: Dispatcher, task_id: int, asked: Source, page: Page) -> None:
    now = dispatcher.now()
    knobs = dispatcher.looks.get().knobs
    with dispatcher.database.write() as connection:
        held = _hold(connection, task_id)
        if held is None or held[1].after != asked.after:
            return  # somebody else took this page
        task, source = held
        source = replace(source, after=page.after or "", failures=0)
        again = now if page.after is not None else None if source.closing else now + knobs.dataset_period_s
        _take(dispatcher, connection, task, source, page.files, again, now)


def _take(
    dispatcher: Dispatcher,
    connection: Connection,
    task: TaskRow,
    source: Source,
    files: Sequence[FileSpec],
    again: float | None,
    now: float,
) -> None:
    """Make units of those files that the task wants, and move it on. ``again`` says when there is more to look at."""
    given = task.spec.input
    assert isinstance(given, (FilesInput, DatasetInput))
    chosen = [file for file in files if matches(file.did, given.pattern)]
    if given.open or isinstance(given, DatasetInput):
        chosen = inputs.take_new(connection, task.id, chosen)
    if given.limit is not None:
        chosen = chosen[: max(0, given.limit - source.files)]
    made = make_units(dispatcher, connection, task, chosen, now)
    source = replace(source, files=source.files + len(chosen), next_at=again)
    enough = given.limit is not None and source.files >= given.limit
    closed = enough or (source.closing and again is None)
    resolved = task.resolved + made
    workflows.set_resolved(connection, task.id, resolved, closed)
    if closed and (enough or not given.open):
        inputs.drop(connection, [task.id])
    else:
        inputs.save(connection, source)
    at_its_end = closed or again is None or again > now
    if task.state in WAITING and at_its_end:
        _settle(connection, task, resolved, closed, now)


def _settle(connection: Connection, task: TaskRow, resolved: int, closed: bool, now: float) -> None:
    """A task whose input was gone through once: it begins, or waits for a tape or for more, or is broken."""
    if closed and not resolved:
        reason = "its input holds no file that matches"
        workflows.move(connection, task, TaskState.BROKEN, now, reason=reason, final=True)
        return
    reason = "its files are being recalled from tape" if resolved else "its input is open: it waits for files"
    _begin(connection, task, resolved - recalls.waiting(connection, task.id), reason, now)


def _note_failure(
    dispatcher: Dispatcher, task_id: int, asked: Source, given: DatasetInput, error: CatalogError
) -> None:
    """A catalogue did not answer: break a task that asks for what is not there, else try again later and say why."""
    now = dispatcher.now()
    words = f"catalogue {given.catalog}: {error}"[:2000]
    with dispatcher.database.write() as connection:
        held = _hold(connection, task_id)
        if held is None or held[1].after != asked.after:
            return
        task, source = held
        if isinstance(error, UnknownDataset) and task.state in WAITING and not task.resolved:
            workflows.move(connection, task, TaskState.BROKEN, now, reason=words, final=True)
            inputs.drop(connection, [task_id])
            return
        wait = site_wait(source.failures + 1)
        inputs.save(connection, replace(source, failures=source.failures + 1, next_at=now + wait))
        detail = {"catalog": given.catalog, "reason": words, "failures": source.failures + 1}
        events.add(connection, events.Event(now, "CATALOG_FAILED", "task", task_id, task_id, detail=detail))
        if task.state in WAITING:
            _wait(connection, task, words, now)
    logger.warning("task %d: %s; asked again in %.0f s", task_id, words, wait)
