"""Queues in push mode: between a worker's plan and its submission the server claims jobs for it.

A plan that the server has accepted counts as reported, and is submitted, only once its jobs are claimed. Until then every
cycle announces it again and asks again: the server gives a worker jobs once, and the same ones each time, so that a lost
answer or ``kill -9`` at any point loses none and claims none twice. A worker for which there is nothing is never submitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import PilotageError
from common.states import WorkerState
from common.wire import Shape, WorkerJobs
from harvester.outcome import Outcome
from harvester.secret_files import SecretFiles
from harvester.store import Worker
from harvester.workers import Workers, moved

WORKERS_PER_CALL = 100
"""Workers that jobs are claimed for in one call: each is a transaction of the server."""


class Claims(Protocol):
    """The call that claims. It may be repeated. Raises common.http.HttpError."""

    def acquire(self, marks: Sequence[str]) -> list[WorkerJobs]:
        """Claim jobs for at most WORKERS_PER_CALL planned workers; what each got, in order."""


@dataclass
class Sorted:
    """Workers by what the server has for them: those to submit, their shapes where they change; those to withdraw, and why."""

    ready: list[Worker] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    unwanted: dict[str, str] = field(default_factory=dict)


def claim_jobs(
    server: Claims, workers: Workers, secrets: SecretFiles, planned: Sequence[Worker], done: Outcome
) -> None:
    """Claim jobs for planned workers whose plans the server has accepted, and note which may be submitted.

    Raises Unwritable or StoreError: then nothing is noted, and the next cycle asks again.
    """
    for begin in range(0, len(planned), WORKERS_PER_CALL):
        if done.server_down:
            return
        part = planned[begin : begin + WORKERS_PER_CALL]
        try:
            answers = server.acquire([worker.mark for worker in part])
        except PilotageError as error:
            done.note("no jobs can be claimed for workers", error)
            return
        found = sort_out(part, {answer.mark: answer for answer in answers})
        workers.set_shapes(found.shapes)
        workers.mark_reported(found.ready)
        unwanted = [moved(one, WorkerState.CANCELLED, why) for one in part if (why := found.unwanted.get(one.mark))]
        done.count(workers.apply(unwanted))
        secrets.remove(found.unwanted)


def sort_out(planned: Sequence[Worker], answers: Mapping[str, WorkerJobs]) -> Sorted:
    """What follows for each worker from what it got."""
    found = Sorted()
    for worker in planned:
        answer = answers[worker.mark]
        if not answer.accepted:
            found.unwanted[worker.mark] = f"the server claims no jobs for it: {answer.reason}"
        elif not (answer.jobs or answer.pull):
            found.unwanted[worker.mark] = _nothing(answer)
        else:
            found.ready.append(worker)
            if answer.shape != worker.shape:
                found.shapes[worker.mark] = answer.shape
    return found


def _nothing(answer: WorkerJobs) -> str:
    why = "; ".join(f"task {each.task_id}: {each.filter}: {each.detail}" for each in answer.refusals[:3])
    return f"not submitted: there are no jobs for it{f' ({why})' if why else ''}"
