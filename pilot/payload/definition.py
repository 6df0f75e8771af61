"""What a job wants to be run, as the pilot knows it after stage-in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Optional

from common.errors import ErrorCode, PilotageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED_NAMES = ("HOME", "TMPDIR", "PWD")
RESERVED_PREFIXES = ("PILOTAGE_", "JUSTIN_")
_PLACEHOLDER = re.compile(
    r"\{(input|inputs|unit|units|counter|counters|first_event|events|job_id|task_id|cores|memory_mb)\}"
)
_SECONDARY = re.compile(r"\{secondary:([A-Za-z][A-Za-z0-9_]*)\}")
_LISTS = {"inputs": "input", "units": "unit", "counters": "counter"}
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
    """One job's payload: either ``jobscript`` (text) or ``command`` (arguments), and all that it is told.

    ``inputs`` are the job's files in order, ``counters`` its counter units, ``units`` all that is known of its units;
    ``secondary`` are the paths of each secondary input by its name. Times in seconds, memory in MB; zero or
    empty means not known. ``gpus`` are the identifiers for CUDA_VISIBLE_DEVICES, of ``gpu_vendor`` (nvidia, amd).
    """

    job_id: str
    task_id: str
    jobscript: Optional[str] = None
    command: Optional[list[str]] = None
    image: Optional[str] = None
    environment: dict[str, str] = field(default_factory=dict)
    inputs: list[InputFile] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)
    units: list[PayloadUnit] = field(default_factory=list)
    secondary: dict[str, list[str]] = field(default_factory=dict)
    cores: int = 1
    memory_mb: int = 0
    wall_s: int = 0
    gpus: list[str] = field(default_factory=list)
    gpu_vendor: Optional[str] = None
    workflow_id: str = ""
    stage: str = ""
    scope: str = ""
    site: str = ""
    query: str = ""
    started_at: Optional[datetime] = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        """Raises PilotageError (BAD_JOBSCRIPT) that names what is wrong, before anything is written."""
        if (self.jobscript is None) == (not self.command):
            raise _bad("give either jobscript or command")
        if self.jobscript is not None:
            check_jobscript(self.jobscript)
        for index, argument in enumerate(self.command or []):
            if "\0" in argument:
                raise _bad(f"command[{index}] has a NUL byte")
        for name, value in self.environment.items():
            if not _NAME.fullmatch(name):
                raise _bad(f"environment: {name!r} is no name of a variable")
            if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES):
                raise _bad(f"environment: {name} is set by the pilot: choose another name")
            if "\0" in value:
                raise _bad(f"environment: the value of {name} has a NUL byte")


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


def expand_command(definition: PayloadDefinition) -> list[str]:
    """The command with its placeholders filled in.

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

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in plain:
            return plain[name]
        if name in _LISTS:
            raise _bad(f"command: {{{name}}} must be an argument of its own")
        if len(lists[name]) != 1:
            several = f"use {{{name}s}}, or one unit per job" if name in _LISTS.values() else "take one unit per job"
            remedy = several if lists[name] else "the task's input is of another kind"
            raise _bad(f"command: {{{name}}} stands for one, but this job has {len(lists[name])}: {remedy}")
        return lists[name][0]

    words: list[str] = []
    for argument in definition.command or []:
        stream = _SECONDARY.fullmatch(argument)
        if stream is not None:
            words += _stream(definition, stream.group(1))
            continue
        whole = _PLACEHOLDER.fullmatch(argument)
        if whole and whole.group(1) in _LISTS:
            words += lists[_LISTS[whole.group(1)]]
        else:
            words.append(_PLACEHOLDER.sub(value, argument))
    return words


def _stream(definition: PayloadDefinition, name: str) -> list[str]:
    if name not in definition.secondary:
        known = ", ".join(sorted(definition.secondary)) or "none"
        raise _bad(f"command: there is no secondary input {name!r}; known: {known}")
    return definition.secondary[name]


def _bad(detail: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_JOBSCRIPT, detail)
