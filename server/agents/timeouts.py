"""Time-outs: what stays in a state for too long is failed, tried again, or told."""

from __future__ import annotations

import functools

from common.errors import ErrorCode
from common.states import JobState, TaskState
from server.dispatch.context import Dispatcher
from server.dispatch.reap import give_up
from server.engine.timeouts import (
    JOB_TIMEOUTS,
    TASK_TIMEOUTS,
    Action,
    JobTimeout,
    TaskTimeout,
    exempt,
    least_limit,
    limit_of,
    overdue,
)
from server.engine.world import World
from server.store import agents, events, watches, workflows
from server.store.database import Connection
from server.store.jobs import JobRow
from server.store.watches import WatchedJob, WatchedTask

SLICE = 20_000
"""Live jobs that one round looks at."""
CURSOR = "time-out-jobs"
UP_GAP_S = 10.0
"""A server that has not said for so long that it is up was down."""
WATCHED_STATES = (JobState.HOLDING, JobState.TRANSFERRING)
"""States of which the job's row does not say since when."""
ORPHANED_S = 600.0
"""How long a job may live whose pilot has gone: a claim may have been under way when it went."""

_ROWS = {row.state: row for row in JOB_TIMEOUTS}
_TASK_ROWS = {row.state: row for row in TASK_TIMEOUTS}


def time_out_jobs(dispatcher: Dispatcher) -> int:
    """Fail the jobs of one slice that are in their state for too long; how many."""
    now = dispatcher.now()
    knobs = dispatcher.looks.get().knobs
    ages = {row.state: 0.0 if row.state in WATCHED_STATES else least_limit(row, knobs) for row in JOB_TIMEOUTS}
    with dispatcher.database.read() as connection:
        up_since = agents.up_since(connection, UP_GAP_S, now)
        after = watches.cursor(connection, CURSOR)
        found, following = watches.live_jobs(connection, ages, after, SLICE, now)
    failed = 0
    if up_since is not None:
        failed = sum(_time_out(dispatcher, each, up_since, now) for each in found)
    unwatched = [each for each in found if each.state in WATCHED_STATES and each.since is None]
    with dispatcher.database.write(durable=False) as connection:
        watches.watch_jobs(connection, unwatched, now)
        if following is None:
            watches.purge_jobs(connection)
        if (following or 0) != after:
            watches.set_cursor(connection, CURSOR, following or 0)
    return failed


def _time_out(dispatcher: Dispatcher, job: WatchedJob, up_since: float, now: float) -> bool:
    look = dispatcher.looks.get()
    if not job.pilot_active:
        if now - max(job.claimed, up_since) < ORPHANED_S:
            return False
        return give_up(dispatcher, job.id, ErrorCode.WORKER_LOST, "its pilot had gone", functools.partial(_same, job))
    row = _ROWS[job.state]
    since = _since(job)
    if since is None or not _is_over(row, look.world, look.knobs, job, since, up_since, now):
        return False
    words = f"{job.state.value} for {now - since:.0f} s, longer than the setting {row.knob} allows"
    return give_up(dispatcher, job.id, row.error, words, functools.partial(_same, job))


def _is_over(
    row: JobTimeout, world: World, knobs: object, job: WatchedJob, since: float, up_since: float, now: float
) -> bool:
    grace_s = float(getattr(knobs, "heartbeat_timeout_s"))  # noqa: B009 - a name of the table, as all knobs here
    limit_s = limit_of(row, knobs, job.priority)
    return not exempt(world, job.queue) and overdue(since, limit_s, up_since, grace_s, now)


def _since(job: WatchedJob) -> float | None:
    """Since when a job is in its state, as far as is known."""
    if job.state in WATCHED_STATES:
        return job.since
    if job.state == JobState.RUNNING:
        return job.started or job.claimed
    return job.claimed


def _same(seen: WatchedJob, held: JobRow) -> bool:
    return held.state == seen.state


def time_out_tasks(dispatcher: Dispatcher) -> int:
    """Tell of tasks that stay in a state for too long, and try throttled ones again; how many."""
    now = dispatcher.now()
    knobs = dispatcher.looks.get().knobs
    with dispatcher.database.write(durable=False) as connection:
        watches.watch_tasks(connection, [row.state for row in TASK_TIMEOUTS], now)
    before = {row.state: now - float(getattr(knobs, row.knob)) for row in TASK_TIMEOUTS}
    with dispatcher.database.read() as connection:
        found = watches.untold_tasks(connection, before)
    for each in found:
        with dispatcher.database.write() as connection:
            _tell(connection, each, _TASK_ROWS[each.state], now)
    if found:
        dispatcher.changed()
    return len(found)


def _tell(connection: Connection, watched: WatchedTask, row: TaskTimeout, now: float) -> None:
    task = workflows.get_task(connection, watched.id, lock=True)
    if task is None or task.state != watched.state or not watches.mark_told(connection, watched):
        return
    words = f"{row.words} ({watched.state.value} for {now - watched.since:.0f} s)"
    detail = {"reason": words}
    events.add(
        connection,
        events.Event(now, "TASK_OVERDUE", "task", task.id, task.id, source=task.state, detail=detail),
    )
    if row.action == Action.RESUME:
        workflows.move(connection, task, TaskState.RUNNING, now, reason=words)
    elif not task.state_reason:
        workflows.explain(connection, task, words)
