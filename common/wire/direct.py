"""Direct jobs: a person's own description runs on a computing element without a pilot (``docs/adr/0012``).

A direct job is a task with one unit, itself. Harvester claims it on behalf, as in push mode; the worker is the job on the
computing element, and its states are what the backend reports. All calls may be repeated, are for many at once, and answer
for each.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.states import WorkerState
from common.wire.base import Count, Id, Message, NonNegative, Number

Mark = Annotated[str, msgspec.Meta(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_\-]+$(?!\n)")]
Address = Annotated[str, msgspec.Meta(min_length=1, max_length=2048, pattern=r"^https?://[^\x00-\x20]+$(?!\n)")]
Words = Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]*$")]
FilePath = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=1024,
        pattern=r"^(?!/)(?!.*//)(?!(.*/)?\.{1,2}(/|$))[^\x00-\x1f\x7f\\]*[^\x00-\x1f\x7f\\/]$(?!\n)",
    ),
]
"""A file below a job's folder: relative, its parts joined by single slashes, none of them ``.`` or ``..``."""
MOST_DIRECT = 1000
"""Direct jobs of one request."""


class Language(str, Enum):
    """What a description is written in."""

    XRSL = "xrsl"
    """ARC's extended resource specification language."""
    ADL = "adl"
    """EMI's activity description language (XML)."""


class DirectPlace(Message):
    """A queue of harvester that takes direct jobs: the computing element's ``url``, and its own queue, if one is named."""

    queue: str
    url: Address
    batch_queue: Annotated[str, msgspec.Meta(max_length=255)] = ""


class DirectAcquireRequest(Message):
    """``POST /v1/direct:acquire``: the direct jobs of this harvester that are not submitted yet, and up to ``most`` new ones.

    ``places`` are all the queues it serves with direct jobs; jobs whose person asked for one of them are claimed. A job is
    claimed once: it is in every answer, under the same mark, until it was reported as submitted or ended.
    """

    harvester: str
    places: Annotated[list[DirectPlace], msgspec.Meta(max_length=1000)]
    most: Annotated[int, msgspec.Meta(ge=0, le=MOST_DIRECT)] = 100


class DirectFile(Message):
    """A file that the person uploaded for a job: ``GET /v1/direct/{mark}/inputs?path=`` gives it."""

    path: str
    size: int
    sha256: str


class DirectOrder(Message):
    """A direct job to submit to ``queue``, by its ``mark``: the ``description`` goes there as it is.

    It runs under the proxy number ``proxy_id``, see :class:`DirectProxiesRequest`.
    """

    mark: str
    job_id: int
    task_id: int
    queue: str
    description: str
    language: Language
    proxy_id: int
    files: list[DirectFile] = []


class DirectAcquireReply(Message):
    """The orders, oldest first."""

    jobs: list[DirectOrder] = []


class DirectReport(Message):
    """A direct job as harvester knows it.

    ``native`` is the computing element's own word for its state. ``results``: all that it left is stored with the server.
    ``left_out``: why not all that it left could be stored; it then counts as failed.
    ``killed``: the computing element has taken the request to end it. ``cleaned``: nothing is left of it there.
    """

    mark: Mark
    state: WorkerState
    batch_id: Optional[Annotated[str, msgspec.Meta(max_length=1024)]] = None
    native: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[^\x00]*$")] = ""
    reason: Words = ""
    exit_code: Optional[Number] = None
    host: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[^\x00]*$")] = ""
    results: bool = False
    left_out: Words = ""
    killed: bool = False
    cleaned: bool = False


class DirectReportRequest(Message):
    """``POST /v1/direct:report``: all direct jobs that this harvester remembers."""

    harvester: str
    jobs: Annotated[list[DirectReport], msgspec.Meta(max_length=MOST_DIRECT)]


class DirectInstruction(str, Enum):
    """What harvester is to do with a direct job."""

    NONE = "none"
    """Go on."""
    KILL = "kill"
    """End it on the computing element."""
    FETCH = "fetch"
    """Bring what it left to the server, then report it with ``results``."""
    CLEAN = "clean"
    """Remove it from the computing element, then report it as ``cleaned``."""
    FORGET = "forget"
    """The server knows nothing of it any more, and nothing is left of it."""


class DirectOutcome(Message):
    """What the server made of one report, and what is to be done next. A report that is not ``accepted`` changed nothing."""

    mark: str
    accepted: bool
    reason: str = ""
    instruction: DirectInstruction = DirectInstruction.NONE


class DirectReportReply(Message):
    """An outcome for each job, in order."""

    jobs: list[DirectOutcome]


class ProxyWanted(Message):
    """A request (PEM) for a proxy that hangs on the person's delegated one; its key stays with harvester."""

    proxy_id: Id
    csr: Annotated[str, msgspec.Meta(max_length=16_384)]


class DirectProxiesRequest(Message):
    """``POST /v1/direct/proxies:sign``: proxies of people whose jobs this harvester holds."""

    harvester: str
    proxies: Annotated[list[ProxyWanted], msgspec.Meta(max_length=100)]


class ProxySigned(Message):
    """A chain (PEM, the new proxy first, no key), good for ``life_s`` seconds; without one ``reason`` says why.

    ``stamp`` changes when the person has delegated anew: then a new one lives longer.
    """

    proxy_id: int
    chain: str = ""
    life_s: float = 0.0
    stamp: str = ""
    reason: str = ""


class DirectProxiesReply(Message):
    """An answer for each request, in order."""

    proxies: list[ProxySigned]


class DirectFileView(Message):
    """A file that the server has stored."""

    path: str
    size: NonNegative
    parts: Count = 0
