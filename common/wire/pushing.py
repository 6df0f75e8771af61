"""How harvester claims jobs for the workers of a queue in push mode, before it submits them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.wire.base import Message
from common.wire.harvesters import Shape
from common.wire.pilots import Refusal
from common.wire.workflows import Needs

MARKS = 1000
"""Workers of one request."""


class WorkersAcquireRequest(Message):
    """``POST /v1/workers:acquire``: jobs for planned workers of this harvester.

    A worker is given jobs once: the same call again gets the same ones.
    """

    harvester: str
    marks: Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=MARKS)]


class PushedJob(Message):
    """A job that waits for the pilot on ``node`` of its worker, and what it needs."""

    job_id: int
    task_id: int
    requirements: Needs
    node: int = 0


class WorkerJobs(Message):
    """What a worker got.

    One that is not ``accepted`` may get none, ``reason`` says why. One that is gets ``jobs`` and is to be submitted with
    ``shape``; or none (``refusals`` say why) and is not to be submitted; or with ``pull`` it is to be submitted as it is:
    its pilot will ask for itself.
    """

    mark: str
    accepted: bool
    reason: str = ""
    pull: bool = False
    jobs: list[PushedJob] = []
    shape: Shape = msgspec.field(default_factory=Shape)
    refusals: list[Refusal] = []


class WorkersAcquireReply(Message):
    """What each worker got, in order."""

    workers: list[WorkerJobs]
