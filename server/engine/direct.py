"""Direct jobs: where they may run, and what is to be done with a run next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, FINAL_WORKER_STATES, JobState, WorkerState
from common.wire.direct import DirectInstruction, DirectPlace

DEFAULT_PORT = 443
LOST = "lost:"
"""How the reason of a worker begins that harvester gave up because the batch system knows nothing of it any more."""


@dataclass(frozen=True)
class Facts:
    """What is known of a direct job: all that its state, in anybody's words, follows from.

    ``aborted``: its task was killed. ``worker`` and ``job`` are of its present or last run, if it has one: ``killing`` says
    that the computing element has taken the request to end it, ``lost`` that nobody knows of it any more, ``results`` that
    what it left is stored. ``fetch``: its owner wants what a failed run left.
    """

    described: bool
    aborted: bool = False
    worker: WorkerState | None = None
    job: JobState | None = None
    killing: bool = False
    lost: bool = False
    results: bool = False
    fetch: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing runs of it, nor will by itself."""
        return self.job in FINAL_JOB_STATES or (self.job is None and self.aborted)


JOB_STATES = {
    WorkerState.PLANNED: JobState.SENT,
    WorkerState.SUBMITTING: JobState.SENT,
    WorkerState.SUBMITTED: JobState.STARTING,
    WorkerState.HELD: JobState.STARTING,
    WorkerState.RUNNING: JobState.RUNNING,
    WorkerState.MISSING: None,
    WorkerState.FINISHED: JobState.HOLDING,
    WorkerState.FAILED: JobState.FAILED,
    WorkerState.CANCELLED: JobState.CANCELLED,
}
"""The state of a direct job by that of its worker; None: whatever it was. It is finished once its results are stored."""


def failure_of(reason: str, exit_code: int | None) -> ErrorCode:
    """Why a run failed: it is lost, its payload gave an exit code, or the computing element did not run it."""
    if reason.startswith(LOST):
        return ErrorCode.DECLARED_LOST
    return ErrorCode.PAYLOAD_FAILED if exit_code is not None else ErrorCode.RESOURCE_UNAVAILABLE


def instruction(
    facts: Facts | None, worker: WorkerState, *, kill: bool, stored: bool, wanted: bool
) -> DirectInstruction:
    """What is to be done with a run.

    ``facts`` are its job's, None if that is gone; ``wanted``: it is that job's present run. ``kill``: somebody asked for
    its end. ``stored``: its results are.
    """
    ended = worker in FINAL_WORKER_STATES
    if facts is None or not wanted:
        return DirectInstruction.CLEAN if ended else DirectInstruction.KILL
    if not ended:
        return DirectInstruction.KILL if kill else DirectInstruction.NONE
    if stored or worker is WorkerState.CANCELLED:
        return DirectInstruction.NONE
    if worker is WorkerState.FINISHED and facts.job not in FINAL_JOB_STATES:
        return DirectInstruction.FETCH
    return DirectInstruction.FETCH if facts.fetch else DirectInstruction.NONE


def place_for(clusters: Sequence[str], places: Sequence[DirectPlace]) -> DirectPlace | None:
    """The place where a job runs: the first that the first of its clusters names."""
    for cluster in clusters:
        for place in places:
            if names(cluster, place):
                return place
    return None


def names(cluster: str, place: DirectPlace) -> bool:
    """Whether a person means a place by the address of a cluster.

    ``https://host[:port]/QUEUE`` is a queue of the computing element there, ``https://host[:port]`` or its own address any.
    """
    asked, there = split(cluster), split(place.url)
    if asked is None or there is None or _host(asked) != _host(there):
        return False
    path = asked.path.strip("/")
    return path in ("", there.path.strip("/"), place.batch_queue)


def names_host(cluster: str, url: str) -> bool:
    """Whether two addresses are on the same host."""
    asked, there = split(cluster), split(url)
    return asked is not None and there is not None and _host(asked) == _host(there)


def address(place: DirectPlace) -> str:
    """How a place is named to people: its host and its own queue."""
    there = split(place.url)
    if there is None:
        return place.url
    return f"{there.scheme}://{there.netloc}/{place.batch_queue or there.path.strip('/')}"


def split(url: str) -> SplitResult | None:
    """The parts of an address, None if it is none."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:
        return None


def _host(parts: SplitResult) -> tuple[str, int]:
    return (parts.hostname or "").lower(), parts.port or DEFAULT_PORT
