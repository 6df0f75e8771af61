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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from msgspec import structs

from common.wire import Assignment

PLACEHOLDER = re.compile(r"%([A-Za-z][A-Za-z0-9_]*)(?:[:=](\d{1,18}))?")
BASED = frozenset({"RNDM", "FIRSTEVENT"})
"""Those that need a number to begin with."""


@dataclass(frozen=True)
class JobFacts:
    """What the placeholders of one job stand for. ``number`` is that of its first unit, from 0."""

    task_id: int
    number: int = 0
    inputs: Sequence[str] = ()
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)
    events: Optional[int] = None
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
        if name in BASED and base is not None:
            return str(int(base) + (facts.number if name == "RNDM" else facts.first_event))
        return _plain(name, facts, match)

    return PLACEHOLDER.sub(value, text)


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


def fill_in(assignment: Assignment) -> None:
    """Fill the placeholders in everything of an assignment that may hold some."""
    facts = facts_of(assignment)
    if assignment.command is not None:
        assignment.command = [expand(word, facts) for word in assignment.command]
    if assignment.transformation is not None:
        parameters = [expand(word, facts) for word in assignment.transformation.parameters]
        assignment.transformation = structs.replace(assignment.transformation, parameters=parameters)
    assignment.processes = [
        structs.replace(process, command=[expand(word, facts) for word in process.command])
        for process in assignment.processes
    ]
    assignment.environment = {name: expand(text, facts) for name, text in assignment.environment.items()}
