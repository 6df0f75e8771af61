"""Probe jobs: what a pilot is told to try at a site, what it found, and the table that follows from it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.wire.base import Id, Message, Name, Number, Strict
from common.wire.world import Activity

MOST_STORAGES = 1000
"""Storages of one probe at the most."""
_Words = Annotated[str, msgspec.Meta(max_length=2000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class ProbeUse(str, Enum):
    """What is done with what probes found."""

    WARN = "warn"
    """It is shown and told as events; nothing else."""
    AVOID = "avoid"
    """A storage that a site could not read is far from it for ever (101), and one that it could not write gets no new
    files from there, until a later probe says otherwise."""


class ProbeOperation(str, Enum):
    """What a probe tries at a storage."""

    READ = "read"
    """A file comes back as it was written, and the storage's own test file as it should be."""
    WRITE = "write"
    """A small new file is taken, and can be removed again."""


class KnownReplica(Message):
    """A storage's own test file, as a pilot may read it."""

    urls: list[str]
    size: Optional[int] = None
    checksum: Optional[str] = None


class ProbeTarget(Message, kw_only=True):
    """A storage to be tried. ``write`` and ``read`` are the URLs of one new file; either may be empty. ``leftovers`` are URLs
    of files that earlier probes may have left there: they are removed."""

    storage: str
    write: list[str] = []
    read: list[str] = []
    write_activity: Activity = Activity.WRITE_LAN
    read_activity: Activity = Activity.READ_LAN
    test: Optional[KnownReplica] = None
    leftovers: list[str] = []


class ProbeOrder(Message, kw_only=True):
    """What a job that is a probe is to do, in place of a payload.

    Each of ``cvmfs`` is looked at, beside what the queue's node checks name. Each storage may take ``storage_s``, all of
    them together ``total_s`` seconds. ``gpus``: how many there must be.
    """

    storages: list[ProbeTarget] = []
    cvmfs: list[str] = []
    gpus: int = 0
    file_bytes: int = 65536
    storage_s: float = 60.0
    total_s: float = 600.0


class ProbeOutcome(Message):
    """What became of one operation. ``mb_s`` is what was transferred in MB/s, zero if nothing was."""

    ok: bool
    error_code: Optional[Number] = None
    error_detail: _Words = ""
    seconds: _Seconds = 0.0
    mb_s: _Seconds = 0.0


class StorageProbe(Message, kw_only=True):
    """What was found at one storage; an operation that was not tried is not there."""

    storage: Annotated[str, msgspec.Meta(max_length=255)]
    read: Optional[ProbeOutcome] = None
    write: Optional[ProbeOutcome] = None


class ProbeLevel(str, Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class ProbeFinding(Message):
    """One look at the software environment: what was found, and what to do about it."""

    name: Annotated[str, msgspec.Meta(max_length=600)]
    level: ProbeLevel
    detail: _Words = ""
    remedy: _Words = ""


class ProbeReport(Message):
    """What a probe found; goes with the confirmation of its job."""

    storages: Annotated[list[StorageProbe], msgspec.Meta(max_length=MOST_STORAGES)] = []
    environment: Annotated[list[ProbeFinding], msgspec.Meta(max_length=200)] = []


class ProbeState(str, Enum):
    """How far the latest probe of a place is."""

    NEVER = "never"
    """There was none yet."""
    ASKED = "asked"
    """It waits for a slot, or runs."""
    DONE = "done"
    """It has reported."""
    MISSED = "missed"
    """No slot took it within the interval, or it ended without a report: ``reason`` says which."""


class ProbeRequest(Strict):
    """``POST /v1/probes``: probe a site now, and not when it is due."""

    site: Name


class ProbePlace(Message, kw_only=True):
    """A site that is probed, with ``gpu`` its slots with GPUs, and what is known of its latest probe.

    ``missed`` are the probes in a row that did not run. ``environment`` is what the last that ran found on ``host``.
    """

    site: str
    gpu: bool = False
    state: ProbeState = ProbeState.NEVER
    reason: str = ""
    due: float = 0.0
    asked: Optional[float] = None
    ended: Optional[float] = None
    missed: int = 0
    task_id: Optional[int] = None
    job_id: Optional[Id] = None
    queue: str = ""
    host: str = ""
    environment_ok: Optional[bool] = None
    environment: list[ProbeFinding] = []


class ProbeResult(Message, kw_only=True):
    """What the last probe that tried it found; since ``since`` it is so."""

    site: str
    gpu: bool = False
    storage: str
    operation: ProbeOperation
    ok: bool
    error_code: Optional[int] = None
    error_detail: str = ""
    seconds: float = 0.0
    mb_s: float = 0.0
    time: float
    since: float
    job_id: int = 0


class ProbeTable(Message, kw_only=True):
    """``GET /v1/probes``: the sites that are probed, and the table of site and storage."""

    interval_s: float
    use: ProbeUse
    places: list[ProbePlace] = []
    results: list[ProbeResult] = []
