"""How many pilots a queue is asked for: all queues together are asked for the work once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import ResourceState, TaskState
from common.wire import Endpoint, GpuRequest, QueueSpec, Requirements, Shape, ShapeDemand, SiteSpec, StorageSpec
from server.engine.demand import TURN_S, demand, shape_of
from server.engine.matching import Candidate
from server.engine.world import World

NOW = 1_000_000.0


def bucket(
    number: int = 1, *, units: int = 10, per_job: int = 1, needs: Requirements | None = None, **other: Any
) -> Candidate:
    given: dict[str, Any] = {
        "bucket_id": number,
        "task_id": number,
        "task_state": TaskState.RUNNING,
        "locations": (),
        "requirements": needs or Requirements(),
        "share": "default",
        "priority": 0,
        "created": 0.0,
        "ready_since": 0.0,
        "units_per_job": per_job,
        "ready_units": units,
    }
    return Candidate(**{**given, **other})


def world(*queues: QueueSpec) -> World:
    return World(
        sites={queue.site: SiteSpec(queue.site) for queue in queues},
        queues={queue.name: queue for queue in queues},
        storages={"SE": StorageSpec(name="SE", site="S0", endpoints=[Endpoint("root://h//d")])},
    )


def queues(count: int, **limits: Any) -> list[QueueSpec]:
    return [QueueSpec(trusted=True, name=f"Q{n}", site=f"S{n}", **limits) for n in range(count)]


def ask(there: World, candidates: list[Candidate], now: float = NOW) -> dict[str, list[ShapeDemand]]:
    return {name: demand(queue, candidates, there, [], now) for name, queue in there.queues.items()}


def pilots(answers: dict[str, list[ShapeDemand]]) -> dict[str, int]:
    return {name: sum(line.pilots for line in lines) for name, lines in answers.items()}


def test_no_work_no_pilots() -> None:
    assert ask(world(*queues(2)), []) == {"Q0": [], "Q1": []}
    for units in (0, -1):
        assert ask(world(*queues(2)), [bucket(units=units)]) == {"Q0": [], "Q1": []}


@pytest.mark.parametrize(("units", "per_job", "jobs"), [(10, 1, 10), (10, 3, 4), (1, 500, 1), (500, 500, 1), (7, 0, 7)])
def test_one_queue_is_asked_for_every_job(units: int, per_job: int, jobs: int) -> None:
    (line,) = ask(world(*queues(1)), [bucket(units=units, per_job=per_job)])["Q0"]
    assert (line.pilots, line.ready_jobs, line.ready_units, line.running_jobs) == (jobs, jobs, units, 0)


def test_one_unit_was_once_asked_of_every_queue() -> None:
    assert Counter(pilots(ask(world(*queues(10)), [bucket(units=1)])).values()) == {1: 1, 0: 9}


def test_thirds_once_summed_to_a_pilot_too_many() -> None:
    # 6 buckets of 7 units for 3 queues make 14 for each; in floating point they made 15.
    answers = ask(world(*queues(3)), [bucket(n, units=7) for n in range(6)])
    assert pilots(answers) == {"Q0": 14, "Q1": 14, "Q2": 14}


def test_a_queue_that_starts_no_pilots_does_not_keep_the_last_unit() -> None:
    there = world(*queues(4))
    asked = {
        name for turn in range(4) for name, n in pilots(ask(there, [bucket(units=1)], NOW + turn * TURN_S)).items() if n
    }
    assert asked == set(there.queues)


def test_the_split_stays_for_a_while() -> None:
    there, start = world(*queues(4)), NOW // TURN_S * TURN_S
    assert ask(there, [bucket(units=1)], start) == ask(there, [bucket(units=1)], start + TURN_S - 1)


NEEDS = [Requirements(), Requirements(cores=8, memory_mb=16_000), Requirements(wall_s=3600)]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 7),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9), st.sampled_from(NEEDS)), max_size=8),
    st.integers(0, 10_000_000),
)
def test_all_queues_together_are_asked_for_the_work_once(
    count: int, work: list[tuple[int, int, Requirements]], now: int
) -> None:
    candidates = [bucket(n, units=units, per_job=size, needs=needs) for n, (units, size, needs) in enumerate(work)]
    lines = [line for lines in ask(world(*queues(count)), candidates, now).values() for line in lines]
    assert sum(line.ready_units for line in lines) == sum(units for units, _, _ in work)
    assert sum(line.ready_jobs for line in lines) == sum(-(-units // size) for units, size, _ in work)
    assert all(line.pilots == line.ready_jobs and line.ready_units > 0 for line in lines)


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(0, 100), st.integers(0, 10))
def test_the_parts_of_one_bucket_differ_by_one_at_the_most(count: int, units: int, number: int) -> None:
    parts = pilots(ask(world(*queues(count)), [bucket(number, units=units)])).values()
    assert sum(parts) == units and max(parts) - min(parts) <= 1


def test_the_order_of_the_queues_does_not_matter() -> None:
    three, candidates = queues(3), [bucket(n, units=4 + n) for n in range(5)]
    assert ask(world(*three), candidates) == ask(world(*three[::-1]), candidates)


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_mb": 500},
        {"disk_mb": 100},
        {"wall_s": 60},
        {"cores": 1},
        {"status": ResourceState.PAUSED},
        {"status": ResourceState.OFFLINE},
    ],
)
def test_a_queue_that_cannot_run_the_work_is_not_asked(limits: dict[str, Any]) -> None:
    needs = Requirements(cores=2, memory_mb=1000, disk_mb=500, wall_s=3600)
    there = world(
        QueueSpec(trusted=True, name="LITTLE", site="A", **limits), QueueSpec(trusted=True, name="LARGE", site="B")
    )
    assert pilots(ask(there, [bucket(units=6, needs=needs)])) == {"LITTLE": 0, "LARGE": 6}


def test_a_tag_that_a_pilot_finds_out_by_itself_does_not_keep_a_queue_from_being_asked() -> None:
    needs = Requirements(tags=["x86_64", "el9"])
    there = world(
        QueueSpec(trusted=True, name="PLAIN", site="A"), QueueSpec(trusted=True, name="EL9", site="B", tags=["el9"])
    )
    assert pilots(ask(there, [bucket(units=6, needs=needs, needs_container=True)])) == {"PLAIN": 0, "EL9": 6}


def test_only_a_queue_with_gpus_is_asked_for_gpus() -> None:
    needs = Requirements(gpus=GpuRequest(count=2, vendor="NVIDIA", model="A100", memory_mb=40_000))
    there = world(*(QueueSpec(trusted=True, name=f"G{n}", site=f"S{n}", gpus=n) for n in range(4)))
    answers = ask(there, [bucket(units=6, needs=needs)])
    assert pilots(answers) == {"G0": 0, "G1": 0, "G2": 3, "G3": 3}
    assert answers["G2"][0].shape.gpus == 2


def test_a_far_queue_is_asked_only_after_the_wait() -> None:
    there = world(*queues(2))
    candidate = bucket(units=6, locations=("SE",), ready_since=NOW - 10, far_after_s=60)
    assert pilots(ask(there, [candidate])) == {"Q0": 6, "Q1": 0}
    assert pilots(ask(there, [candidate], NOW + 50)) == {"Q0": 3, "Q1": 3}


def test_a_paused_task_asks_for_nothing() -> None:
    assert pilots(ask(world(*queues(1)), [bucket(task_state=TaskState.PAUSED)])) == {"Q0": 0}


def test_running_jobs_keep_their_pilots() -> None:
    (queue,) = queues(1)
    busy = Shape(cores=8, memory_mb=16_000, disk_mb=500)
    lines = demand(queue, [bucket(units=3)], world(queue), [(shape_of(Requirements(), 0, queue), 2), (busy, 4)], NOW)
    assert [(line.shape.cores, line.pilots, line.ready_jobs, line.running_jobs) for line in lines] == [
        (1, 5, 3, 2),
        (8, 4, 0, 4),
    ]


def test_of_two_tasks_with_running_jobs_of_one_shape_one_was_once_forgotten() -> None:
    (queue,) = queues(1)
    (line,) = demand(queue, [], world(queue), [(Shape(cores=8), 2), (Shape(cores=8), 3)], NOW)
    assert (line.pilots, line.running_jobs) == (5, 5)


def test_buckets_of_one_shape_share_a_line_and_others_have_their_own() -> None:
    needs = [Requirements(), Requirements(tags=["linux"]), Requirements(cores=4)]
    lines = ask(world(*queues(1)), [bucket(n, units=2, needs=each) for n, each in enumerate(needs)])["Q0"]
    assert [(line.shape.cores, line.pilots) for line in lines] == [(1, 4), (4, 2)]


def test_a_shape_is_what_the_job_needs() -> None:
    needs = Requirements(cores=4, memory_mb=8000, disk_mb=900, wall_s=3600, gpus=GpuRequest(count=2))
    (queue,) = queues(1)
    assert shape_of(needs, 0, queue) == Shape(cores=4, memory_mb=8000, disk_mb=1000, wall_s=3600, gpus=2)


@pytest.mark.parametrize(
    ("scratch", "input_mb", "limit", "expected"),
    [(500, 0, 0, 1000), (500, 500, 0, 1000), (500, 501, 0, 2000), (0, 0, 0, 0), (500, 5000, 4500, 4500)],
)
def test_a_shape_holds_the_input_in_steps_and_within_the_queue(
    scratch: int, input_mb: int, limit: int, expected: int
) -> None:
    queue = QueueSpec(trusted=True, name="Q", site="S", disk_mb=limit)
    assert shape_of(Requirements(disk_mb=scratch), input_mb, queue).disk_mb == expected


@pytest.mark.parametrize(
    ("units", "per_job", "least", "disk_mb"), [(10, 4, 1, 9000), (2, 4, 1, 5000), (1, 1, 1, 3000), (2, 9, 2, 5000)]
)
def test_a_pilot_is_asked_to_hold_the_input_of_a_whole_job(units: int, per_job: int, least: int, disk_mb: int) -> None:
    made = bucket(units=units, per_job=per_job, min_units=least, unit_mb=2000)
    (line,) = ask(world(*queues(1)), [made])["Q0"]
    assert line.shape.disk_mb == disk_mb
