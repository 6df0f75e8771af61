"""What admins have harvesters do, and the list of workers that they look at.

A command waits at the server until its harvester asks; what came of it is told back. Each takes effect once, however
often it is handed out or told back.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.states import WorkerState
from common.wire.base import Message, Name, Strict, Text
from common.wire.harvesters import Shape
from common.wire.workflows import Page

MOST_MARKS = 1000
MOST_TEST_WORKERS = 100
DAY_S = 86400.0
Mark = Annotated[str, msgspec.Meta(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$(?!\n)")]
"""A worker's mark."""


class HarvesterCommandKind(str, Enum):
    """What a harvester can be told."""

    CANCEL = "cancel"
    """End workers: the named ones, or all of a queue; with ``waiting_only`` those only that have not started."""
    DRAIN = "drain"
    """Submit no new workers to a queue; without a queue, to none. Ends nothing."""
    UNDRAIN = "undrain"
    """Submit workers again."""
    SUBMIT = "submit"
    """Submit ``workers`` test workers of one core to a queue, whatever the demand."""
    RELOAD = "reload"
    """Read the configuration anew."""
    FETCH_LOGS = "fetch_logs"
    """Bring home what the named workers wrote."""


class HarvesterCommandRequest(Strict, kw_only=True):
    """``POST /v1/harvesters/{name}/commands``. The same ``request_id`` makes the same command again, not another one.

    A harvester that does not ask within ``valid_s`` never gets it.
    """

    kind: HarvesterCommandKind
    request_id: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    queue: Optional[Name] = None
    marks: Annotated[list[Mark], msgspec.Meta(max_length=MOST_MARKS)] = []
    waiting_only: bool = False
    workers: Annotated[int, msgspec.Meta(ge=1, le=MOST_TEST_WORKERS)] = 1
    valid_s: Annotated[float, msgspec.Meta(gt=0, le=30 * DAY_S)] = 3600.0


class HarvesterCommandState(str, Enum):
    """Where a command stands."""

    WAITING = "waiting"
    """Its harvester has not said that it is done."""
    DONE = "done"
    """It was done."""
    FAILED = "failed"
    """It could not be done; ``detail`` says why."""
    EXPIRED = "expired"
    """The harvester did not ask in time."""


class HarvesterCommandView(Message, kw_only=True):
    """A command, as admins see it and its harvester gets it. A harvester refuses a ``kind`` that it does not know."""

    command_id: int
    harvester: str
    kind: str
    state: HarvesterCommandState
    asked: float
    expires: float
    queue: Optional[str] = None
    marks: list[str] = []
    waiting_only: bool = False
    workers: int = 1
    who: str = ""
    ended: Optional[float] = None
    detail: str = ""


class HarvesterCommandPage(Page):
    """``GET /v1/harvesters/{name}/commands``; with ``open=true`` those only that wait."""

    items: list[HarvesterCommandView] = []


class HarvesterCommandResult(Message, kw_only=True):
    """``POST /v1/harvesters/{name}/commands/{command_id}:done``: what came of it, in words."""

    ok: bool
    detail: Text = ""


class WorkerView(Message, kw_only=True):
    """A worker for people, as its harvester reported it last. ``pilots`` counts those that ever registered.

    ``log_url`` is where its output is, ``log_tail`` the last of it where it failed.
    """

    mark: str
    harvester: str
    queue: str
    state: WorkerState
    shape: Shape
    nodes: int = 1
    batch_id: Optional[str] = None
    host: str = ""
    pilots: int = 0
    created: float = 0.0
    updated: float = 0.0
    reason: str = ""
    log_url: Optional[str] = None
    log_tail: str = ""


class WorkerPage(Message):
    """``GET /v1/workers``, by mark; ask again with ``after=next`` while ``next`` is there."""

    items: list[WorkerView] = []
    next: Optional[str] = None
