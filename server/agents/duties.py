"""The agents that a server runs."""

from __future__ import annotations

from server.agents.accounting import keep_books
from server.agents.blackhole import forget_failures, tell_outgrown
from server.agents.demand import split_work
from server.agents.feed import feed_next_stage
from server.agents.housekeeping import keep_house
from server.agents.import_world import import_world
from server.agents.measure import measure_system
from server.agents.notices import deliver_notices, write_notices
from server.agents.probes import probe_sites
from server.agents.projects import mind_projects, time_out_workers
from server.agents.publish import publish_events
from server.agents.registrar import register_outputs
from server.agents.resolve import resolve_input
from server.agents.runner import Agent
from server.agents.scouting import scout
from server.agents.stage_tape import release_tape, stage_tape
from server.agents.sweep import sweep_unconfirmed
from server.agents.tasks import advance_all, advance_tasks, pause_problem_tasks
from server.agents.timeouts import time_out_jobs, time_out_tasks
from server.dispatch import delegations, direct, harvesters, peeks
from server.dispatch.cloning import delete_workflows
from server.dispatch.context import Dispatcher
from server.dispatch.logs import drop_old
from server.dispatch.preassigned import release_forsaken
from server.dispatch.reap import reap_silent
from server.dispatch.sandboxes import drop_unused
from server.store import agents, job_counts, jobs, units

LIVENESS_PERIOD_S = 2.0
"""How often the web side says that it is up."""
LIVENESS_GAP_S = 10.0
"""A longer gap means that it was down."""
CLAIM_S = 3600.0
"""A claim that was under way when its task was killed has long been committed by then."""


def reap(dispatcher: Dispatcher) -> int:
    """Reap the silent, counting silence only while the server was up."""
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        up_since = agents.up_since(connection, LIVENESS_GAP_S, now)
    with dispatcher.database.write(durable=False) as connection:
        jobs.ask_kill_of_dead_tasks(connection, "its task was killed", now - CLAIM_S)
    release_forsaken(dispatcher)
    # An outage shorter than the gap counts as time when the server was up: it alone must lose nothing.
    return 0 if up_since is None else reap_silent(dispatcher, up_since, LIVENESS_GAP_S)


def recount(dispatcher: Dispatcher) -> int:
    """Recount buckets: fold the changes of counts, and say which buckets may have ready units."""
    with dispatcher.database.write() as connection:
        folded = units.roll_up(connection) + job_counts.roll_up(connection)
    # What came meanwhile is left for the next period: the more there is of a bucket or a queue, the less each costs.
    return folded if folded >= units.ROLLED_UP else 0


def sum_up(dispatcher: Dispatcher) -> int:
    """Sum up the cores that shares and owners use anew; between two times the changes of counts are added to them."""
    with dispatcher.database.write(durable=False) as connection:
        job_counts.sum_up(connection)
    return 0


DUTIES: tuple[Agent, ...] = (
    Agent("resolve-input", 0.5, resolve_input),
    Agent("feed-next-stage", 0.5, feed_next_stage),
    Agent("import-world", 10.0, import_world),
    Agent("stage-tape", 5.0, stage_tape),
    Agent("release-tape", 60.0, release_tape),
    Agent("scout", 0.5, scout),
    Agent("advance-tasks", 0.5, advance_tasks),
    Agent("advance-all-tasks", 60.0, advance_all),
    Agent("pause-problem-tasks", 5.0, pause_problem_tasks),
    Agent("delete-workflows", 5.0, delete_workflows),
    Agent("drop-sandboxes", 600.0, drop_unused),
    Agent("drop-logs", 600.0, drop_old),
    Agent("drop-peeks", 600.0, peeks.drop_old),
    Agent("drop-harvester-commands", 600.0, harvesters.drop_old),
    Agent("drop-direct-jobs", 600.0, direct.drop_old),
    Agent("drop-proxies", 600.0, delegations.drop_old),
    Agent("write-notices", 5.0, write_notices),
    Agent("deliver-notices", 5.0, deliver_notices),
    Agent("recount-buckets", 1.0, recount),
    Agent("sum-up-use", 300.0, sum_up),
    Agent("split-work", 10.0, split_work),
    Agent("reap-silent", 2.0, reap),
    Agent("time-out-jobs", 10.0, time_out_jobs),
    Agent("time-out-tasks", 60.0, time_out_tasks),
    Agent("time-out-workers", 2.0, time_out_workers),
    Agent("mind-projects", 2.0, mind_projects),
    Agent("probe-sites", 10.0, probe_sites),
    Agent("tell-outgrown", 30.0, tell_outgrown),
    Agent("forget-failures", 60.0, forget_failures),
    Agent("register-outputs", 1.0, register_outputs),
    Agent("keep-books", 2.0, keep_books),
    Agent("sweep-unconfirmed", 10.0, sweep_unconfirmed),
    Agent("measure-system", 10.0, measure_system),
    Agent("publish-events", 2.0, publish_events),
    Agent("keep-house", 600.0, keep_house),
)
