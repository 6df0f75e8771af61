"""From files to units: ranges of events, places to read from, groups of a merge, turns of secondary files."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import (
    Endpoint,
    FileSpec,
    MergeRule,
    ReplicaSpec,
    SecondaryInput,
    SingleInput,
    StageInput,
    StageSource,
    StageSpec,
    StorageSpec,
)
from server.engine.inputs import (
    MOST_RANGES,
    Cutter,
    event_ranges,
    feeding_order,
    feeding_stages,
    in_turn,
    matches,
    reading_places,
    units_of,
)
from server.engine.world import World


def storage(name: str, site: str, **more: object) -> StorageSpec:
    return StorageSpec(name=name, site=site, endpoints=[Endpoint("root://h//d")], **more)  # type: ignore[arg-type]


WORLD = World(
    storages={
        each.name: each
        for each in (
            storage("A", "s1"),
            storage("B", "s2"),
            storage("C", "s1"),
            storage("TAPE", "s1", tape=True, stager="robot"),
            storage("VAULT", "s1", tape=True),
        )
    }
)
STAGERS = frozenset({"robot"})


def file(*storages: str, **more: object) -> FileSpec:
    return FileSpec(did="s:a", replicas=[ReplicaSpec(each, "a") for each in storages], **more)  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_ranges_cover_a_file_without_gap_or_overlap(events: int, per_unit: int) -> None:
    cuts = list(event_ranges(events, per_unit))
    assert cuts[0][0] == 0 and sum(number for _, number in cuts) == events
    assert all(first + number == after for (first, number), (after, _) in zip(cuts, cuts[1:]))
    assert all(0 < number <= per_unit for _, number in cuts) or events == 0
    assert len(cuts) == units_of(file("A", events=events), per_unit)


def test_a_file_that_makes_too_many_ranges_has_a_problem() -> None:
    fits, too_many = (
        Cutter(WORLD, events_per_unit=1).pieces(file("A", events=number)) for number in (MOST_RANGES, MOST_RANGES + 1)
    )
    assert len(fits) == MOST_RANGES and not fits[0].problem
    assert len(too_many) == 1 and "let events_per_unit be larger" in too_many[0].problem


def test_a_file_with_no_known_replica_has_a_problem() -> None:
    (piece,) = Cutter(WORLD).pieces(file("X", "Y"))
    assert piece.problem == "none of its replicas is on a known storage: X, Y"


@pytest.mark.parametrize(
    ("storages", "places", "on_tape"),
    [
        (["A", "TAPE"], ["A"], False),
        (["TAPE"], ["TAPE"], True),
        (["VAULT", "TAPE"], ["TAPE"], True),
        (["B", "A", "B"], ["A", "B"], False),
        ([], [], False),
    ],
)
def test_a_tape_counts_only_without_a_disk(storages: list[str], places: list[str], on_tape: bool) -> None:
    assert reading_places(storages, WORLD, STAGERS) == (places, on_tape)


@pytest.mark.parametrize(("stagers", "words"), [(STAGERS, "names no stager"), (frozenset(), "has no stager 'robot'")])
def test_a_tape_that_nobody_recalls_is_a_problem(stagers: frozenset[str], words: str) -> None:
    on = "VAULT" if stagers else "TAPE"
    (piece,) = Cutter(WORLD, stagers=stagers).pieces(file(on))
    assert words in piece.problem and not piece.on_tape


@pytest.mark.parametrize(
    ("rule", "storages", "locations", "grouping"),
    [
        (None, ["B", "A"], ("A", "B"), ""),
        ("storage", ["B", "A"], ("A",), ""),
        ("site", ["C"], ("@s1",), ""),
        ("attribute:run", ["A"], ("A",), "7"),
        ("attribute:none", ["A"], ("A",), ""),
    ],
)
def test_a_merge_keeps_its_groups_in_buckets_of_their_own(
    rule: str | None, storages: list[str], locations: tuple[str, ...], grouping: str
) -> None:
    cutter = Cutter(WORLD, MergeRule(1, 9, group_by=rule))
    (piece,) = cutter.pieces(file(*storages, attributes={"run": 7}))
    assert (piece.locations, piece.grouping) == (locations, grouping)


@pytest.mark.parametrize(
    ("did", "pattern", "found"),
    [
        ("s:a.root", "*", True),
        ("s:a.root", "*.root", True),
        ("s:a.root", "*.ROOT", False),
        ("s.root:a.txt", "*.root", False),
        ("s:a.root.1", "a.roo?", False),
        ("s:a+b", "a[+]b", True),
    ],
)
def test_a_pattern_is_of_the_name(did: str, pattern: str, found: bool) -> None:
    assert matches(did, pattern) is found


def stage(name: str, *sources: str, beside: str | None = None) -> StageSpec:
    return StageSpec(
        name=name,
        input=StageInput(stages=[StageSource(each) for each in sources]) if sources else SingleInput(),
        secondary_inputs=[SecondaryInput(name="x", stage=beside)] if beside else [],
        command=["true"],
    )


def test_stages_are_ordered_behind_those_that_feed_them() -> None:
    stages = [stage("d", "b", "c"), stage("b", "a"), stage("c", beside="a"), stage("a"), stage("e")]
    assert [each.name for each in feeding_order(stages)] == ["a", "b", "c", "d", "e"]
    assert feeding_stages(stage("x", "b", "a", beside="b")) == ["b", "a"]


@given(st.integers(1, 20), st.integers(1, 30))
def test_secondary_files_are_given_out_evenly(per_job: int, total: int) -> None:
    jobs = [in_turn(job_id, per_job, total) for job_id in range(total)]
    assert all(len(set(each)) == len(each) == min(per_job, total) for each in jobs)
    counts = Counter(number for each in jobs for number in each)
    assert set(counts.values()) == {min(per_job, total)}  # after a whole round each came as often as any other


def test_no_secondary_file_is_none() -> None:
    assert in_turn(5, 2, 0) == []
