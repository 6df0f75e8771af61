"""What a stage's inputs must obey before anything of a workflow is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from common.wire import (
    CounterInput,
    DatasetInput,
    FilesInput,
    FileSpec,
    SecondaryInput,
    StageInput,
    StageSpec,
    WorkflowRequest,
)
from server.engine.inputs import is_tape, matches, ranges_problem, sources_of, tape_problem
from server.engine.world import World, path_problem

MAX_LEVELS = 20
"""Levels of a file's attributes."""
MAX_TOLD = 100
"""Mistakes of one file list that are told at once: a list of a million files may have as many."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``path`` names the field, ``message`` what to do."""

    path: str
    message: str


@dataclass(frozen=True)
class Means:
    """What there is to refer to: the world, and the catalogues and stagers of the server's configuration."""

    world: World
    catalogs: frozenset[str] = frozenset()
    stagers: frozenset[str] = frozenset()


def check_inputs(stage: StageSpec, path: str, request: WorkflowRequest, means: Means) -> Iterator[Problem]:
    """What is wrong with all that a stage reads."""
    given = stage.input
    where = f"{path}.input"
    if isinstance(given, FilesInput):
        yield from _check_files_input(given, where, means)
    elif isinstance(given, DatasetInput):
        if given.catalog not in means.catalogs:
            yield Problem(f"{where}.catalog", unknown("catalogue", given.catalog, means.catalogs))
    elif isinstance(given, CounterInput):
        if given.count == 0:
            yield Problem(f"{where}.count", "zero units: ask for at least one")
    elif isinstance(given, StageInput):
        yield from _check_stage_input(stage, given, where, request)
    yield from _check_sizes(stage, path)
    yield from _check_common(stage.common_input, f"{path}.common_input", means)
    for name, count in Counter(each.name for each in stage.secondary_inputs).items():
        if count > 1:
            words = f"{count} of them are called {name!r}: give each a name of its own"
            yield Problem(f"{path}.secondary_inputs", words)
    for index, secondary in enumerate(stage.secondary_inputs):
        yield from _check_secondary(stage, secondary, f"{path}.secondary_inputs[{index}]", request, means)


def _check_files_input(given: FilesInput, path: str, means: Means) -> Iterator[Problem]:
    if not given.files and not given.open:
        yield Problem(f"{path}.files", "the list is empty: name at least one file")
    elif given.files and not given.open and not any(matches(file.did, given.pattern) for file in given.files):
        yield Problem(f"{path}.pattern", f"no file of the list matches {given.pattern!r}")
    yield from check_file_list(given.files, f"{path}.files", means, recall=True, events_per_unit=given.events_per_unit)


def _check_stage_input(stage: StageSpec, given: StageInput, path: str, request: WorkflowRequest) -> Iterator[Problem]:
    if (given.stage is None) != bool(given.stages):
        yield Problem(path, "say whose outputs it takes: give either stage or stages")
        return
    if given.stages and given.pattern != "*":
        yield Problem(f"{path}.pattern", "with several stages, give each its own pattern in stages")
    seen = Counter(each.stage for each in given.stages)
    for index, source in enumerate(sources_of(given)):
        where = f"{path}.stage" if given.stage is not None else f"{path}.stages[{index}].stage"
        yield from _check_source(stage, source.stage, where, request)
        if seen[source.stage] > 1:
            yield Problem(where, f"{source.stage!r} is there {seen[source.stage]} times: use one pattern for it")


def _check_source(stage: StageSpec, source: str, path: str, request: WorkflowRequest) -> Iterator[Problem]:
    names = [other.name for other in request.stages]
    if source not in names:
        yield Problem(path, f"no stage is called {source!r}; there are {', '.join(names)}")
    elif source == stage.name:
        yield Problem(path, "a stage cannot feed itself")
    elif not next(other for other in request.stages if other.name == source).outputs:
        yield Problem(path, f"stage {source!r} declares no outputs to take")


