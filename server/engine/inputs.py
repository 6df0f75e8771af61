"""From what a task reads to its units: which files, cut into which ranges of events, merged with which others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import lru_cache

from common.wire import FileSpec, MergeRule, ReplicaSpec, StageInput, StageSource, StageSpec
from server.engine.world import World

MOST_RANGES = 100_000
"""Ranges of events that one file may be cut into."""
ATTRIBUTE = "attribute:"
"""What begins the grouping rule of a merge that goes by an attribute of the files."""


@dataclass(frozen=True)
class Piece:
    """One unit to be made of a file: all of it, or ``events`` events from ``first_event`` on."""

    file: FileSpec
    locations: tuple[str, ...]
    events: int | None
    first_event: int | None = None
    grouping: str = ""
    on_tape: bool = False
    problem: str = ""
    """Why it can never be processed, if so."""


@dataclass(frozen=True)
class Cutter:
    """Cuts files into units by the rules of one task. ``stagers`` are those that the server is configured with.

    Of ``virtual`` files nobody asks where they lie.
    """

    world: World
    merge: MergeRule | None = None
    events_per_unit: int | None = None
    stagers: frozenset[str] = frozenset()
    virtual: bool = False

    def pieces(self, file: FileSpec) -> list[Piece]:
        """The units of a file."""
        whole = self._whole(file)
        if self.events_per_unit is None or whole.problem:
            return [whole]
        problem = ranges_problem(file.events, self.events_per_unit)
        if problem or file.events is None:
            return [replace(whole, problem=problem, on_tape=False)]
        cuts = event_ranges(file.events, self.events_per_unit)
        return [replace(whole, events=number, first_event=first) for first, number in cuts]

    def _whole(self, file: FileSpec) -> Piece:
        if self.virtual:
            return Piece(file, (), file.events)
        problem = replicas_problem(file.replicas, self.world, self.stagers)
        storages, on_tape = reading_places([each.storage for each in file.replicas], self.world, self.stagers)
        return Piece(
            file,
            merge_locations(storages, self.merge, self.world),
            file.events,
            grouping=grouping(file, self.merge),
            on_tape=on_tape and not problem,
            problem=problem,
        )


def ranges_problem(events: int | None, per_unit: int) -> str:
    """Why a file with so many events cannot be cut into ranges, if so."""
    if events is None:
        return "its number of events is not known, so it cannot be cut into ranges: say how many it has"
    if events > per_unit * MOST_RANGES:
        return f"its {events} events would make more than {MOST_RANGES} units: let events_per_unit be larger"
    return ""


def units_of(file: FileSpec, per_unit: int | None) -> int:
    """How many units a file makes."""
    return 1 if per_unit is None or not file.events else -(-file.events // per_unit)


def event_ranges(events: int, per_unit: int) -> Iterator[tuple[int, int]]:
    """(first event, number) of each range of a file; a file without events is one empty range, so that it is not lost."""
    if events == 0:
        yield 0, 0
    for first in range(0, events, per_unit):
        yield first, min(per_unit, events - first)


def reading_places(
    storages: Iterable[str], world: World, stagers: frozenset[str] = frozenset()
) -> tuple[list[str], bool]:
    """The storages from which a file is read, and whether it must be recalled from tape before.

    A copy on tape counts only when there is none on disk; of those, only where a stager can bring it back.
    """
    names = sorted(set(storages))
    disks = [name for name in names if not is_tape(name, world)]
    if disks:
        return disks, False
    able = [name for name in names if world.storages[name].stager in stagers]
    return able or names, bool(names)


def is_tape(storage: str, world: World) -> bool:
    """Whether what lies on a storage must be recalled before it is read."""
    spec = world.storages.get(storage)
    return spec is not None and spec.tape


def replicas_problem(replicas: Sequence[ReplicaSpec], world: World, stagers: frozenset[str]) -> str:
    """Why a file with these replicas can never be read, if so."""
    known = [each.storage for each in replicas if each.storage in world.storages]
    if not known:
        names = ", ".join(sorted({each.storage for each in replicas})) or "nowhere"
        return f"none of its replicas is on a known storage: {names}"
    return tape_problem(known, world, stagers)


def tape_problem(storages: Sequence[str], world: World, stagers: frozenset[str]) -> str:
    """Why a file that has copies on these known storages cannot be recalled from tape, if it must be."""
    if any(not is_tape(name, world) or world.storages[name].stager in stagers for name in storages):
        return ""
    name = storages[0]
    stager = world.storages[name].stager
    if stager is None:
        return f"it lies on tape only, and storage {name} names no stager that could recall it"
    return f"it lies on tape only, and the server's configuration has no stager {stager!r}, which storage {name} names"


def merge_locations(storages: Sequence[str], merge: MergeRule | None, world: World) -> tuple[str, ...]:
    """The location set of the bucket: of one storage or site where the merge keeps those apart."""
    rule = merge.group_by if merge is not None else None
    first = min(storages, default=None)
    if rule == "storage" and first is not None:
        return (first,)
    if rule == "site" and first is not None and first in world.storages:
        return (f"@{world.storages[first].site}",)
    return world.locations_of(storages)


def grouping(file: FileSpec, merge: MergeRule | None) -> str:
    """The key of the group in which a file may be merged; files without the attribute are a group of their own."""
    rule = merge.group_by if merge is not None else None
    if rule is None or not rule.startswith(ATTRIBUTE):
        return ""
    value = file.attributes.get(rule.removeprefix(ATTRIBUTE))
    return "" if value is None else str(value)[:255]


def matches(did: str, pattern: str) -> bool:
    """Whether the name in a DID matches a wildcard pattern; upper and lower case differ."""
    return pattern == "*" or _compiled(pattern).match(did.partition(":")[2]) is not None


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def sources_of(given: StageInput) -> list[StageSource]:
    """The stages that feed an input."""
    return [*([StageSource(given.stage, given.pattern)] if given.stage is not None else []), *given.stages]


def feeding_stages(stage: StageSpec) -> list[str]:
    """The names of all stages that must end before this one can: those of its units and of its secondary inputs."""
    primary = sources_of(stage.input) if isinstance(stage.input, StageInput) else []
    names = [each.stage for each in primary] + [each.stage for each in stage.secondary_inputs if each.stage is not None]
    return list(dict.fromkeys(names))


def feeding_order(stages: Sequence[StageSpec]) -> list[StageSpec]:
    """The stages of a workflow without circles, each behind those that feed it."""
    by_name = {stage.name: stage for stage in stages}
    ordered: dict[str, StageSpec] = {}

    def visit(stage: StageSpec) -> None:
        for name in feeding_stages(stage):
            if name not in ordered:
                visit(by_name[name])
        ordered[stage.name] = stage

    for stage in stages:
        if stage.name not in ordered:
            visit(stage)
    return list(ordered.values())


def in_turn(job_id: int, per_job: int, total: int) -> list[int]:
    """Which of ``total`` secondary files a job gets: the same at each repeat, others than the job before.

    Never one twice, so fewer than ``per_job`` when there are fewer.
    """
    count = min(per_job, total)
    return [(job_id * count + index) % total for index in range(count)]
