"""Placeholders of PanDA's ``prun`` in a command's arguments and in the values of its environment.

Supported, with their meaning for one job (PanDA documentation, ``prun``):

``%IN``
    The names of its input files, separated by commas. (``{inputs}`` gives each file's path as an argument.)
``%NAME``, for a secondary input of that name, such as ``%IN2``
    The names of its files of that stream, separated by commas.
``%OUT``
    The beginning of an output's name: ``%OUT.root`` becomes ``12._000345.root``, of task and serial number, so that
    ``*.root`` is its pattern.
``%RNDM:100``, also ``%RNDM=100``
    A number that no other unit has: 100 plus the number of the job's first unit.
``%MAXEVENTS``, ``%SKIPEVENTS``, ``%FIRSTEVENT:1``
    How many events to process, how many to skip in the file, and the number of the first event, counted over the task.

The others of PanDA (``%DB``, ``%SEGMENT_NAME``, and the streams of ``pathena`` such as ``%CAVIN`` unless a secondary
input has that name) are refused at submission, as they would silently mean nothing. Anything else with a per cent sign
is the payload's own and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from common.wire import Assignment, CounterInput, StageSpec

UNSUPPORTED = frozenset({"DB", "SEGMENT_NAME", "CAVIN", "MININ", "LOMBIN", "HIMBIN", "BHIN", "BGIN"})
_WORD = re.compile(r"%([A-Za-z][A-Za-z0-9_]*)(?:[:=](\d{1,18}))?")
_BASED = frozenset({"RNDM", "FIRSTEVENT"})
_OUTPUT = re.compile(r"%OUT((?:\.[A-Za-z0-9_-]+)+)")


@dataclass(frozen=True)
class JobFacts:
    """What the placeholders of one job stand for. ``number`` is that of its first unit, from 0."""

    task_id: int
    number: int = 0
    inputs: Sequence[str] = ()
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)
    events: int | None = None
    skip_events: int = 0
    first_event: int = 0


def facts_of(assignment: Assignment) -> JobFacts:
    """The facts of a job, from what its pilot is told."""
    units = assignment.units
    first = units[0] if units else None
    known = [unit.events for unit in units if unit.events is not None]
    events = sum(known) if len(known) == len(units) else None
    number = first.seq if first is not None else 0
    skip = (first.first_event or 0) if first is not None else 0
    per_unit = (first.events or 0) if first is not None else 0
    return JobFacts(
        task_id=assignment.task_id,
        number=number,
        inputs=list(dict.fromkeys(_name(unit.file.did) for unit in units if unit.file is not None)),
        streams={stream: [_name(file.did) for file in files] for stream, files in assignment.secondary.items()},
        events=events,
        skip_events=skip,
        first_event=number * per_unit,
    )


def _name(did: str) -> str:
    return did.partition(":")[2]


def expand(text: str, facts: JobFacts) -> str:
    """``text`` with its placeholders filled in for one job."""
    if "%" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        name, base = match.group(1), match.group(2)
        if name in facts.streams:
            return ",".join(facts.streams[name]) + _rest(match)
        if name in _BASED and base is not None:
            return str(int(base) + (facts.number if name == "RNDM" else facts.first_event))
        return _plain(name, facts, match)

    return _WORD.sub(value, text)


def _plain(name: str, facts: JobFacts, match: re.Match[str]) -> str:
    if name == "IN":
        return ",".join(facts.inputs) + _rest(match)
    if name == "OUT":
        return f"{facts.task_id}._{facts.number + 1:06d}" + _rest(match)
    if name == "MAXEVENTS":
        return str(-1 if facts.events is None else facts.events) + _rest(match)
    if name == "SKIPEVENTS":
        return str(facts.skip_events) + _rest(match)
    return match.group(0)


def _rest(match: re.Match[str]) -> str:
    """What looked like a base behind a placeholder that takes none."""
    return match.group(0)[len(match.group(1)) + 1 :]


def has_placeholders(spec: StageSpec) -> bool:
    """Whether anything of a stage has to be looked through at all."""
    return any("%" in text for text in _texts(spec))


def _texts(spec: StageSpec) -> Iterator[str]:
    yield from spec.command or ()
    yield from spec.environment.values()


def placeholder_problems(spec: StageSpec) -> Iterator[tuple[str, str]]:
    """What is wrong with a stage's placeholders: the field, and what to do."""
    streams = {each.name for each in spec.secondary_inputs}
    for where, text in _places(spec):
        for match in _WORD.finditer(text):
            name = match.group(1)
            if name in streams:
                continue
            if name in UNSUPPORTED:
                yield where, f"%{name} is not supported: name a secondary input {name}, or leave it out"
            elif name in _BASED and match.group(2) is None:
                yield where, f"%{name} needs a number to begin with, such as %{name}:100"
            elif name == "IN" and isinstance(spec.input, CounterInput):
                yield where, "%IN stands for input files, of which this stage has none: use %RNDM:0 or {counter}"
        for match in _OUTPUT.finditer(text):
            sample = f"1._000001{match.group(1)}"
            if not any(fnmatchcase(sample, output.pattern) for output in spec.outputs):
                yield where, f"no output pattern takes {match.group(0)}: add '*{match.group(1)}' to outputs"


def _places(spec: StageSpec) -> Iterator[tuple[str, str]]:
    for index, word in enumerate(spec.command or ()):
        yield f"command[{index}]", word
    for name, text in spec.environment.items():
        yield f"environment.{name}", text
