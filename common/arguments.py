"""The placeholders in braces that a command may hold: paths of inputs, units, counters, and numbers of the job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.errors import ErrorCode, PilotageError

_PLACEHOLDER = re.compile(
    r"\{(input|inputs|unit|units|counter|counters|first_event|events|job_id|task_id|cores|memory_mb)\}"
)
_SECONDARY = re.compile(r"\{secondary:([A-Za-z][A-Za-z0-9_]*)\}")
_LISTS = {"inputs": "input", "units": "unit", "counters": "counter"}


@dataclass(frozen=True)
class Known:
    """What the placeholders of one job stand for: ``lists`` by the name of one item (``input``, ``unit``, ``counter``,
    ``first_event``, ``events``), ``plain`` values, and the paths of each secondary input by its name."""

    lists: Mapping[str, Sequence[str]]
    plain: Mapping[str, str]
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)


def expand_arguments(words: Sequence[str], known: Known) -> list[str]:
    """A command's words with their placeholders filled in.

    ``{inputs}``, ``{units}``, ``{counters}`` must be a whole argument and become one argument per item; ``{input}``,
    ``{unit}`` and so on stand for the only one. ``{secondary:NAME}`` becomes the files of that secondary input; any other
    braces stay as they are. Raises PilotageError (BAD_JOBSCRIPT).
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in known.plain:
            return known.plain[name]
        if name in _LISTS:
            raise _bad(f"command: {{{name}}} must be an argument of its own")
        found = known.lists[name]
        if len(found) != 1:
            several = f"use {{{name}s}}, or one unit per job" if name in _LISTS.values() else "take one unit per job"
            remedy = several if found else "the task's input is of another kind"
            raise _bad(f"command: {{{name}}} stands for one, but this job has {len(found)}: {remedy}")
        return found[0]

    expanded: list[str] = []
    for argument in words:
        stream = _SECONDARY.fullmatch(argument)
        if stream is not None:
            expanded += _stream(known, stream.group(1))
            continue
        whole = _PLACEHOLDER.fullmatch(argument)
        if whole and whole.group(1) in _LISTS:
            expanded += known.lists[_LISTS[whole.group(1)]]
        else:
            expanded.append(_PLACEHOLDER.sub(value, argument))
    return expanded


def _stream(known: Known, name: str) -> Sequence[str]:
    if name not in known.streams:
        there = ", ".join(sorted(known.streams)) or "none"
        raise _bad(f"command: there is no secondary input {name!r}; known: {there}")
    return known.streams[name]


def _bad(detail: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_JOBSCRIPT, detail)
