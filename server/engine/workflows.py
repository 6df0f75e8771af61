"""What a workflow must obey before anything of it is kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from common.wire import CounterInput, FilesInput, FileSpec, StageInput, StageSpec, WorkflowRequest
from server.engine.world import World, path_problem

MAX_LEVELS = 20
"""Levels of a file's attributes."""


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_IMAGE = re.compile(r"(/[^\0\n]*[^/\0\n]|[a-z][a-z0-9+.-]*://[^\s\0]+)\Z")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``path`` names the field, ``message`` what to do."""

    path: str
    message: str


def check_workflow(request: WorkflowRequest, world: World, shares: Collection[str]) -> list[Problem]:
    """All that is wrong with a workflow; nothing when it may be kept."""
    problems = list(_check_names(request))
    for index, stage in enumerate(request.stages):
        path = f"$.stages[{index}]"
        problems += _check_payload(stage, path)
        problems += _check_input(stage, path, request, world)
        problems += _check_places(stage, path, world, shares)
    if not problems:
        problems += _check_cycles(request)
    return problems


def _check_names(request: WorkflowRequest) -> Iterator[Problem]:
    for name, count in Counter(stage.name for stage in request.stages).items():
        if count > 1:
            yield Problem("$.stages", f"{count} stages are called {name!r}: give each a name of its own")


def _check_payload(stage: StageSpec, path: str) -> Iterator[Problem]:
    if (stage.jobscript is None) == (stage.command is None):
        yield Problem(path, "give either jobscript (a text that begins with #!) or command (a list of arguments)")
    if stage.jobscript is not None and not stage.jobscript.startswith("#!"):
        yield Problem(f"{path}.jobscript", "the first line must be a shebang such as #!/bin/sh")
    if stage.jobscript is not None and "\r\n" in stage.jobscript.split("\n", 1)[0] + "\n":
        yield Problem(f"{path}.jobscript", "the first line ends with a carriage return: save it with Unix line ends")
    yield from _check_strings(stage, path)
    seen = Counter(output.pattern for output in stage.outputs)
    for pattern, count in seen.items():
        if count > 1:
            yield Problem(f"{path}.outputs", f"the pattern {pattern!r} is there {count} times")


def _check_strings(stage: StageSpec, path: str) -> Iterator[Problem]:
    for name, value in stage.environment.items():
        if not _VARIABLE.match(name) or name.startswith("PILOTAGE_"):
            yield Problem(f"{path}.environment", f"{name!r} is no name for a variable of yours")
        if "\0" in value:
            yield Problem(f"{path}.environment", f"the value of {name} holds a NUL character")
    if any("\0" in word for word in stage.command or ()):
        yield Problem(f"{path}.command", "an argument holds a NUL character")
    if stage.image is not None and not _IMAGE.match(stage.image):
        yield Problem(f"{path}.image", "give an absolute path to an image, or an address such as docker://…")


def _check_input(stage: StageSpec, path: str, request: WorkflowRequest, world: World) -> Iterator[Problem]:
    given = stage.input
    if isinstance(given, FilesInput):
        if not given.files:
            yield Problem(f"{path}.input.files", "the list is empty: name at least one file")
        yield from _check_files(given.files, f"{path}.input.files", world)
    elif isinstance(given, CounterInput):
        if given.count == 0:
            yield Problem(f"{path}.input.count", "zero units: ask for at least one")
    elif isinstance(given, StageInput):
        names = [other.name for other in request.stages]
        if given.stage not in names:
            yield Problem(f"{path}.input.stage", f"no stage is called {given.stage!r}; there are {', '.join(names)}")
        elif given.stage == stage.name:
            yield Problem(f"{path}.input.stage", "a stage cannot feed itself")
        else:
            source = next(other for other in request.stages if other.name == given.stage)
            if not source.outputs:
                yield Problem(f"{path}.input.stage", f"stage {given.stage!r} declares no outputs to take")
    if stage.merge is not None and stage.merge.min_files > stage.merge.max_files:
        yield Problem(f"{path}.merge", "min_files is larger than max_files")
    yield from _check_files(stage.common_input, f"{path}.common_input", world)


def _check_files(files: list[FileSpec], path: str, world: World) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, file in enumerate(files):
        if file.did in seen:
            yield Problem(f"{path}[{index}].did", f"{file.did} is in the list already, at [{seen[file.did]}]")
        seen.setdefault(file.did, index)
        if file.did.partition(":")[2] in (".", ".."):
            yield Problem(f"{path}[{index}].did", "'.' and '..' are no names of files")
        odd = attributes_problem(file.attributes)
        if odd:
            yield Problem(f"{path}[{index}].attributes", odd)
        for number, replica in enumerate(file.replicas):
            wrong = path_problem(replica.path)
            if wrong:
                yield Problem(f"{path}[{index}].replicas[{number}].path", wrong)
            if replica.storage not in world.storages:
                yield Problem(
                    f"{path}[{index}].replicas[{number}].storage", _unknown("storage", replica.storage, world.storages)
                )


def attributes_problem(value: object, levels: int = MAX_LEVELS) -> str:
    """Why a JSON value cannot be an attribute, if so: what can be read at one place must not be too deep at another."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"the number {value} has more than 64 bits: send it as text"
    if not isinstance(value, (dict, list)):
        return ""
    if levels == 0:
        return f"it is more than {MAX_LEVELS} levels deep: make it flatter"
    inner = value.values() if isinstance(value, dict) else value
    return next(filter(None, (attributes_problem(each, levels - 1) for each in inner)), "")


def _check_places(stage: StageSpec, path: str, world: World, shares: Collection[str]) -> Iterator[Problem]:
    for index, output in enumerate(stage.outputs):
        if output.storage is not None and output.storage not in world.storages:
            yield Problem(f"{path}.outputs[{index}].storage", _unknown("storage", output.storage, world.storages))
    if stage.share not in shares:
        yield Problem(f"{path}.share", _unknown("share", stage.share, shares))


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    names = ", ".join(sorted(known)[:10]) or "none yet"
    return f"there is no {kind} {name!r}; known: {names}"


def _check_cycles(request: WorkflowRequest) -> Iterator[Problem]:
    parents = {stage.name: stage.input.stage for stage in request.stages if isinstance(stage.input, StageInput)}
    settled: set[str] = set()
    for start in parents:
        trail: list[str] = []
        name: str | None = start
        while name is not None and name not in settled:
            if name in trail:
                circle = " -> ".join([*trail[trail.index(name) :], name])
                yield Problem("$.stages", f"the stages feed one another in a circle: {circle}")
                break
            trail.append(name)
            name = parents.get(name)
        settled.update(trail)
