"""What a workflow must obey before anything of it is kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

import msgspec

from common.wire import StageSpec, WorkflowRequest
from server.engine.datasets import template_problem
from server.engine.inputs import feeding_stages
from server.engine.placeholders import output_name_problem, placeholder_problems
from server.engine.workflow_inputs import Means, Problem, attributes_problem, check_inputs, unknown
from server.engine.world import World

__all__ = ["Problem", "attributes_problem", "check_workflow"]

MAX_ATTRIBUTES = 16_384
"""Bytes of a stage's own attributes, as JSON."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_IMAGE = re.compile(r"(/[^\0\n]*[^/\0\n]|[a-z][a-z0-9+.-]*://[^\s\0]+)\Z")


def check_workflow(
    request: WorkflowRequest,
    world: World,
    shares: Collection[str],
    catalogs: Collection[str] = (),
    stagers: Collection[str] = (),
) -> list[Problem]:
    """All that is wrong with a workflow; nothing when it may be kept.

    ``catalogs`` and ``stagers`` are the names of those that the server is configured with.
    """
    means = Means(world, frozenset(catalogs), frozenset(stagers))
    problems = list(_check_names(request))
    for index, stage in enumerate(request.stages):
        path = f"$.stages[{index}]"
        problems += _check_payload(stage, path)
        problems += _check_extras(stage, path)
        problems += check_inputs(stage, path, request, means)
        problems += _check_places(stage, path, world, shares)
    problems += _check_cycles(request)
    return problems


def _check_names(request: WorkflowRequest) -> Iterator[Problem]:
    for name, count in Counter(stage.name for stage in request.stages).items():
        if count > 1:
            yield Problem("$.stages", f"{count} stages are called {name!r}: give each a name of its own")


def _check_payload(stage: StageSpec, path: str) -> Iterator[Problem]:
    if [stage.jobscript, stage.command, stage.transformation].count(None) != 2:
        ways = "jobscript (a text that begins with #!), command (a list of arguments) or transformation (a url)"
        yield Problem(path, f"give either {ways}")
    if stage.jobscript is not None and not stage.jobscript.startswith("#!"):
        yield Problem(f"{path}.jobscript", "the first line must be a shebang such as #!/bin/sh")
    if stage.jobscript is not None and "\r\n" in stage.jobscript.split("\n", 1)[0] + "\n":
        yield Problem(f"{path}.jobscript", "the first line ends with a carriage return: save it with Unix line ends")
    yield from _check_transformation(stage, path)
    yield from _check_strings(stage, path)
    seen = Counter(output.pattern for output in stage.outputs)
    for pattern, count in seen.items():
        if count > 1:
            yield Problem(f"{path}.outputs", f"the pattern {pattern!r} is there {count} times")
    named = Counter(output.name for output in stage.outputs if output.name is not None)
    for name, count in named.items():
        if count > 1:
            yield Problem(f"{path}.outputs", f"the name {name!r} is there {count} times")


def _check_transformation(stage: StageSpec, path: str) -> Iterator[Problem]:
    program = stage.transformation
    if program is None:
        return
    if program.url.startswith("http://") and program.checksum is None:
        remedy = "plain http can be changed on its way: use https, or give the file's checksum"
        yield Problem(f"{path}.transformation.url", remedy)
    parts = urlsplit(program.url)
    if parts.username is not None or parts.password is not None:
        remedy = "leave user and password out of the address: everybody can read it, who can see the task"
        yield Problem(f"{path}.transformation.url", remedy)


def _check_processes(stage: StageSpec, path: str) -> Iterator[Problem]:
    for index, process in enumerate(stage.processes):
        if any("\0" in word for word in process.command):
            yield Problem(f"{path}.processes[{index}].command", "an argument holds a NUL character")
    for index, pattern in enumerate(stage.log_files):
        if ".." in pattern.split("/"):
            yield Problem(f"{path}.log_files[{index}]", "it leads out of the working directory: leave out '..'")


def _check_extras(stage: StageSpec, path: str) -> Iterator[Problem]:
    yield from _check_processes(stage, path)
    for field, message in placeholder_problems(stage):
        yield Problem(f"{path}.{field}", message)
    odd = attributes_problem(stage.attributes)
    if not odd and len(msgspec.json.encode(stage.attributes)) > MAX_ATTRIBUTES:
        odd = f"they are longer than {MAX_ATTRIBUTES} bytes of JSON: keep them in a file"
    if odd:
        yield Problem(f"{path}.attributes", odd)
    if stage.jobscript_git is not None and stage.jobscript is None:
        yield Problem(
            f"{path}.jobscript_git", "it says where jobscript is from, which is missing: the client fetches it"
        )


def _check_strings(stage: StageSpec, path: str) -> Iterator[Problem]:
    for name, value in stage.environment.items():
        if not _VARIABLE.match(name) or name.startswith("PILOTAGE_"):
            yield Problem(f"{path}.environment", f"{name!r} is no name for a variable of yours")
        if "\0" in value:
            yield Problem(f"{path}.environment", f"the value of {name} holds a NUL character")
    if any("\0" in word for word in stage.command or ()):
        yield Problem(f"{path}.command", "an argument holds a NUL character")
    if stage.transformation is not None and any("\0" in word for word in stage.transformation.parameters):
        yield Problem(f"{path}.transformation.parameters", "an argument holds a NUL character")
    if stage.image is not None and not _IMAGE.match(stage.image):
        yield Problem(f"{path}.image", "give an absolute path to an image, or an address such as docker://…")


def _check_places(stage: StageSpec, path: str, world: World, shares: Collection[str]) -> Iterator[Problem]:
    for index, output in enumerate(stage.outputs):
        if output.storage is not None and output.storage not in world.storages:
            yield Problem(f"{path}.outputs[{index}].storage", unknown("storage", output.storage, world.storages))
        wrong = template_problem(output.dataset) if output.dataset is not None else ""
        if wrong:
            yield Problem(f"{path}.outputs[{index}].dataset", wrong)
        wrong = output_name_problem(output)
        if wrong:
            yield Problem(f"{path}.outputs[{index}].name", wrong)
    for field in ("sites", "exclude_sites"):
        for index, name in enumerate(getattr(stage, field)):
            if name not in world.sites:
                yield Problem(f"{path}.{field}[{index}]", unknown("site", name, world.sites))
    both = sorted(set(stage.sites) & set(stage.exclude_sites))
    if both:
        yield Problem(f"{path}.exclude_sites", f"{', '.join(both)} is among the sites too: leave it out of one of them")
    if stage.share not in shares:
        yield Problem(f"{path}.share", unknown("share", stage.share, shares))


def _check_cycles(request: WorkflowRequest) -> Iterator[Problem]:
    """Each circle once, in whatever way the stages feed one another."""
    parents = {stage.name: feeding_stages(stage) for stage in request.stages}
    settled: set[str] = set()
    told: set[frozenset[str]] = set()

    def walk(name: str, trail: list[str]) -> Iterator[Problem]:
        if name in trail:
            circle = trail[trail.index(name) :]
            if frozenset(circle) not in told:
                told.add(frozenset(circle))
                words = " -> ".join([*circle, name])
                yield Problem("$.stages", f"the stages feed one another in a circle: {words}")
            return
        if name in settled or name not in parents:
            return
        for parent in parents[name]:
            if parent != name:
                yield from walk(parent, [*trail, name])
        settled.add(name)

    for start in parents:
        yield from walk(start, [])
