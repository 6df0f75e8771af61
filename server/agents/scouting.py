"""Scouting: hold large tasks back until a few of their jobs have measured what the rest will need."""

from __future__ import annotations

from msgspec import structs

from common.states import FINAL_TASK_STATES, TaskState
from common.wire import Measured
from server.config import Knobs
from server.dispatch.context import Dispatcher
from server.engine import scouts
from server.engine.measure import measure
from server.engine.scouts import Tally
from server.engine.statuses import takes
from server.engine.world import World
from server.store import events, measurements, workflows
from server.store.database import Connection
from server.store.measurements import ScoutRow
from server.store.workflows import TaskRow

CHUNK = 500
"""Scouting tasks whose jobs are counted at once."""
JUDGED = (TaskState.SCOUTING, TaskState.RUNNING)


def scout(dispatcher: Dispatcher) -> int:
    """Decide which new tasks scout, count scouts, measure tasks when it is time; how many tasks were moved or measured."""
    look = dispatcher.looks.get()
    handled = _decide(dispatcher, look.knobs)
    handled += _watch(dispatcher, look.knobs, look.world)
    handled += _second_look(dispatcher, look.knobs)
    handled += _close(dispatcher, look.knobs)
    if handled:
        dispatcher.changed()
    return handled


def _decide(dispatcher: Dispatcher, knobs: Knobs) -> int:
    with dispatcher.database.read() as connection:
        ids = measurements.undecided(connection)
    for task_id in ids:
        with dispatcher.database.write() as connection:
            task = workflows.get_task(connection, task_id, lock=True)
            if task is None or task.state != TaskState.READY:
                continue
            wanted = scouts.wanted(task.spec, task.resolved, knobs)
            measurements.decide(connection, task_id, wanted, knobs.scout_count)
            if wanted:
                workflows.move(connection, task, TaskState.SCOUTING, dispatcher.now(), reason=_words(knobs))
    return len(ids)


def _words(knobs: Knobs) -> str:
    return f"{knobs.scout_count} jobs measure what the rest will need"


def _watch(dispatcher: Dispatcher, knobs: Knobs, world: World) -> int:
    """Count the scouts of each scouting task; measure those of which enough have finished."""
    sites = _open_sites(world)
    handled, after = 0, 0
    while True:
        with dispatcher.database.read() as connection:
            rows = measurements.scouting(connection, after, CHUNK)
            groups = measurements.job_groups(connection, [row.id for row in rows])
        for row in rows:
            handled += _watch_one(dispatcher, row, scouts.tally(groups[row.id]), sites, knobs)
        if len(rows) < CHUNK:
            return handled
        after = rows[-1].id


def _open_sites(world: World) -> int:
    return len({queue.site for queue in world.queues.values() if takes(queue.status, probe=False)})


def _watch_one(dispatcher: Dispatcher, row: ScoutRow, tally: Tally, sites: int, knobs: Knobs) -> bool:
    failure = scouts.failure(tally, knobs)
    if scouts.enough_finished(tally, knobs) or failure:
        with dispatcher.database.write() as connection:
            return _look_at(connection, row.id, knobs, dispatcher.now(), failure)
    left = scouts.left(tally, knobs)
    full = scouts.full_sites(tally, sites, dispatcher.now(), knobs)
    if (left, ",".join(full) or None) != (row.scouts_left, row.scout_sites):
        with dispatcher.database.write(durable=False) as connection:
            measurements.adjust(connection, row, left, full)
    return False


def _second_look(dispatcher: Dispatcher, knobs: Knobs) -> int:
    """Measure once more what has had a hundred jobs since."""
    with dispatcher.database.read() as connection:
        if not measurements.any_fresh(connection):
            return 0
    with dispatcher.database.write(durable=False) as connection:
        counts = measurements.count_fresh(connection)
    due = [task_id for task_id, n in counts.items() if n >= knobs.scout_second_look]
    handled = 0
    for task_id in due:
        with dispatcher.database.write() as connection:
            handled += _look_at(connection, task_id, knobs, dispatcher.now())
    return handled


def _look_at(connection: Connection, task_id: int, knobs: Knobs, now: float, failure: str = "") -> bool:
    """Measure a task by the jobs that have finished, and move it on: to running, or exhausted with the reason."""
    task = workflows.get_task(connection, task_id, lock=True)
    if task is None or (failure and task.state != TaskState.SCOUTING):
        return False
    measured, reasons = _measure(connection, task, knobs, now)
    if failure:
        reasons.insert(0, failure)
    # After its scouts a task is measured once more, by its first hundred ordinary jobs.
    scouted = task.state == TaskState.SCOUTING
    measurements.keep(connection, task_id, measured, go_on=scouted)
    events.add(connection, events.Event(now, "TASK_MEASURED", "task", task_id, task_id, detail=_detail(measured)))
    if reasons and task.state in JUDGED:
        words = "; ".join(reasons)
        return workflows.move(connection, task, TaskState.EXHAUSTED, now, reason=words, resume_state=TaskState.RUNNING)
    if scouted:
        return workflows.move(connection, task, TaskState.RUNNING, now, reason=f"measured by {measured.jobs} jobs")
    return True


def _measure(connection: Connection, task: TaskRow, knobs: Knobs, now: float) -> tuple[Measured, list[str]]:
    """What the task's jobs show, and what of it a person must look at (nothing, if the user wants no scouts)."""
    samples = measurements.samples(connection, task.id)
    measured = measure(samples, measurements.measured_of(connection, task.id), now, knobs)
    found = scouts.problems(samples, measured, task.spec, knobs) if task.spec.scouts else []
    told = [*measured.problems, *(each.kind for each in found)]
    return structs.replace(measured, problems=told), [each.words for each in found]


def _detail(measured: Measured) -> dict[str, object]:
    figures = structs.asdict(measured)
    return {name: value for name, value in figures.items() if value is not None and name != "time"}


def _close(dispatcher: Dispatcher, knobs: Knobs) -> int:
    """Measure tasks that ended before they had a hundred jobs, for those who look, and forget their rows."""
    with dispatcher.database.read() as connection:
        ids = measurements.over(connection)
    for task_id in ids:
        with dispatcher.database.write(durable=False) as connection:
            task = workflows.get_task(connection, task_id, lock=True)
            if task is None or task.state not in FINAL_TASK_STATES:
                continue
            samples = measurements.samples(connection, task_id)
            before = measurements.measured_of(connection, task_id)
            measured = measure(samples, before, dispatcher.now(), knobs) if samples and before is None else None
            measurements.keep(connection, task_id, measured, go_on=False)
    return len(ids)
