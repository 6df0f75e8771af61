"""How many units a claim takes: it never exceeds what it may, and passes over what alone does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from common.wire import Fixed, Measured, Requirements, SingleInput, StageSpec
from server.config import Knobs
from server.engine.sizing import (
    LOOK_AHEAD,
    TIER_BITS,
    Bounds,
    ReadyUnit,
    SlotSize,
    company,
    cpu_per_event,
    job_bounds,
    needed,
    prefix,
    raised,
    rows_to_look_at,
    tier_of,
    told,
    wall_needed,
)

KNOBS = Knobs()


def units(*sizes: int, tier: int = 0, first: int = 0, events: int = 0) -> list[ReadyUnit]:
    return [ReadyUnit(first + n, raised(first + n, tier), size, events) for n, size in enumerate(sizes)]


@st.composite
def ready(draw: st.DrawFn) -> list[ReadyUnit]:
    row = st.tuples(st.sampled_from([0, 0, 0, 1, 2, 5]), st.integers(0, 60), st.integers(0, 30))
    rows = draw(st.lists(row, max_size=40))
    made = [ReadyUnit(n, raised(n, tier), size, events) for n, (tier, size, events) in enumerate(rows)]
    return sorted(made, key=lambda unit: unit.seq)


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    return Bounds(
        limit=draw(st.integers(1, 50)),
        min_units=draw(st.sampled_from([1, 1, 1, 2, 5])),
        disk_mb=draw(st.none() | st.integers(0, 400)),
        spare_mb=draw(st.sampled_from([0, 0, 50])),
        out_kb_per_event=draw(st.sampled_from([0.0, 0.0, 1024.0, 2500.0])),
        max_events=draw(st.none() | st.integers(0, 200)),
        aim_events=draw(st.none() | st.integers(1, 100)),
        aim_mb=draw(st.none() | st.integers(1, 200)),
    )


def total(taken: list[ReadyUnit]) -> tuple[int, int]:
    """Size, and events: a unit without a number is one."""
    return sum(unit.size_mb for unit in taken), sum(max(1, unit.events) for unit in taken)


def fits(taken: list[ReadyUnit], given: Bounds) -> bool:
    size, events = total(taken)
    produced = max(given.spare_mb, given.out_kb_per_event * events / 1024)
    return (given.disk_mb is None or size + produced <= given.disk_mb) and (
        given.max_events is None or events <= given.max_events
    )


def aimed(taken: list[ReadyUnit], given: Bounds) -> bool:
    size, events = total(taken)
    return (given.aim_events is None or events <= given.aim_events) and (given.aim_mb is None or size <= given.aim_mb)


@settings(deadline=None, max_examples=500)
@given(ready(), bounds())
def test_a_prefix_keeps_every_bound(found: list[ReadyUnit], given: Bounds) -> None:
    taken = prefix(found, given)
    assert len(taken) <= given.limit
    assert len({tier_of(unit.seq) for unit in taken}) <= 1
    assert [unit for unit in found if unit in taken] == taken, "in their order"
    if taken:
        assert fits(taken, given)
        assert len(found) >= given.min_units
        assert len(taken) <= company(given.limit, tier_of(taken[0].seq))
        assert len(taken) == 1 or aimed(taken, given)


@settings(deadline=None, max_examples=500)
@given(ready(), bounds())
def test_only_what_alone_does_not_fit_is_passed_over(found: list[ReadyUnit], given: Bounds) -> None:
    taken = prefix(found, given)
    if taken:
        passed = found[: found.index(taken[-1])]
        assert all(unit in taken or not fits([unit], given) for unit in passed)


@settings(deadline=None, max_examples=500)
@given(ready(), bounds())
def test_a_prefix_stops_only_for_a_reason(found: list[ReadyUnit], given: Bounds) -> None:
    taken = prefix(found, given)
    fitting = [unit for unit in found if fits([unit], given)]
    if len(fitting) < given.min_units or len(taken) == len(fitting):
        return
    tier = tier_of(fitting[0].seq)
    following = fitting[len(taken)]
    more = [*taken, following]
    assert (
        len(taken) == company(given.limit, tier)
        or tier_of(following.seq) != tier
        or not fits(more, given)
        or not aimed(more, given)
    )
    assert taken, "the first that fits can always go"


@given(ready(), bounds())
@settings(deadline=None)
def test_rows_beyond_those_fetched_change_nothing(found: list[ReadyUnit], given: Bounds) -> None:
    # Without units that don't fit, the store needs no more than it fetches at its first try.
    fitting = [unit for unit in found if fits([unit], given)]
    assert prefix(fitting[: rows_to_look_at(given)], given) == prefix(fitting, given)


def test_a_second_try_looks_further() -> None:
    given = Bounds(limit=4, disk_mb=10)
    found = units(*[100] * 20, 5, 5, 5)
    assert prefix(found[: rows_to_look_at(given)], given) == []
    assert prefix(found[: rows_to_look_at(given, again=True)], given) == found[20:22]
    assert rows_to_look_at(given, again=True) == 4 + LOOK_AHEAD


@pytest.mark.parametrize(
    ("sizes", "limit", "least", "disk_mb", "expected"),
    [
        ([], 5, 1, None, 0),
        ([1, 1, 1], 5, 1, None, 3),
        ([1, 1, 1], 2, 1, None, 2),
        ([1, 1, 1], 5, 3, None, 3),
        ([1, 1, 1], 5, 4, None, 0),
        ([100, 100, 100], 5, 1, 200, 2),
        ([100, 100, 100], 5, 1, 199, 1),
        ([100, 1, 1], 5, 1, 99, 2),
        ([0, 0, 0], 5, 1, 0, 3),
        ([1], 5, 1, 0, 0),
    ],
)
def test_a_prefix(sizes: list[int], limit: int, least: int, disk_mb: int | None, expected: int) -> None:
    assert len(prefix(units(*sizes), Bounds(limit, least, disk_mb))) == expected


def test_a_large_unit_at_the_head_does_not_hold_up_the_small_ones_behind_it() -> None:
    found = units(500, 10, 10)
    assert prefix(found, Bounds(limit=10, disk_mb=100)) == found[1:]
    assert prefix(found, Bounds(limit=10, disk_mb=1000)) == found


def test_a_unit_that_is_larger_than_the_aim_still_goes_alone() -> None:
    found = units(10, 10, events=500)
    assert prefix(found, Bounds(limit=10, aim_events=100)) == found[:1]
    assert prefix(found, Bounds(limit=10, aim_mb=5)) == found[:1]
    assert prefix(found, Bounds(limit=10, max_events=100)) == []


def test_output_counts_against_the_disk() -> None:
    found = units(10, 10, 10, 10, events=100)
    # 100 events of 1 MiB each beside 10 MiB of input: two units need 220 MiB.
    assert len(prefix(found, Bounds(limit=10, disk_mb=220, out_kb_per_event=1024.0))) == 2
    assert len(prefix(found, Bounds(limit=10, disk_mb=219, out_kb_per_event=1024.0))) == 1
    assert len(prefix(found, Bounds(limit=10, disk_mb=530, spare_mb=512))) == 1


def test_a_claim_never_spans_two_tiers() -> None:
    mixed = units(1, 1) + units(1, 1, tier=1, first=2)
    assert prefix(mixed, Bounds(10)) == mixed[:2]


@pytest.mark.parametrize(("tier", "expected"), [(0, 100), (1, 25), (2, 6), (3, 1), (4, 1), (99, 1)])
def test_a_unit_that_failed_comes_back_in_smaller_company(tier: int, expected: int) -> None:
    assert company(100, tier) == expected
    assert len(prefix(units(*[1] * 200, tier=tier), Bounds(100))) == expected


@given(st.integers(1, 50), st.integers(0, 100))
@settings(deadline=None)
def test_company_shrinks_and_is_never_nobody(limit: int, tier: int) -> None:
    assert limit >= company(limit, tier) >= company(limit, tier + 1) >= 1


NUMBERS = st.integers(0, 2**TIER_BITS - 1)


@given(NUMBERS, NUMBERS, st.integers(0, 100), st.integers(0, 100))
@settings(deadline=None, max_examples=300)
def test_a_raised_unit_sorts_behind_all_that_failed_less_often(a: int, b: int, fewer: int, more: int) -> None:
    if fewer < more:
        assert raised(a, more) > raised(b, fewer)
    assert tier_of(raised(a, more)) == more
    assert raised(raised(a, more), fewer) == raised(a, fewer)
    assert raised(a, 0) == a
    assert raised(a, more) < 2**63, "the column is a signed 64-bit number"
    if a < b:
        assert raised(a, more) < raised(b, more)


# ---------------------------------------------------------------- job sizing


def spec(disk_mb: int = 700, **more: Any) -> StageSpec:
    more.setdefault("requirements", Requirements(cores=2, memory_mb=3000, disk_mb=disk_mb))
    return StageSpec(name="s", input=SingleInput(), command=["true"], **more)


MEASURED = Measured(
    round=1, jobs=5, cpu_per_event=90.0, memory_per_core_mb=500.0, out_kb_per_event=2048.0, work_mb=300.0
)
SLOT = SlotSize(disk_mb=10_000, wall_s=3600.0, core_power=10.0, cpu_efficiency=0.5)


def test_until_something_is_measured_a_job_takes_one_unit_beside_the_disk_that_was_asked_for() -> None:
    assert job_bounds(spec(), None, SLOT, KNOBS) == Bounds(limit=1, disk_mb=9300)


def test_a_measured_job_fills_the_slot() -> None:
    """W >= cpuTime * n / (C * P * eff) + base: 3600 s * 2 * 10 * 0.5 / 90 = 400 events with the margin, 600 without."""
    found = job_bounds(spec(disk_mb=900), MEASURED, SLOT, KNOBS)
    assert found == Bounds(
        limit=200, disk_mb=9700, spare_mb=512, out_kb_per_event=2048.0, max_events=600, aim_events=400
    )


def test_the_start_of_a_job_takes_its_time() -> None:
    knobs = structs.replace(KNOBS, sizing_base_s=1800.0)
    assert job_bounds(spec(), MEASURED, SLOT, knobs).aim_events == 200
    assert job_bounds(spec(), MEASURED, replace(SLOT, wall_s=60.0), knobs).max_events == 0


def test_a_slot_that_does_not_know_its_wall_time_gets_jobs_of_a_sensible_length() -> None:
    slot = SlotSize(core_power=10.0, cpu_efficiency=0.5)
    found = job_bounds(spec(), MEASURED, slot, KNOBS)
    assert (found.max_events, found.aim_events) == (None, int(KNOBS.sizing_job_s * 10 / 90))
    assert found.disk_mb is None


def test_a_job_keeps_within_the_wall_time_that_its_user_said() -> None:
    limited = spec(requirements=Requirements(cores=2, wall_s=1800))
    found = job_bounds(limited, MEASURED, SLOT, KNOBS)
    assert (found.max_events, found.aim_events) == (None, 200)


@pytest.mark.parametrize(
    ("preset", "limit", "aim_events", "aim_mb"),
    [
        ({"files_per_job": 7}, 7, 400, None),
        ({"events_per_job": 50}, 200, 50, None),
        ({"events_per_job": 5000}, 200, 400, None),
        ({"mb_per_job": 2000}, 200, 400, 2000),
        ({"files_per_job": 7, "mb_per_job": 2000}, 7, 400, 2000),
    ],
)
def test_what_the_user_set_stays(preset: dict[str, int], limit: int, aim_events: int, aim_mb: int | None) -> None:
    found = job_bounds(spec(**preset), MEASURED, SLOT, KNOBS)
    assert (found.limit, found.aim_events, found.aim_mb) == (limit, aim_events, aim_mb)
    before = job_bounds(spec(**preset), None, SLOT, KNOBS)
    assert (before.limit, before.aim_events, before.aim_mb) == (limit, preset.get("events_per_job"), aim_mb)


def test_cpu_time_that_nobody_knows_keeps_jobs_at_one_unit() -> None:
    assert job_bounds(spec(), structs.replace(MEASURED, cpu_per_event=None), SLOT, KNOBS).limit == 1


def test_cpu_time_that_the_user_gave_sizes_the_first_jobs() -> None:
    found = job_bounds(spec(cpu_per_event=45.0), None, SLOT, KNOBS)
    assert (found.limit, found.aim_events, found.max_events) == (200, 800, 800)
    assert cpu_per_event(spec(cpu_per_event=45.0), MEASURED) == 90.0
    assert cpu_per_event(spec(cpu_per_event=45.0, fixed=[Fixed.CPU_TIME]), MEASURED) == 45.0


def test_a_payload_that_needs_no_cpu_time_is_bound_by_disk_and_number_only() -> None:
    found = job_bounds(spec(), structs.replace(MEASURED, cpu_per_event=0.0), SLOT, KNOBS)
    assert (found.limit, found.max_events, found.aim_events) == (200, None, None)


def test_the_smallest_job_needs_what_was_measured() -> None:
    needs = needed(spec(disk_mb=900), MEASURED, KNOBS, events=100)
    assert (needs.memory_mb, needs.disk_mb) == (1000, 512 + 300)
    assert needed(spec(), MEASURED, KNOBS, events=1000).disk_mb == 2000 + 300
    knobs = structs.replace(KNOBS, sizing_base_memory_mb=250.0)
    assert needed(spec(), MEASURED, knobs).memory_mb == 1250
    assert needed(spec(), None, KNOBS) == spec().requirements


@pytest.mark.parametrize(("asked_mb", "work_mb"), [(50, 1.0), (700, 300.0), (512, 0.0), (0, 0.0)])
def test_a_task_does_not_measure_itself_out_of_the_disk_that_its_jobs_ran_in(asked_mb: int, work_mb: float) -> None:
    """It did: half a GB for output that nobody writes was more than queue and user had meant, and the rest waited for ever."""
    measured = structs.replace(MEASURED, out_kb_per_event=1.0, work_mb=work_mb)
    task = spec(disk_mb=asked_mb)
    assert needed(task, measured, KNOBS).disk_mb <= max(asked_mb, 1)
    slot = replace(SLOT, disk_mb=asked_mb + 20)
    assert len(prefix(units(10, 10), job_bounds(task, measured, slot, KNOBS))) >= 1


def test_what_is_fixed_is_not_changed() -> None:
    fixed = spec(fixed=[Fixed.MEMORY, Fixed.DISK])
    needs = needed(fixed, MEASURED, KNOBS)
    assert (needs.memory_mb, needs.disk_mb) == (3000, 700)
    found = job_bounds(fixed, MEASURED, SLOT, KNOBS)
    assert (found.disk_mb, found.spare_mb, found.out_kb_per_event) == (9300, 0, 0.0)


def test_a_pilot_is_never_told_less_than_the_user_asked_for() -> None:
    assert told(spec(), MEASURED, KNOBS).memory_mb == 3000
    assert told(spec(), structs.replace(MEASURED, memory_per_core_mb=2000.0), KNOBS).memory_mb == 4000
    assert told(spec(disk_mb=900), MEASURED, KNOBS).disk_mb == 1.5 * (512 + 300)
    assert told(spec(), MEASURED, KNOBS).disk_mb == 700
    assert told(spec(), MEASURED, KNOBS, events=1000).disk_mb == 1.5 * (2000 + 300), "of all its events"
    assert told(spec(fixed=[Fixed.DISK]), MEASURED, KNOBS, events=1000).disk_mb == 700
    assert told(spec(), None, KNOBS, events=1000) == spec().requirements


def test_wall_time_of_the_smallest_job() -> None:
    assert wall_needed(spec(), None, SLOT, KNOBS) == 0
    assert wall_needed(spec(), MEASURED, SLOT, KNOBS, events=100) == pytest.approx(100 * 60 / 10)
    assert wall_needed(spec(requirements=Requirements(wall_s=77)), MEASURED, SLOT, KNOBS) == 77


@given(
    st.floats(1.0, 1e5),
    st.floats(0.0, 1e5),
    st.integers(1, 64),
    st.floats(1.0, 100.0),
    st.integers(0, 200_000),
    st.integers(0, 500_000),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 2000)), max_size=30),
)
@settings(deadline=None, max_examples=300)
def test_a_sized_job_obeys_both_formulas(
    cpu: float, out: float, cores: int, power: float, disk_mb: int, wall_s: int, rows: list[tuple[int, int]]
) -> None:
    task = spec(requirements=Requirements(cores=cores, memory_mb=1, disk_mb=900))
    measured = structs.replace(MEASURED, cpu_per_event=cpu, out_kb_per_event=out)
    slot = SlotSize(disk_mb, wall_s, power, 0.9)
    found = [ReadyUnit(n, n, size, events) for n, (size, events) in enumerate(rows)]
    taken = prefix(found, job_bounds(task, measured, slot, KNOBS))
    size, events = total(taken)
    margin = KNOBS.scout_safety if len(taken) == 1 else 1.0
    if taken and disk_mb:
        assert disk_mb >= size + max(512, out * events / 1024) + 300
    if taken and wall_s:
        assert wall_s >= cpu * events / (cores * power * 0.9) / margin * (1 - 1e-9)


def test_a_unit_without_an_event_count_is_one_event() -> None:
    found = units(1, 1, 1, 1)
    assert prefix(found, Bounds(limit=10, aim_events=3)) == found[:3]
    assert prefix(found, Bounds(limit=10, max_events=2)) == found[:2]
