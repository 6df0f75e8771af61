"""How many pilots each queue is asked for: all queues together are asked for the work once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import ResourceState, TaskState
from common.wire import (
    CounterInput,
    Downtime,
    Endpoint,
    GpuRequest,
    Measured,
    MergeRule,
    QueueSpec,
    RemoteIo,
    Requirements,
    Shape,
    ShapeDemand,
    SiteSpec,
    StageSpec,
    StorageSpec,
)
from server.config import Knobs
from server.engine import demand_groups
from server.engine.demand import Split, portions, split
from server.engine.demand_groups import SCALE, TURN_S, Grouping
from server.engine.demand_queues import Load, places_of
from server.engine.demand_sizes import UnitsPerJob
from server.engine.matching import Candidate, Moment, SiteFaults, Traits
from server.engine.scouts import Scouting
from server.engine.world import World

NOW = 1_000_000.0
BUCKET = {"locations", "ready_since", "unit_mb", "memory_mb", "wall_s"}
KNOBS = Knobs()
Work = list[tuple[Candidate, int]]


def bucket(number: int = 1, *, units: int = 10, task: int = 0, **given: Any) -> tuple[Candidate, int]:
    own = {"locations": ()} | {name: given.pop(name) for name in BUCKET & set(given)}
    spec = {name: given.pop(name) for name in ("files_per_job", "merge", "remote_io", "probe") if name in given}
    traits: dict[str, Any] = {
        "task_id": task or number,
        "state": TaskState.RUNNING,
        "requirements": Requirements(),
        "share": "default",
        "priority": 0.0,
        "created": 0.0,
        "spec": StageSpec(name="s", input=CounterInput(1), command=["x"], **spec),
    }
    return Candidate(bucket_id=number, traits=Traits(**{**traits, **given}), **own), units


def world(*queues: QueueSpec) -> World:
    return World(
        sites={queue.site: SiteSpec(queue.site) for queue in queues},
        queues={queue.name: queue for queue in queues},
        storages={"SE": StorageSpec(name="SE", site="S0", endpoints=[Endpoint("root://h//d")])},
    )


def queues(count: int, **limits: Any) -> list[QueueSpec]:
    return [QueueSpec(trusted=True, name=f"Q{n}", site=f"S{n}", **limits) for n in range(count)]


def ask(
    there: World,
    work: Work,
    now: float = NOW,
    loads: dict[str, Load] | None = None,
    *,
    events: dict[int, int] | None = None,
    explain: str | None = None,
    faults: dict[int, dict[str, SiteFaults]] | None = None,
) -> Split:
    return split(work, Moment(there, now, faults or {}), loads or {}, KNOBS, events or {}, UnitsPerJob(), explain)


def lines(there: World, found: Split) -> dict[str, list[ShapeDemand]]:
    return {name: found.of(name, []) for name in there.queues}


def pilots(there: World, work: Work, now: float = NOW, loads: dict[str, Load] | None = None) -> dict[str, int]:
    found = ask(there, work, now, loads)
    return {name: sum(line.pilots for line in found.of(name, [])) for name in there.queues}


def jobs(there: World, found: Split) -> int:
    return sum(line.ready_jobs for each in lines(there, found).values() for line in each)


def test_no_work_no_pilots() -> None:
    there = world(*queues(2))
    for work in ([], [bucket(units=0)], [bucket(units=-1)]):
        assert lines(there, ask(there, work)) == {"Q0": [], "Q1": []}


@pytest.mark.parametrize(("units", "per_job", "n"), [(10, 1, 10), (10, 3, 4), (1, 500, 1), (500, 500, 1)])
def test_one_queue_is_asked_for_every_job(units: int, per_job: int, n: int) -> None:
    there = world(*queues(1))
    (line,) = ask(there, [bucket(units=units, files_per_job=per_job)]).of("Q0", [])
    assert (line.pilots, line.ready_jobs, line.ready_units, line.running_jobs) == (n, n, units, 0)


def test_one_unit_was_once_asked_of_every_queue() -> None:
    assert Counter(pilots(world(*queues(10)), [bucket(units=1)]).values()) == {1: 1, 0: 9}


def test_a_queue_that_starts_no_pilots_does_not_keep_the_last_unit() -> None:
    there = world(*queues(4))
    asked = {
        name for turn in range(12) for name, n in pilots(there, [bucket(units=1)], NOW + turn * TURN_S).items() if n
    }
    assert asked == set(there.queues)


def test_the_split_stays_for_a_while() -> None:
    there, start = world(*queues(4)), NOW // TURN_S * TURN_S
    assert pilots(there, [bucket(units=1)], start) == pilots(there, [bucket(units=1)], start + TURN_S - 1)


@given(
    whole=st.integers(0, 10**9),
    weights=st.lists(st.integers(1, 10**7), min_size=1, max_size=50),
    turn=st.integers(0, 2**64 - 1),
)
def test_portions_sum_to_the_whole_and_each_is_its_quota_up_or_down(whole: int, weights: list[int], turn: int) -> None:
    parts = portions(whole, weights, turn)
    assert sum(parts) == whole
    for part, weight in zip(parts, weights, strict=True):
        quota = whole * weight / sum(weights)
        assert quota - 1 - 1e-6 * whole <= part <= quota + 1 + 1e-6 * whole and part >= 0


NEEDS = [
    Requirements(),
    Requirements(cores=8, memory_mb=16_000),
    Requirements(wall_s=3600),
    Requirements(memory_mb=2100),
    Requirements(tags=["el9"]),
    Requirements(gpus=GpuRequest()),
]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    specs = [
        QueueSpec(
            name=f"Q{n}",
            site=f"S{draw(st.integers(0, 3))}",
            trusted=draw(st.booleans()),
            status=draw(st.sampled_from([ResourceState.ONLINE] * 4 + list(ResourceState))),
            cores=draw(st.sampled_from([0, 1, 8])),
            memory_mb=draw(st.sampled_from([0, 1900, 2000, 2200])),
            disk_mb=draw(st.sampled_from([0, 900, 5000])),
            wall_s=draw(st.sampled_from([0, 600, 7200])),
            gpus=draw(st.sampled_from([0, 2])),
            tags=draw(st.sampled_from([[], ["el9"]])),
            remote_io=draw(st.booleans()),
        )
        for n in range(draw(st.integers(1, 6)))
    ]
    return world(*specs)


@st.composite
def works(draw: st.DrawFn) -> Work:
    found = []
    for n in range(1, draw(st.integers(0, 10)) + 1):
        measured = draw(st.sampled_from([None, Measured(wall_s=1800.0)]))
        found.append(
            bucket(
                n,
                task=draw(st.integers(1, 5)) * 100 + n,
                units=draw(st.integers(0, 40)),
                files_per_job=draw(st.integers(1, 9)),
                requirements=draw(st.sampled_from(NEEDS)),
                needs_container=draw(st.booleans()),
                locations=draw(st.sampled_from([(), ("SE",), ("GONE",)])),
                max_distance=draw(st.sampled_from([100, 20])),
                far_after_s=draw(st.sampled_from([0.0, 60.0])),
                ready_since=NOW - 10,
                unit_mb=draw(st.sampled_from([0, 300, 700])),
                memory_mb=draw(st.sampled_from([0, 2000])),
                remote_io=draw(st.sampled_from(list(RemoteIo))),
                measured=measured,
                scouting=draw(st.sampled_from([None, None, Scouting(3), Scouting(0)])),
                cpu_s=draw(st.sampled_from([0.0, 9000.0])),
            )
        )
    return found


@settings(deadline=None, max_examples=400)
@given(
    worlds(),
    works(),
    st.integers(0, 10**7),
    st.dictionaries(
        st.sampled_from([f"Q{n}" for n in range(6)]), st.builds(Load, st.integers(0, 50), st.integers(0, 50))
    ),
)
def test_all_queues_together_are_asked_once_and_only_those_that_may(
    there: World, work: Work, now: int, loads: dict[str, Load]
) -> None:
    found = ask(there, work, now, loads)
    per_queue = lines(there, found)
    assert all(line.ready_jobs >= 0 and line.ready_units >= 0 for each in per_queue.values() for line in each)
    assert all(line.pilots <= line.ready_jobs for each in per_queue.values() for line in each)
    assert all(line.pilots > 0 for each in per_queue.values() for line in each if line.ready_jobs)
    expected, allowed = 0, set()
    for candidate, units in work:  # one by one, what all of them gave together
        alone = ask(there, [(candidate, units)], now, loads)
        able = {name for name, each in lines(there, alone).items() if each}
        may = {
            name
            for name in there.queues
            if not (told := ask(there, [(candidate, units)], now, explain=name).explanation) or not told.refused
        }
        assert able <= may
        scouting = candidate.traits.scouting
        least, n = -(-max(0, units) // (candidate.traits.spec.files_per_job or 1)), jobs(there, alone)
        if may and scouting is None:
            assert n >= least  # a queue's disk may cut them shorter
            assert sum(line.ready_units for each in lines(there, alone).values() for line in each) == units
        elif may and scouting is not None:
            assert min(least, scouting.left) <= n <= scouting.left
        else:
            assert n == 0
        expected += n
        allowed |= may if n else set()
    assert jobs(there, found) == expected
    assert {name for name, each in per_queue.items() if each} <= allowed


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.dictionaries(st.sampled_from(["A", "B", "C"]), st.integers(0, 110)), min_size=1, max_size=5),
    st.sets(st.sampled_from(["A", "B", "C", "GONE"])),
    st.integers(0, 100),
    st.lists(st.builds(Load, st.integers(0, 50), st.integers(0, 50)), min_size=5, max_size=5),
)
def test_each_queue_weighs_what_its_nearest_input_makes_of_it(
    distances: list[dict[str, int]], locations: set[str], max_distance: int, loads: list[Load]
) -> None:
    there = World(
        sites={f"S{n}": SiteSpec(f"S{n}", distances=each) for n, each in enumerate(distances)},
        queues={queue.name: queue for queue in queues(len(distances))},
        storages={
            name: StorageSpec(name=name, site=f"S{n}", endpoints=[Endpoint("root://h//d")])
            for n, name in enumerate("ABC")
        },
    )
    moment = Moment(there, NOW)
    places, _ = places_of(moment, {f"Q{n}": load for n, load in enumerate(loads)}, KNOBS)
    grouping = Grouping(places, moment)
    candidate, units = bucket(locations=tuple(sorted(locations)), max_distance=max_distance)
    grouping.add(candidate, units)
    (group,) = grouping.groups()
    expected = {}
    for place in places:
        if grouping.refusal(group, place) is None:
            nearest = there.nearest(place.queue.site, candidate.locations)
            expected[place.queue.name] = round(place.weight(nearest) * SCALE)
    assert {way.place.queue.name: way.weight for way in grouping.choose(group, NOW).ways} == expected


def test_so_much_work_that_queues_are_drawn_comes_to_the_same() -> None:
    there = world(*queues(20))
    loads = {f"Q{n}": Load(running=n) for n in range(20)}
    work = [bucket(n, units=10, locations=("SE",) if n % 2 else ()) for n in range(1, 401)]
    exact = pilots(there, work, loads=loads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demand_groups, "MOST_ASKED", 0)
        work = [
            bucket(n, units=10, locations=("SE",) if n % 2 else (), exclude_sites=frozenset({f"X{n}"}))
            for n in range(1, 401)
        ]
        drawn = pilots(there, work, loads=loads)
    assert sum(drawn.values()) == sum(exact.values()) == 4000
    for name, n in exact.items():
        assert drawn[name] == pytest.approx(n, rel=0.4, abs=40)


def test_the_order_of_the_queues_does_not_matter() -> None:
    three, work = queues(3), [bucket(n, units=4 + n) for n in range(1, 6)]
    assert pilots(world(*three), work) == pilots(world(*three[::-1]), work)


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_mb": 500},
        {"disk_mb": 100},
        {"wall_s": 60},
        {"cores": 1},
        {"status": ResourceState.PAUSED},
        {"status": ResourceState.TEST},
        {"status": ResourceState.OFFLINE},
        {"downtimes": [Downtime(NOW - 1, NOW + 9)]},
        {"downtimes": [Downtime(NOW + 1800, NOW + 9000)]},
    ],
)
def test_a_queue_that_cannot_run_the_work_is_not_asked(limits: dict[str, Any]) -> None:
    needs = Requirements(cores=2, memory_mb=1000, disk_mb=500, wall_s=14400)
    there = world(
        QueueSpec(trusted=True, name="LITTLE", site="A", **limits), QueueSpec(trusted=True, name="LARGE", site="B")
    )
    assert pilots(there, [bucket(units=6, requirements=needs)]) == {"LITTLE": 0, "LARGE": 6}


def test_two_sizes_on_both_sides_of_a_queues_limit_were_not_told_apart() -> None:
    there = world(*queues(1, memory_mb=1900))
    work = [bucket(n, requirements=Requirements(memory_mb=memory)) for n, memory in ((1, 1950), (2, 1850))]
    assert pilots(there, work) == {"Q0": 10}
    assert pilots(there, work[::-1]) == {"Q0": 10}


def test_a_tag_that_a_pilot_finds_out_by_itself_does_not_keep_a_queue_from_being_asked() -> None:
    needs = Requirements(tags=["x86_64", "el9"])
    there = world(
        QueueSpec(trusted=True, name="PLAIN", site="A"), QueueSpec(trusted=True, name="EL9", site="B", tags=["el9"])
    )
    assert pilots(there, [bucket(units=6, requirements=needs, needs_container=True)]) == {"PLAIN": 0, "EL9": 6}


def test_only_a_queue_with_gpus_is_asked_for_gpus() -> None:
    needs = Requirements(gpus=GpuRequest(count=2, vendor="NVIDIA", model="A100", memory_mb=40_000))
    there = world(*(QueueSpec(trusted=True, name=f"G{n}", site=f"S{n}", gpus=n) for n in range(4)))
    work = [bucket(units=6, requirements=needs)]
    assert pilots(there, work) == {"G0": 0, "G1": 0, "G2": 3, "G3": 3}
    assert ask(there, work).of("G2", [])[0].shape.gpus == 2


def test_a_far_queue_is_asked_for_less_and_only_after_the_wait() -> None:
    there = world(*queues(2))
    work = [bucket(units=60, locations=("SE",), ready_since=NOW - 10, far_after_s=60)]
    assert pilots(there, work) == {"Q0": 60, "Q1": 0}
    assert pilots(there, work, NOW + 50) == {"Q0": 48, "Q1": 12}  # at distance 100: a fourth of the weight


def test_a_queue_that_starts_pilots_gets_more_than_one_where_they_wait() -> None:
    loads = {"Q0": Load(running=99, waiting=0), "Q1": Load(running=9, waiting=90)}
    found = pilots(world(*queues(2)), [bucket(units=1010)], loads=loads)
    assert found == {"Q0": 1000, "Q1": 10}


def test_a_site_at_which_jobs_keep_failing_is_not_asked_for_a_while() -> None:
    there = world(*queues(2))
    faults = {1: {"S0": SiteFaults(3, NOW + 60)}}
    assert {name: len(each) for name, each in lines(there, ask(there, [bucket()], faults=faults)).items()} == {
        "Q0": 0,
        "Q1": 1,
    }
    assert jobs(there, ask(there, [bucket()], NOW + 61, faults=faults)) == 10


def test_a_scouting_task_asks_for_its_scouts_over_all_its_buckets() -> None:
    there = world(*queues(3))
    work = [bucket(n, task=7, units=50, scouting=Scouting(10)) for n in (1, 2)]
    assert sum(pilots(there, work).values()) == 10
    full = [bucket(units=50, scouting=Scouting(10, frozenset({"S0"})))]
    assert pilots(there, full)["Q0"] == 0 and sum(pilots(there, full).values()) == 10


def test_a_merge_that_waits_asks_for_nothing() -> None:
    there = world(*queues(1))
    merge = MergeRule(min_files=5, max_files=9)
    assert pilots(there, [bucket(units=4, merge=merge, min_units=5)]) == {"Q0": 0}
    assert pilots(there, [bucket(units=19, merge=merge, min_units=5)]) == {"Q0": 3}


def test_a_probe_may_go_to_a_queue_in_test() -> None:
    there = world(*queues(1, status=ResourceState.TEST))
    assert pilots(there, [bucket(probe=True)]) == {"Q0": 10}


@pytest.mark.parametrize(
    ("wall_s", "limit", "n", "life"),
    [(3600, 0, 25, 14400), (3600, 7200, 50, 7200), (60, 0, 1, 14400), (28800, 0, 100, 28800)],
)
def test_work_is_counted_over_a_pilots_life(wall_s: int, limit: int, n: int, life: int) -> None:
    there = world(*queues(1, wall_s=limit))
    (line,) = ask(there, [bucket(units=100, requirements=Requirements(cores=4, wall_s=wall_s))]).of("Q0", [])
    assert (line.pilots, line.ready_jobs, line.life_s, line.shape.wall_s) == (n, 100, life, life)
    assert line.core_hours == pytest.approx(100 * 4 * wall_s / 3600, abs=0.01)


def test_measured_wall_time_counts_although_nobody_asked_for_one() -> None:
    there = world(*queues(1))
    (line,) = ask(there, [bucket(units=100, measured=Measured(wall_s=1440.0))]).of("Q0", [])
    assert (line.pilots, line.shape.wall_s) == (10, 0)


def test_measured_cpu_time_depends_on_the_queue_and_cuts_jobs() -> None:
    there = world(
        QueueSpec(trusted=True, name="SLOW", site="A", core_power=5, cpu_efficiency=1, wall_s=3600),
        QueueSpec(trusted=True, name="FAST", site="B", core_power=20, cpu_efficiency=1, wall_s=3600),
    )
    work, events = [bucket(units=40, cpu_s=36_000.0, measured=Measured(cpu_per_event=54_000.0))], {1: 1}
    found = lines(there, ask(there, work, events=events))
    assert found["SLOW"] == []  # 7200 s there
    assert sum(line.ready_units for line in found["FAST"]) == 40
    assert found["FAST"][0].core_hours == pytest.approx(40 * 0.5)


def test_running_pilots_are_added_by_their_workers_shape() -> None:
    (queue,) = queues(1)
    busy = [(Shape(memory_mb=1000, disk_mb=1000), 2), (Shape(cores=8), 3), (Shape(cores=8), 1)]
    found = ask(world(queue), [bucket(units=3)]).of("Q0", busy)
    assert [(line.shape.cores, line.pilots, line.ready_jobs, line.running_jobs) for line in found] == [
        (1, 5, 3, 2),
        (8, 4, 0, 4),
    ]


@pytest.mark.parametrize(
    ("disk", "unit_mb", "limit", "expected"),
    [(500, 0, 0, 1000), (500, 500, 0, 1000), (500, 501, 0, 2000), (0, 0, 0, 0), (500, 3700, 4500, 4500)],
)
def test_a_shape_holds_the_input_in_steps_and_within_the_queue(
    disk: int, unit_mb: int, limit: int, expected: int
) -> None:
    there = world(*queues(1, disk_mb=limit))
    (line,) = ask(there, [bucket(unit_mb=unit_mb, requirements=Requirements(disk_mb=disk))]).of("Q0", [])
    assert line.shape.disk_mb == expected


@pytest.mark.parametrize(("units", "per_job", "disk_mb"), [(10, 4, 9000), (2, 4, 5000), (1, 1, 3000)])
def test_a_pilot_is_asked_to_hold_the_input_of_a_whole_job(units: int, per_job: int, disk_mb: int) -> None:
    (line,) = ask(world(*queues(1)), [bucket(units=units, files_per_job=per_job, unit_mb=2000)]).of("Q0", [])
    assert line.shape.disk_mb == disk_mb


def test_input_that_is_read_where_it_lies_needs_no_disk() -> None:
    there = world(*queues(2, disk_mb=1000, remote_io=True))
    direct = replace(bucket(locations=("SE",), unit_mb=5000)[0])
    assert sum(pilots(there, [(direct, 10)]).values()) == 10
    copied, _ = bucket(locations=("SE",), unit_mb=5000, remote_io=RemoteIo.NEVER)
    assert sum(pilots(there, [(copied, 10)]).values()) == 0


def test_the_explanation_tells_shares_and_refusals() -> None:
    there = world(*queues(2), QueueSpec(trusted=True, name="SMALL", site="S9", memory_mb=500))
    work = [bucket(n, units=10) for n in (1, 2)]
    told = ask(there, work, explain="Q0").explanation
    assert told is not None and told.refused == {}
    (part,) = told.parts
    assert (part.ready_jobs, part.jobs, part.queues, part.tasks, part.buckets) == (20, 10, 2, 2, 2)
    assert part.weight * 2 == part.weights
    told = ask(there, work, explain="SMALL").explanation
    assert told is not None and told.parts == []
    (refused,) = told.refused.values()
    assert (refused.filter, refused.units, refused.tasks) == ("memory", 20, 2)
