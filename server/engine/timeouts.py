"""How long a job or a task may stay in a state (PanDA documentation, "timeout rules").

PanDA's ``assigned`` and fast rebrokerage have no counterpart: nothing is assigned to a queue before a pilot claims it. Jobs
that were claimed for a pilot which is only expected have no time-out: they end with its worker, and their times begin with it.
Its heartbeat rule is the reaper's. Silence of the server is nobody's fault, see :func:`overdue`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.errors import ErrorCode
from common.states import JobState, ResourceState, TaskState
from server.engine.world import World


class Action(str, Enum):
    """What is done about it."""

    FAIL = "fail"
    """The job fails, its units go back."""
    TELL = "tell"
    """An event, and the words beside the task's state; once for each time in the state."""
    RESUME = "resume"
    """The task runs again."""


@dataclass(frozen=True)
class JobTimeout:
    """A state of jobs. ``urgent_knob`` is for tasks whose priority is at least the knob ``urgent_priority``."""

    state: JobState
    knob: str
    error: ErrorCode
    urgent_knob: str = ""
    action: Action = Action.FAIL


@dataclass(frozen=True)
class TaskTimeout:
    """A state of tasks. ``words`` say what a person may do."""

    state: TaskState
    knob: str
    words: str
    action: Action = Action.TELL


JOB_TIMEOUTS: tuple[JobTimeout, ...] = (
    JobTimeout(JobState.SENT, "timeout_sent_s", ErrorCode.STATE_TIMEOUT),
    JobTimeout(JobState.STARTING, "timeout_starting_s", ErrorCode.STATE_TIMEOUT, "timeout_starting_urgent_s"),
    JobTimeout(JobState.RUNNING, "timeout_running_s", ErrorCode.WALL_TIME_REACHED),
    JobTimeout(JobState.HOLDING, "timeout_holding_s", ErrorCode.STATE_TIMEOUT, "timeout_holding_urgent_s"),
    JobTimeout(
        JobState.TRANSFERRING, "timeout_transferring_s", ErrorCode.STATE_TIMEOUT, "timeout_transferring_urgent_s"
    ),
)
"""Every state of a live job."""

TASK_TIMEOUTS: tuple[TaskTimeout, ...] = (
    TaskTimeout(TaskState.REGISTERED, "timeout_defined_s", "it was not looked at yet: look whether the agents run"),
    TaskTimeout(TaskState.DEFINED, "timeout_defined_s", "its input is not resolved yet: look at the catalogue"),
    TaskTimeout(TaskState.PENDING, "timeout_pending_s", "it still waits for input"),
    TaskTimeout(TaskState.READY, "timeout_ready_s", "no slot has taken any of it: ask pilotage why"),
    TaskTimeout(TaskState.THROTTLED, "timeout_throttled_s", "throttled for long enough: tried again", Action.RESUME),
)
"""States of tasks that somebody should leave by himself; in the others they may stay."""


def limit_of(row: JobTimeout, knobs: object, priority: int) -> float:
    """Seconds that a job of a task with this priority may stay in the state."""
    urgent = row.urgent_knob and priority >= int(getattr(knobs, "urgent_priority"))  # noqa: B009 - as with the others
    return float(getattr(knobs, row.urgent_knob if urgent else row.knob))


def least_limit(row: JobTimeout, knobs: object) -> float:
    """The shortest time that any job may stay in the state."""
    return min(float(getattr(knobs, knob)) for knob in (row.knob, row.urgent_knob) if knob)


def overdue(since: float, limit_s: float, up_since: float, grace_s: float, now: float) -> bool:
    """Whether something is in its state for too long.

    After an outage of the server everybody first gets ``grace_s`` (or the limit, if that is shorter) to say that it has
    moved on meanwhile.
    """
    return now - since >= limit_s and now - up_since >= min(limit_s, grace_s)


def exempt(world: World, queue: str) -> bool:
    """Whether jobs of a queue may stay in any state: it or its site is paused, or an admin says so (``no_reassign``)."""
    spec = world.queues.get(queue)
    if spec is None:
        return False
    site = world.sites.get(spec.site)
    paused = spec.status == ResourceState.PAUSED or (site is not None and site.status == ResourceState.PAUSED)
    return paused or spec.no_reassign


@dataclass(frozen=True)
class Silence:
    """What decides how long a pilot may be silent. Times in seconds.

    The server may have been away for ``unnoticed_s`` without its books showing it, so that no shorter silence counts.
    """

    timeout_s: float
    worker_end_grace_s: float
    heartbeat_s: float
    unnoticed_s: float = 0.0

    @property
    def least_s(self) -> float:
        """No shorter silence loses anything: two heartbeats in any case."""
        return max(self.worker_end_grace_s, 2 * self.heartbeat_s)

    def limit(self, world: World, queue: str, worker_ended: bool) -> float | None:
        """How long a pilot of a queue may be silent; None for ever.

        One whose worker has ended for the batch system for a shorter time only, whatever the queue says: but the batch
        system's word alone loses nothing, as a heartbeat outranks it.
        """
        if worker_ended:
            return self.least_s
        if exempt(world, queue):
            return None
        spec = world.queues.get(queue)
        own = spec.heartbeat_timeout_s if spec is not None else 0
        return max(own or self.timeout_s, self.unnoticed_s + 2 * self.heartbeat_s)
