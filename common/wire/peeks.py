"""Looking at a running job from afar: a person asks, its pilot is told with the next heartbeat and answers.

What is asked for is typed; nothing that a person writes ever reaches a shell.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.states import JobState
from common.wire.base import Message, NonNegative, Strict

MOST_TEXT = 65536
"""Characters of an answer at the most."""
MOST_LINES = 2000
PeekPath = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"^[^\x00-\x1f]*$(?!\n)")]
"""A path below the payload's working directory."""


class PeekKind(str, Enum):
    """What a person can ask to see of a job."""

    TAIL = "tail"
    """The end of a file: ``stdout``, ``stderr``, or one below the payload's working directory."""
    LS = "ls"
    """What is in the payload's working directory, or in a folder below it."""
    PS = "ps"
    """The payload's processes."""
    DU = "du"
    """What the job's folder occupies, by what is in it."""
    GDB = "gdb"
    """The stacks of one of the payload's processes."""
    PILOT_LOG = "pilot-log"
    """The end of the pilot's own log."""


class PeekRequest(Strict, kw_only=True):
    """``POST /v1/jobs/{id}/peeks``: ask the pilot of a job. There is one open request of each kind for a job at a time.

    ``path`` is for ``tail`` and ``ls``, ``lines`` for ``tail`` and ``pilot-log``, ``pid`` for ``gdb``. With ``after``, a
    ``tail`` gives what the file has from that byte on.
    """

    kind: PeekKind
    path: PeekPath = ""
    lines: Annotated[int, msgspec.Meta(ge=1, le=MOST_LINES)] = 50
    pid: Optional[Annotated[int, msgspec.Meta(ge=1, le=2**31)]] = None
    after: Optional[Annotated[int, msgspec.Meta(ge=0, le=2**60)]] = None


class PeekOrder(Message, kw_only=True):
    """The same as a pilot is told it, with the heartbeat's answer, until it has answered. A ``kind`` that a pilot does not
    know it answers with an error."""

    peek_id: int
    kind: str
    path: str = ""
    lines: int = 50
    pid: Optional[int] = None
    after: Optional[int] = None


class PeekAnswer(Message, kw_only=True):
    """``POST /v1/jobs/{id}/peeks/{peek_id}:answer``: what the pilot saw, or why it saw nothing.

    ``cut`` says that there was more. ``end`` is how long the file is, in bytes, that ``text`` is the end of.
    """

    text: Annotated[str, msgspec.Meta(max_length=MOST_TEXT)] = ""
    error: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    cut: bool = False
    end: Optional[NonNegative] = None


class PeekState(str, Enum):
    """Where a request stands."""

    WAITING = "waiting"
    """The pilot has not been heard of since."""
    ANSWERED = "answered"
    """``answer`` is what the pilot said."""
    OVER = "over"
    """The job ended before its pilot answered."""
    REPLACED = "replaced"
    """The same person has asked for something else of the same kind meanwhile."""


class PeekView(Message, kw_only=True):
    """A request and what came of it. While it waits, ask again: the server answers when the pilot has, or after a while;
    ``due_s`` is when the pilot should be heard of next."""

    peek_id: int
    job_id: int
    kind: PeekKind
    state: PeekState
    job_state: JobState
    asked: float
    who: str = ""
    due_s: float = 0.0
    answer: Optional[PeekAnswer] = None
