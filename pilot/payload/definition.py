"""What a job wants to be run, as the pilot knows it after stage-in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from common.arguments import Known, expand_arguments
from common.errors import ErrorCode, PilotageError
from common.wire import Gpu, SideProcess

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED_NAMES = ("HOME", "TMPDIR", "PWD")
RESERVED_PREFIXES = ("PILOTAGE_", "JUSTIN_")
#: The kernel reads no more of a script's first line (linux/binfmts.h, BINPRM_BUF_SIZE).
MAX_SHEBANG = 255


@dataclass(frozen=True)
class InputFile:
    """An input file: its DID, and where the payload opens it (a path, or a PFN to read directly)."""

    did: str
    location: str


@dataclass(frozen=True)
class PayloadUnit:
    """One unit as the payload is told of it: a file at ``path``, ``events`` of its events from ``first_event`` on, a
    counter, or neither. ``attributes`` are those of the file."""

    unit: int
    did: Optional[str] = None
    path: Optional[str] = None
    first_event: Optional[int] = None
    events: Optional[int] = None
    counter: Optional[int] = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PayloadDefinition:
    """One job's payload, and all that it is told: ``jobscript`` (text), ``command`` (arguments), or ``transformation`` (a
    program on this machine) with the arguments in ``command``; and the ``processes`` around it. ``setup`` are lines for
    /bin/sh before each of them, ``rewrite`` changes the payload's own arguments when they are complete.

    ``inputs`` are the job's files in order, ``counters`` its counter units, ``units`` all that is known of its units;
    ``secondary`` are the paths of each secondary input by its name. Times in seconds, memory in MB; zero or
    empty means not known. ``gpus`` are those that the job was given. ``credentials`` are the variables that name the file
    of what the payload shows to storages that it reads from directly.
    """

    job_id: str
    task_id: str
    jobscript: Optional[str] = None
    command: Optional[list[str]] = None
    transformation: Optional[Path] = None
    processes: list[SideProcess] = field(default_factory=list)
    setup: str = ""
    rewrite: Callable[[list[str]], list[str]] = list
    image: Optional[str] = None
    environment: dict[str, str] = field(default_factory=dict)
    inputs: list[InputFile] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)
    units: list[PayloadUnit] = field(default_factory=list)
    secondary: dict[str, list[str]] = field(default_factory=dict)
    cores: int = 1
    memory_mb: int = 0
    wall_s: int = 0
    gpus: list[Gpu] = field(default_factory=list)
    workflow_id: str = ""
    stage: str = ""
    scope: str = ""
    site: str = ""
    query: str = ""
    started_at: Optional[datetime] = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    credentials: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises PilotageError (BAD_JOBSCRIPT) that names what is wrong, before anything is written."""
        if self.transformation is None and (self.jobscript is None) == (not self.command):
            raise _bad("give either jobscript, command or transformation")
        if self.jobscript is not None:
            check_jobscript(self.jobscript)
        for index, argument in enumerate(self.command or []):
            if "\0" in argument:
                raise _bad(f"command[{index}] has a NUL byte")
        problem = environment_problem(self.environment)
        if problem:
            raise _bad(f"environment: {problem}")


def environment_problem(environment: Mapping[str, str]) -> str:
    """What is wrong with variables for a payload; empty when nothing is."""
    for name, value in environment.items():
        if not _NAME.fullmatch(name):
            return f"{name!r} is no name of a variable"
        if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES):
            return f"{name} is set by the pilot: choose another name"
        if "\0" in value:
            return f"the value of {name} has a NUL byte"
    return ""


def check_jobscript(text: str) -> None:
    """Raises PilotageError (BAD_JOBSCRIPT) when the kernel could not run this text as a script."""
    first = text.split("\n", 1)[0]
    if not text.startswith("#!"):
        hint = (
            "a byte order mark comes first: save it without" if text.startswith("\ufeff") else f"found {first[:60]!r}"
        )
        raise _bad(f"jobscript: the first line must be a shebang such as #!/bin/sh; {hint}")
    if first.endswith("\r"):
        raise _bad("jobscript: it has CRLF (Windows) line endings: convert it, with dos2unix for example")
    if not first[2:].strip().startswith("/"):
        raise _bad(f"jobscript: the shebang {first[:60]!r} must name its interpreter by an absolute path")
    if len(first.encode()) > MAX_SHEBANG:
        raise _bad(f"jobscript: the shebang is longer than {MAX_SHEBANG} bytes")


def expand_command(definition: PayloadDefinition, command: Optional[list[str]] = None) -> list[str]:
    """The command (the payload's own, or that of a process around it) with its placeholders filled in.

    ``{inputs}``, ``{units}``, ``{counters}`` must be a whole argument and become one argument per item;
    ``{input}``, ``{unit}``, ``{counter}`` stand for the only one, likewise ``{first_event}`` and ``{events}`` of a range
    of events. ``{secondary:NAME}`` becomes the files of that secondary input. Besides ``{job_id}`` ``{task_id}`` ``{cores}``
    ``{memory_mb}``; any other braces stay as they are. Raises PilotageError (BAD_JOBSCRIPT).
    """
    lists = {
        "input": [item.location for item in definition.inputs],
        "counter": [str(item) for item in definition.counters],
        "unit": [item.did for item in definition.inputs] or [str(item) for item in definition.counters],
        "first_event": [str(item.first_event) for item in definition.units if item.first_event is not None],
        "events": [str(item.events) for item in definition.units if item.events is not None],
    }
    plain = {
        "job_id": definition.job_id,
        "task_id": definition.task_id,
        "cores": str(definition.cores),
        "memory_mb": str(definition.memory_mb),
    }

    streams = definition.secondary
    words = (definition.command or []) if command is None else command
    return expand_arguments(words, Known(lists, plain, streams))


def _bad(detail: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_JOBSCRIPT, detail)
