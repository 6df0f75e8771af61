"""What a stage's payload consists of beside its jobscript or command: a program to fetch, and processes around it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.wire.base import Checksum, Count, Message

Words = Annotated[list[str], msgspec.Meta(min_length=1, max_length=10_000)]
"""A program and its arguments."""
LogPattern = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f][^\x00-\x1f]*$(?!\n)")]
"""A shell pattern of paths below the payload's working directory, such as ``*.conf`` or ``logs/*``."""


ProgramUrl = Annotated[
    str,
    msgspec.Meta(max_length=2048, pattern=r"^((https?|file)://[^\x00-\x20]*|/cvmfs/[^\x00-\x1f]*)[^/\x00-\x20]$(?!\n)"),
]
"""Where a program is: an address that ends with its name."""


class FetchedProgram(Message, kw_only=True):
    """A program that the pilot fetches: from ``url`` (``https://…``, ``file:///…``, or a path below ``/cvmfs``), for
    plain ``http`` only with a ``checksum``. It is run with ``parameters``, in which placeholders are filled in as in a
    command."""

    url: ProgramUrl
    checksum: Optional[Checksum] = None
    parameters: Annotated[list[str], msgspec.Meta(max_length=10_000)] = []


class Transformation(FetchedProgram, forbid_unknown_fields=True, kw_only=True):
    """The same, as a person asks for it."""


class ProcessWhen(str, Enum):
    """When a process around the payload runs."""

    BEFORE = "before"
    """Before the payload; the next one, or the payload, begins when it has ended."""
    BESIDE = "beside"
    """From the payload's begin to its end; it is then told to end (SIGTERM)."""
    AFTER = "after"
    """When the payload has ended, well or badly; ``PILOTAGE_EXIT_CODE`` says how."""


class ProcessFailure(str, Enum):
    """What it means that a process around the payload fails."""

    FAIL = "fail"
    """The payload's fault: the job fails."""
    SITE = "site"
    """The site's fault: the job fails, its units go back and are not blamed."""
    IGNORE = "ignore"
    """Nothing: it is noted in the job's log."""


class SideProcess(Message, kw_only=True):
    """A process around the payload, with the same image, environment, folder and limits.

    ``timeout_s`` is how long it may run (zero: as long as the job); one that runs out of time has failed. ``command``
    takes the placeholders of a command.
    """

    command: Words
    when: ProcessWhen
    on_failure: ProcessFailure = ProcessFailure.FAIL
    timeout_s: Count = 0


class ProcessSpec(SideProcess, forbid_unknown_fields=True, kw_only=True):
    """The same, as a person asks for it."""
