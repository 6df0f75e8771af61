"""What becomes of outputs and of jobs that have ended: datasets, registration, provenance, accounting, traces."""

from __future__ import annotations

from enum import Enum
from typing import Any, Optional

from common.states import JobState
from common.wire.base import Message


class Registration(str, Enum):
    """Who tells the catalogue of new outputs."""

    NONE = "none"
    """Nobody."""
    PILOT = "pilot"
    """The pilot, before it confirms: what is confirmed is registered."""
    SERVER = "server"
    """The server, in bulk after the confirmation: only then units are done and outputs visible."""


class DatasetKind(str, Enum):
    """What a dataset of outputs gathers."""

    ALL = "all"
    """All outputs of a pattern of a task."""
    STORAGE = "storage"
    """Those of them on one storage; the rule that keeps them there hangs on it."""
    NUMBERED = "numbered"
    """At most so many of them, numbered in the order of their coming."""


class DatasetView(Message, kw_only=True):
    """A dataset of outputs. ``expires`` is when the rule that keeps it on its ``storage`` ends, if ever."""

    id: int
    did: str
    kind: DatasetKind
    task_id: int
    number: Optional[int] = None
    storage: Optional[str] = None
    created: float = 0.0
    lifetime_days: Optional[int] = None
    expires: Optional[float] = None
    files: int = 0
    bytes: int = 0


class RegistrationView(Message, kw_only=True):
    """A confirmed job whose outputs are not registered yet. ``withdrawing``: they are taken out again, for good."""

    job_id: int
    task_id: int
    withdrawing: bool = False
    since: float = 0.0
    tries: int = 0
    next_try: float = 0.0
    error: str = ""


class ProvenanceView(Message, kw_only=True):
    """Where an output comes from: the file itself, the job that wrote it, and the task as it was then defined."""

    did: str
    output: dict[str, Any]
    job: dict[str, Any]
    task: dict[str, Any]


class AccountingRow(Message, kw_only=True):
    """What a group of jobs used. ``key`` has a value for each word that was grouped by.

    ``wall_core_h`` and ``cpu_h`` are core-hours; the ``hs23`` ones are multiplied by the core power of the queue at the
    time. Energy is in kWh, where jobs told it.
    """

    key: dict[str, str]
    jobs_ok: int = 0
    jobs_failed: int = 0
    wall_core_h: float = 0.0
    cpu_h: float = 0.0
    wall_hs23_h: float = 0.0
    cpu_hs23_h: float = 0.0
    energy_kwh: float = 0.0


class AccountingReport(Message):
    """``GET /v1/accounting``. ``waiting``: jobs that have ended and are not in the books yet."""

    items: list[AccountingRow] = []
    waiting: int = 0


class TraceView(Message, kw_only=True):
    """A job, where it ran and for whom. ``worker`` and ``batch_id`` are its mark and number in the batch system."""

    id: int
    task_id: int
    state: JobState
    owner: str
    group: Optional[str] = None
    queue: str
    site: str
    host: str
    pilot_id: int
    worker: str = ""
    batch_id: Optional[str] = None
    claimed: float
    ended: Optional[float] = None


class DatasetPage(Message):
    """A page of datasets; ask again with ``after=next`` while it is there."""

    next: Optional[int] = None
    items: list[DatasetView] = []


class RegistrationPage(Message):
    """A page of registrations that wait."""

    next: Optional[int] = None
    items: list[RegistrationView] = []


class TracePage(Message):
    """A page of traces."""

    next: Optional[int] = None
    items: list[TraceView] = []
