"""What a task needs, measured from its jobs: each formula by hand, and what no set of jobs may lead to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from common.wire import Measured
from server.config import Knobs
from server.engine.measure import MIB, Sample, measure, percentile

KNOBS = Knobs()


def sample(**more: Any) -> Sample:
    given: dict[str, Any] = {
        "job_id": 1,
        "site": "s",
        "core_power": 10.0,
        "cpu_efficiency": 0.9,
        "cores": 1,
        "units": 1,
        "events": 100,
        "cpu_s": 900.0,
        "wall_s": 1000.0,
        "memory_mb": 800.0,
    }
    return Sample(**{**given, **more})


def found(*samples: Sample, before: Measured | None = None, **knobs: Any) -> Measured:
    return measure(samples, before, 5.0, structs.replace(KNOBS, **knobs))


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, None),
        ([7], 1, 7),
        ([7], 100, 7),
        ([1, 2, 3, 4], 75, 3),
        ([1, 2, 3, 4], 76, 4),
        ([4, 3, 2, 1], 50, 2),
        (range(1, 101), 95, 95),
        (range(1, 6), 95, 5),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected


def test_cpu_time_is_wall_time_of_the_cores_by_their_power_with_a_margin() -> None:
    """(1000 - 100) s * 10 HS23 * 4 cores * 0.9 * 1.5 / 100 events."""
    assert found(sample(cores=4), sizing_base_s=100.0).cpu_per_event == pytest.approx(486.0)
    assert found(sample(), sizing_base_s=2000.0).cpu_per_event == 0.0


def test_cpu_time_is_the_95th_percentile() -> None:
    jobs = [sample(wall_s=float(n)) for n in range(1, 101)]
    assert found(*jobs).cpu_per_event == pytest.approx(95 * 10 * 0.9 * 1.5 / 100)


@pytest.mark.parametrize(
    ("more", "tells"),
    [
        ({"events": 10}, True),
        ({"events": 9}, False),
        ({"events": 39, "cores": 4}, False),
        ({"events": 40, "cores": 4}, True),
        ({"events": 9, "wall_s": 6 * 3600.0}, True),
        ({"events": 9, "wall_s": 6 * 3600.0 - 1}, False),
        ({"events": 1, "units": 1}, True),
        ({"events": 3, "units": 3}, True),
        ({"events": 0, "units": 0}, False),
        ({"wall_s": 0.0}, False),
    ],
)
def test_only_jobs_with_enough_events_or_of_six_hours_or_of_whole_files_tell_cpu_time(
    more: dict[str, Any], tells: bool
) -> None:
    assert (found(sample(**{"units": 2, **more})).cpu_per_event is not None) == tells


def test_memory_is_the_75th_percentile_with_a_margin() -> None:
    jobs = [sample(memory_mb=float(100 * n), cores=2) for n in range(1, 21)]
    assert found(*jobs).memory_per_core_mb == pytest.approx(1500 / 2 * 1.1)
    assert found(*jobs, sizing_base_memory_mb=500.0).memory_per_core_mb == pytest.approx(1000 / 2 * 1.1)
    assert found(sample(memory_mb=10.0)).memory_per_core_mb == KNOBS.scout_memory_min_mb
    assert found(sample(memory_mb=0.0)).memory_per_core_mb is None


def test_output_is_counted_by_event() -> None:
    jobs = [sample(out_bytes=n * 1024 * 100, events=100) for n in range(1, 5)]
    assert found(*jobs).out_kb_per_event == 3.0
    assert found(sample(events=9, units=2, out_bytes=10**9)).out_kb_per_event is None
    assert found(sample(events=2, units=2, out_bytes=4096)).out_kb_per_event == 2.0


def test_work_space_is_beside_input_and_output_and_never_shrinks() -> None:
    large = sample(work_dir_mb=1000.0, in_bytes=int(300 * MIB), out_bytes=int(200 * MIB))
    assert found(sample(work_dir_mb=50.0), large).work_mb == 500.0
    before = Measured(work_mb=800.0)
    assert found(large, before=before).work_mb == 800.0
    assert found(sample(work_dir_mb=900.0), before=before).work_mb == 900.0
    assert found(sample(work_dir_mb=1.0, in_bytes=int(300 * MIB))).work_mb == 0.0
    assert found(sample()).work_mb is None


def test_io() -> None:
    jobs = sample(in_bytes=600_000, out_bytes=400_000, wall_s=100.0), sample(in_bytes=1000, wall_s=100.0)
    assert found(*jobs).io_kb_s == 10.0
    assert found(sample(io_bytes=5_000_000, wall_s=100.0)).disk_io_kb_s == 50.0
    assert found(sample(io_bytes=10**12, wall_s=100.0)).disk_io_kb_s == KNOBS.scout_disk_io_cap_kb_s


def test_use_of_the_cores_is_the_median() -> None:
    jobs = [sample(cpu_s=float(cpu), cores=2) for cpu in (200, 400, 1800)]
    assert found(*jobs).cpu_efficiency == pytest.approx(0.2)
    assert found(sample(cpu_s=0.0)).cpu_efficiency is None


def test_what_jobs_do_not_show_stays_as_it_was() -> None:
    before = Measured(1, 5, 1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 0.7, 80.0, ["memory"])
    after = found(before=before)
    assert after == structs.replace(before, round=2, jobs=0, time=5.0)


samples_ = st.builds(
    Sample,
    job_id=st.integers(1, 99),
    site=st.sampled_from(["a", "b"]),
    core_power=st.floats(0.1, 100),
    cpu_efficiency=st.floats(0.01, 1),
    cores=st.integers(1, 128),
    units=st.integers(0, 1000),
    events=st.integers(0, 10**7),
    cpu_s=st.floats(0, 1e9),
    wall_s=st.just(0.0) | st.floats(0.001, 1e7),
    memory_mb=st.floats(0, 1e7),
    work_dir_mb=st.floats(0, 1e7),
    in_bytes=st.integers(0, 2**50),
    out_bytes=st.integers(0, 2**50),
    io_bytes=st.integers(0, 2**50),
    leak_kb_s=st.floats(-1e6, 1e6),
)
FIGURES = (
    "cpu_per_event",
    "memory_per_core_mb",
    "out_kb_per_event",
    "work_mb",
    "io_kb_s",
    "disk_io_kb_s",
    "cpu_efficiency",
    "wall_s",
)


@settings(deadline=None, max_examples=300)
@given(st.lists(samples_, max_size=20), st.lists(samples_, max_size=20))
def test_no_jobs_lead_to_a_figure_that_is_none(first: list[Sample], second: list[Sample]) -> None:
    one = measure(first, None, 1.0, KNOBS)
    two = measure(second, one, 2.0, KNOBS)
    for name in FIGURES:
        for measured in (one, two):
            value = getattr(measured, name)
            assert value is None or 0 <= value < float("inf")
        assert getattr(one, name) is None or getattr(two, name) is not None, "what was known stays known"
    assert (two.work_mb or 0) >= (one.work_mb or 0)
    assert (one.round, two.round, two.jobs) == (1, 2, len(second))


@settings(deadline=None, max_examples=200)
@given(st.lists(samples_, min_size=1, max_size=20), st.randoms())
def test_the_order_of_the_jobs_does_not_matter(jobs: list[Sample], random: Any) -> None:
    mixed = list(jobs)
    random.shuffle(mixed)
    assert measure(mixed, None, 1.0, KNOBS) == measure(jobs, None, 1.0, KNOBS)
