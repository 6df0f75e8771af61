"""Probe jobs: each site, and its slots with GPUs, gets one in every interval; one that did not run is given up first."""

from __future__ import annotations

from common.events import EventKind
from common.states import FINAL_TASK_STATES
from common.wire import ProbeState, TaskCommand
from server.config import Knobs
from server.dispatch import commands
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, NotFound
from server.dispatch.submit import default_scope
from server.engine.access import Caller, Role
from server.engine.probes import OWNER, Place, Run, first_due, places_of, stopped, workflow_of
from server.store import deletions, events, probes, tasks, workflows
from server.store.database import Connection

SYSTEM = Caller(OWNER, frozenset({Role.ADMIN}))


def probe_sites(dispatcher: Dispatcher) -> int:
    """Begin the probes that are due, give up those that did not run; how many."""
    look, now = dispatcher.looks.get(), dispatcher.now()
    knobs = look.knobs
    wanted = places_of(look.world, now) if knobs.probe_interval_s else set()
    with dispatcher.database.read() as connection:
        known = probes.runs(connection)
    handled = 0
    for run in known:
        reason = stopped(run, now, FINAL_TASK_STATES)
        if reason:
            handled += _miss(dispatcher, run, reason, now)
    with dispatcher.database.write() as connection:
        for place in sorted(wanted - {run.place for run in known}):
            probes.add_place(connection, place, first_due(place, knobs.probe_interval_s, now))
        probes.forget(connection, look.world.sites, look.world.storages)
    with dispatcher.database.read() as connection:
        known = probes.runs(connection)
    for run in known:
        if run.place in wanted and run.due <= now and run.state is not ProbeState.ASKED:
            handled += _begin(dispatcher, run, knobs, now)
    _tidy(dispatcher, now)
    return handled


def _miss(dispatcher: Dispatcher, run: Run, reason: str, now: float) -> int:
    """A probe that has not run is cancelled, so that they never pile up, and counted."""
    if run.task_id is not None and run.task_state is not None and run.task_state not in FINAL_TASK_STATES:
        try:
            commands.command(dispatcher, SYSTEM, run.task_id, TaskCommand("kill", reason=reason))
        except (Conflict, NotFound):
            return 0  # it has just ended: the next look says how
    with dispatcher.database.write() as connection:
        if not probes.miss(connection, run, reason, now):
            return 0
        if not run.missed:
            detail: dict[str, object] = {"gpu": run.place.gpu, "reason": reason}
            kind = EventKind.PROBE_MISSED
            events.add(connection, events.Event(now, kind, "site", run.place.site, run.task_id, detail=detail))
    return 1


def _begin(dispatcher: Dispatcher, run: Run, knobs: Knobs, now: float) -> int:
    with dispatcher.database.write() as connection:
        if not probes.hold(connection, run):
            return 0  # somebody else began one
        leftovers = probes.unreported(connection, run.task_id) if run.task_id is not None else []
        ids = _submit(connection, run.place, knobs, now)
        probes.begin(connection, run.place, ids, leftovers, now, now + knobs.probe_interval_s)
    dispatcher.changed()
    return 1


def _submit(connection: Connection, place: Place, knobs: Knobs, now: float) -> tuple[int, int]:
    """The workflow and the task of a place's next probe."""
    request = workflow_of(place, knobs.probe_total_s)
    workflow_id = workflows.add(connection, request, OWNER, default_scope(OWNER), now)
    return workflow_id, tasks.of_workflow(connection, workflow_id)[0]


def _tidy(dispatcher: Dispatcher, now: float) -> None:
    """Take away what earlier probes have left in the books: their results are kept apart."""
    with dispatcher.database.read() as connection:
        gone = probes.over(connection)
    for workflow_id, task_id in gone:
        with dispatcher.database.write() as connection:
            deletions.hold_tasks(connection, workflow_id)
            while deletions.delete_slice(connection, task_id, commands.SLICE):
                pass
            deletions.delete_rest(connection, workflow_id, now)
