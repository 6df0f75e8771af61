"""The agents that a server runs."""

from __future__ import annotations

from common.states import FINAL_TASK_STATES, TaskState
from server.agents.feed import feed_next_stage
from server.agents.resolve import resolve_input
from server.agents.runner import Agent
from server.agents.sweep import sweep_unconfirmed
from server.dispatch.context import Dispatcher
from server.dispatch.reap import reap_silent
from server.engine.tasks import ending
from server.store import agents, jobs, units, workflows
from server.store.database import Connection

LIVENESS_PERIOD_S = 2.0
"""How often the web side says that it is up."""
LIVENESS_GAP_S = 10.0
"""A longer gap means that it was down."""


def reap(dispatcher: Dispatcher) -> int:
    """Reap the silent, counting silence only while the server was up."""
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        up_since = agents.up_since(connection, LIVENESS_GAP_S, now)
    with dispatcher.database.write(durable=False) as connection:
        jobs.ask_kill_of_dead_tasks(connection, "its task was killed")
        jobs.clamp_future(connection, now)
    # An outage shorter than the gap counts as time when the server was up: it alone must lose nothing.
    return 0 if up_since is None else reap_silent(dispatcher, up_since, LIVENESS_GAP_S)


def recount(dispatcher: Dispatcher) -> int:
    """Recount buckets: fold the changes of counts, and say which buckets may have ready units."""
    with dispatcher.database.write() as connection:
        folded = units.roll_up(connection)
    # A trickle is left for the next period: looking again at once would spin on a busy system.
    return folded if folded >= 1000 else 0


def advance_tasks(dispatcher: Dispatcher) -> int:
    """Move tasks on: to running when they have jobs, to their end when all units are over."""
    open_states = [state for state in TaskState if state not in FINAL_TASK_STATES]
    with dispatcher.database.read() as connection:
        tasks = workflows.tasks_in(connection, open_states)
        all_counts = units.counts(connection, [task.id for task in tasks])
        ready = [task.id for task in tasks if task.state == TaskState.READY]
        with_jobs = {task_id for task_id in ready if jobs.any_of_task(connection, task_id)}
    moved = 0
    for task in tasks:
        if task.id in with_jobs or ending(task.state, all_counts[task.id], task.input_closed) is not None:
            with dispatcher.database.write() as connection:
                moved += _advance(connection, task.id, dispatcher.now())
    if moved:
        dispatcher.changed()
    return moved


def _advance(connection: Connection, task_id: int, now: float) -> bool:
    # Looked at again with its row held: a person may have had failed units tried again meanwhile.
    task = workflows.get_task(connection, task_id, lock=True)
    if task is None:
        return False
    verdict = ending(task.state, units.counts(connection, [task_id])[task_id], task.input_closed)
    if verdict is not None:
        return workflows.move(connection, task, verdict.state, now, reason=verdict.reason, final=True)
    return task.state == TaskState.READY and workflows.move(connection, task, TaskState.RUNNING, now)


DUTIES: tuple[Agent, ...] = (
    Agent("resolve-input", 0.5, resolve_input),
    Agent("feed-next-stage", 0.5, feed_next_stage),
    Agent("advance-tasks", 0.5, advance_tasks),
    Agent("recount-buckets", 1.0, recount),
    Agent("reap-silent", 2.0, reap),
    Agent("sweep-unconfirmed", 10.0, sweep_unconfirmed),
)