def _check_sizes(stage: StageSpec, path: str) -> Iterator[Problem]:
    """How much a job takes must be said in one way only."""
    if stage.merge is not None and stage.merge.min_files > stage.merge.max_files:
        yield Problem(f"{path}.merge", "min_files is larger than max_files")
    ways = [name for name in ("events_per_job", "mb_per_job", "files_per_job") if getattr(stage, name) is not None]
    if len(ways) > 1:
        yield Problem(f"{path}.{ways[0]}", f"{' and '.join(ways)} exclude each other: use one of them")
    if ways and stage.merge is not None:
        yield Problem(f"{path}.{ways[0]}", "a stage that merges says how much it takes in merge: use one of them")
    if stage.events_per_job is not None and _lacks_events(stage):
        words = "the number of events of the units is not known: give events with the input, or use files_per_job"
        yield Problem(f"{path}.events_per_job", words)


def _lacks_events(stage: StageSpec) -> bool:
    given = stage.input
    if isinstance(given, CounterInput):
        return given.events is None
    return isinstance(given, FilesInput) and any(file.events is None for file in given.files)


def _check_common(files: list[FileSpec], path: str, means: Means) -> Iterator[Problem]:
    yield from check_file_list(files, path, means, recall=False)


def _check_secondary(
    stage: StageSpec, given: SecondaryInput, path: str, request: WorkflowRequest, means: Means
) -> Iterator[Problem]:
    if (given.stage is None) != bool(given.files):
        yield Problem(path, "say where its files come from: give either files or stage")
    if given.files and not any(matches(file.did, given.pattern) for file in given.files):
        yield Problem(f"{path}.pattern", f"no file of the list matches {given.pattern!r}")
    if given.stage is not None:
        yield from _check_source(stage, given.stage, f"{path}.stage", request)
    yield from check_file_list(given.files, f"{path}.files", means, recall=False)


def check_file_list(
    files: Sequence[FileSpec], path: str, means: Means, *, recall: bool, events_per_unit: int | None = None
) -> Iterator[Problem]:
    """What is wrong with a list of files, at the most :data:`MAX_TOLD` mistakes of it.

    ``recall`` says that files may be recalled from tape, ``events_per_unit`` that they will be cut into ranges.
    """
    found = list(islice(_check_each(files, path, means, recall, events_per_unit), MAX_TOLD + 1))
    yield from found[:MAX_TOLD]
    if len(found) > MAX_TOLD:
        yield Problem(path, f"and more: only the first {MAX_TOLD} mistakes are told")


def _check_each(
    files: Sequence[FileSpec], path: str, means: Means, recall: bool, events_per_unit: int | None
) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, file in enumerate(files):
        first = seen.setdefault(file.did, index)
        if first != index:
            yield Problem(f"{path}[{index}].did", f"{file.did} is in the list already, at [{first}]")
        if file.did.endswith((":.", ":..")):
            yield Problem(f"{path}[{index}].did", "'.' and '..' are no names of files")
        uncut = ranges_problem(file.events, events_per_unit) if events_per_unit is not None else ""
        if uncut:
            yield Problem(f"{path}[{index}].events", uncut)
        odd = attributes_problem(file.attributes) if file.attributes else ""
        if odd:
            yield Problem(f"{path}[{index}].attributes", odd)
        yield from _check_replicas(file, f"{path}[{index}].replicas", means, recall)


def _check_replicas(file: FileSpec, path: str, means: Means, recall: bool) -> Iterator[Problem]:
    storages = means.world.storages
    for number, replica in enumerate(file.replicas):
        wrong = path_problem(replica.path)
        if wrong:
            yield Problem(f"{path}[{number}].path", wrong)
        if replica.storage not in storages:
            yield Problem(f"{path}[{number}].storage", unknown("storage", replica.storage, storages))
    known = [each.storage for each in file.replicas if each.storage in storages]
    if not known or not storages[known[0]].tape:  # lists may be long, and mostly lie on disk
        return
    on_tape = tape_problem(known, means.world, means.stagers)
    if not recall and all(is_tape(each, means.world) for each in known):
        on_tape = "it lies on tape only, and only units are recalled: copy it to a disk first"
    if on_tape:
        yield Problem(path, on_tape)


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


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """That there is no such thing, and what there is."""
    names = ", ".join(sorted(known)[:10]) or "none yet"
    return f"there is no {kind} {name!r}; known: {names}"
