"""How many workers: pure arithmetic."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from common.states import ResourceState, WorkerState
from common.wire import DemandReply, QueueSpec, Shape, ShapeDemand, WorkerCount
from harvester.backends.base import BatchLoad
from harvester.explain import as_plain, explained
from harvester.limits import Group, Limits, Situation
from harvester.provisioner import Decision, decide, group, holds, target_of

SMALL = Shape(cores=1, memory_mb=1000)
LARGE = Shape(cores=8, memory_mb=16000)
WIDE = Limits(max_workers=1000, max_queued=1000, per_cycle=1000)


def demand(*shapes: ShapeDemand, status: ResourceState = ResourceState.ONLINE) -> DemandReply:
    return DemandReply(queue=QueueSpec(name="q", site="s", status=status), shapes=list(shapes))


def new(*shapes: ShapeDemand, limits: Limits = WIDE, workers: list[Group] | None = None) -> list[tuple[int, str]]:
    return [(line.new, line.bound) for line in decide("q", demand(*shapes), limits, workers or []).lines]


def test_demand_without_workers_is_submitted_whole() -> None:
    assert new(ShapeDemand(SMALL, pilots=7)) == [(7, "")]


def test_workers_that_are_there_count() -> None:
    assert new(ShapeDemand(SMALL, pilots=7), workers=[Group(SMALL, queued=2, running=3)]) == [(2, "")]


def test_more_workers_than_wanted_are_left_alone() -> None:
    assert new(ShapeDemand(SMALL, pilots=2), workers=[Group(SMALL, queued=2, running=3)]) == [(0, "")]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(max_workers=6, max_queued=100, per_cycle=100), (1, "max_workers")),
        (Limits(max_workers=100, max_queued=4, per_cycle=100), (2, "max_queued")),
        (Limits(max_workers=100, max_queued=100, per_cycle=3), (3, "per_cycle")),
        (Limits(max_workers=4, max_queued=100, per_cycle=100), (0, "max_workers")),
        (Limits(max_workers=100, max_queued=100, per_cycle=100, drained=True), (0, "the queue is drained")),
    ],
)
def test_each_limit_binds_and_is_named(limits: Limits, expected: tuple[int, str]) -> None:
    assert new(ShapeDemand(SMALL, pilots=50), limits=limits, workers=[Group(SMALL, 2, 3)]) == [expected]


@pytest.mark.parametrize("status", [ResourceState.PAUSED, ResourceState.DRAINING, ResourceState.OFFLINE])
def test_a_closed_queue_gets_nothing(status: ResourceState) -> None:
    (line,) = decide("q", demand(ShapeDemand(SMALL, pilots=5), status=status), WIDE, []).lines
    assert (line.new, line.wanted, line.bound) == (0, 5, f"the queue is {status.value}")


def test_a_queue_in_test_serves_its_demand() -> None:
    assert decide("q", demand(ShapeDemand(SMALL, pilots=1), status=ResourceState.TEST), WIDE, []).new == 1


def test_factor_goes_on_top_of_what_waits_only() -> None:
    busy = ShapeDemand(SMALL, pilots=100, running_jobs=100)
    half = ShapeDemand(SMALL, pilots=100, running_jobs=50)
    assert target_of(busy, 1.5) == 100
    assert target_of(half, 1.5) == 125
    assert target_of(ShapeDemand(SMALL, pilots=1), 1.5) == 2


def test_a_pilot_with_several_jobs_does_not_shrink_the_target() -> None:
    assert target_of(ShapeDemand(SMALL, pilots=2, running_jobs=8), 1.5) == 2


def test_a_larger_worker_counts_for_a_smaller_shape() -> None:
    assert new(ShapeDemand(SMALL, pilots=3), workers=[Group(LARGE, queued=0, running=2)]) == [(1, "")]


def test_a_smaller_worker_does_not_count_for_a_larger_shape() -> None:
    assert new(ShapeDemand(LARGE, pilots=3), workers=[Group(SMALL, queued=5, running=5)]) == [(3, "")]


def test_a_worker_counts_once_and_for_its_own_shape_first() -> None:
    shapes = (ShapeDemand(SMALL, pilots=4), ShapeDemand(LARGE, pilots=2))
    assert new(*shapes, workers=[Group(LARGE, queued=0, running=3)]) == [(3, ""), (0, "")]


def test_limits_are_shared_between_shapes_the_first_in_the_servers_order_first() -> None:
    shapes = (ShapeDemand(SMALL, pilots=4), ShapeDemand(LARGE, pilots=4))
    assert new(*shapes, limits=Limits(max_workers=7, max_queued=7, per_cycle=7)) == [(4, ""), (3, "per_cycle")]


def test_no_shape_starves_behind_one_that_wants_more() -> None:
    """Room for one worker a cycle, a thousand small ones wanted, one large: it comes second, not last."""
    shapes = (ShapeDemand(SMALL, pilots=1000), ShapeDemand(LARGE, pilots=1))
    one = Limits(max_workers=100, max_queued=100, per_cycle=1)
    assert new(*shapes, limits=one) == [(1, "per_cycle"), (0, "per_cycle")]
    assert new(*shapes, limits=one, workers=[Group(SMALL, 1, 0)]) == [(0, "per_cycle"), (1, "")]


def test_small_shapes_leave_the_cores_that_a_large_one_waits_for() -> None:
    shapes = (ShapeDemand(SMALL, pilots=50), ShapeDemand(LARGE, pilots=2))
    limits = Limits(1000, 1000, 1000, max_cores=16)
    busy = [Group(SMALL, queued=0, running=10)]
    assert new(*shapes, limits=limits, workers=busy) == [(0, "max_cores"), (0, "max_cores")]
    assert new(*shapes, limits=limits, workers=[Group(SMALL, 0, 8)]) == [(0, "max_cores"), (1, "max_cores")]


def test_a_shape_that_never_fits_holds_nobody_up() -> None:
    shapes = (ShapeDemand(SMALL, pilots=3), ShapeDemand(LARGE, pilots=2))
    limits = Limits(1000, 1000, 1000, max_memory_mb=15000)
    assert new(*shapes, limits=limits) == [(3, ""), (0, "max_memory_mb")]


@pytest.mark.parametrize(
    ("running", "queued", "expected"),
    [(0, 0, 1), (0, 1, 0), (10, 0, 5), (10, 4, 1), (10, 5, 0), (100, 0, 20)],
)
def test_waiting_workers_in_proportion_to_running_ones(running: int, queued: int, expected: int) -> None:
    limits = Limits(max_workers=1000, max_queued=20, per_cycle=1000, queued_ratio=0.5)
    found = new(ShapeDemand(SMALL, pilots=500), limits=limits, workers=[Group(SMALL, queued, running)])
    assert found == [(expected, "max_queued" if running == 100 else "queued_ratio")]


def test_the_batch_systems_own_backlog_holds_back() -> None:
    limits = Limits(1000, 1000, 1000, max_backlog=50)
    shape = ShapeDemand(SMALL, pilots=100)

    def bounded(situation: Situation) -> tuple[int, str]:
        (line,) = decide("q", demand(shape), limits, [], situation).lines
        return line.new, line.bound

    assert bounded(Situation(load=BatchLoad(waiting=45, running=900))) == (5, "max_backlog")
    assert bounded(Situation(load=BatchLoad(waiting=45, running=900), unsent=3)) == (2, "max_backlog")
    assert bounded(Situation(load=BatchLoad(waiting=60, running=0))) == (0, "max_backlog")
    assert bounded(Situation()) == (0, "max_backlog"), "not knowing is no reason to submit"


def test_workers_of_other_harvesters_count_for_the_demand_and_not_for_the_limits() -> None:
    asked = demand(ShapeDemand(SMALL, pilots=10))
    asked.others = [WorkerCount(SMALL, queued=2, running=3)]
    decision = decide("q", asked, Limits(max_workers=4, max_queued=4, per_cycle=4), [Group(SMALL, 1, 0)])
    assert (decision.new, decision.lines[0].others, decision.lines[0].bound) == (3, 5, "max_workers")
    assert decide("q", asked, WIDE, [Group(SMALL, 1, 0)]).new == 4


def test_pilots_that_no_worker_accounts_for_count() -> None:
    asked = demand(ShapeDemand(SMALL, pilots=12, running_jobs=5))
    asked.idle_pilots = 4
    by_hand = decide("q", asked, WIDE, [Group(SMALL, queued=0, running=2)])
    # Five are busy and four idle, two of the nine are of the workers that are known.
    assert (by_hand.new, by_hand.lines[0].found) == (3, 7)
    accounted = decide("q", asked, WIDE, [Group(SMALL, queued=0, running=9)])
    assert (accounted.new, accounted.lines[0].found) == (3, 0)


def test_a_worker_of_many_nodes_is_as_many_pilots() -> None:
    limits = Limits(100, 100, 100, nodes=4, max_cores=8)
    decision = decide("q", demand(ShapeDemand(SMALL, pilots=7)), limits, [Group(SMALL, 1, 0, nodes=4)])
    (line,) = decision.lines
    assert (line.queued, line.missing, line.wanted, line.new, line.bound) == (4, 3, 1, 1, "")
    assert decide("q", demand(ShapeDemand(SMALL, pilots=40)), limits, []).new == 2, "eight cores are two workers"


def test_the_throttle_is_a_limit_like_the_others() -> None:
    asked = demand(ShapeDemand(SMALL, pilots=9))
    situation = Situation(allowance=2, unproven=1, throttle="5 workers in a row got no pilot")
    (line,) = decide("q", asked, WIDE, [Group(SMALL, 1, 0)], situation).lines
    assert (line.new, line.bound) == (1, "throttle")


def test_workers_that_wait_for_nothing_are_surplus() -> None:
    asked = demand(ShapeDemand(SMALL, pilots=2))
    decision = decide("q", asked, WIDE, [Group(SMALL, queued=5, running=1), Group(LARGE, queued=2, running=0)])
    assert decision.surplus == [(SMALL, 4), (LARGE, 2)]
    assert decision.too_many == 6


@pytest.mark.parametrize(
    ("status", "drained", "expected"),
    [
        (ResourceState.ONLINE, False, False),
        (ResourceState.PAUSED, False, False),
        (ResourceState.TEST, False, False),
        (ResourceState.DRAINING, False, True),
        (ResourceState.OFFLINE, False, True),
        (ResourceState.ONLINE, True, True),
    ],
)
def test_a_queue_that_is_being_emptied(status: ResourceState, drained: bool, expected: bool) -> None:
    assert decide("q", demand(status=status), Limits(1, 1, 1, drained=drained), []).leaving is expected


def test_a_worker_without_limits_promises_nothing() -> None:
    assert not holds(Shape(cores=1), Shape(cores=1, wall_s=60))
    assert holds(Shape(cores=1, wall_s=60), Shape(cores=1))


def test_missing_and_ended_workers_are_not_counted() -> None:
    states = [WorkerState.MISSING, WorkerState.FINISHED, WorkerState.PLANNED, WorkerState.HELD, WorkerState.RUNNING]
    assert group((SMALL, state) for state in states) == [Group(SMALL, queued=2, running=1)]


def shown(decision: Decision) -> str:
    """An explanation as a terminal of 120 columns shows it."""
    console = Console(width=120, file=io.StringIO(), highlight=False)
    for part in explained(decision):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_explanation_shows_the_numbers() -> None:
    asked = demand(ShapeDemand(SMALL, pilots=9, ready_jobs=7, running_jobs=1), ShapeDemand(LARGE, pilots=1))
    asked.idle_pilots = 1
    decision = decide("q", asked, Limits(4, 4, 4, factor=1.5), [Group(SMALL, 1, 1)])
    text = shown(decision)
    assert "queue q is online: 1 of its workers wait, 1 run; 1 pilots are idle" in text
    assert "target = pilots + 0.5 x (pilots - busy), rounded up" in text
    assert re.search(r"1 core, 1000 MB +7 +1 +9 +13 +1 +1 +11 +1 +max_workers", text), text
    assert re.search(r"max_workers +4 +2 +2 ", text), text
    assert "2 new workers of 13 wanted" in text
    assert "others'" not in text and "found" not in text, "what plays no part is not shown"
    line, _ = as_plain(decision)["lines"]
    assert [line[key] for key in ("target", "missing", "wanted", "new", "bound")] == [13, 11, 11, 1, "max_workers"]
    assert as_plain(decision)["bounds"][1]["left"] == 2


def test_explanation_of_what_plays_a_part_now_and_then() -> None:
    asked = demand(ShapeDemand(SMALL, pilots=9, running_jobs=3), status=ResourceState.DRAINING)
    asked.others = [WorkerCount(SMALL, queued=2)]
    situation = Situation(load=BatchLoad(70, 5), allowance=1, throttle="5 workers in a row got no pilot")
    decision = decide("q", asked, Limits(9, 9, 9, nodes=2), [Group(SMALL, 0, 0, 2), Group(LARGE, 3, 0, 2)], situation)
    text = shown(decision)
    for words in (
        "70 jobs wait and 5 run",
        "others'",
        "a worker is 2 pilots",
        "5 workers in a row",
        "0 new workers of 1",
    ):
        assert words in text, text
    assert "because the queue is draining" in text
    assert shown(decide("q", demand(), WIDE, [Group(SMALL, 2, 0)])).count("2 workers wait for nothing") == 1
    assert "The server wants no pilots here" in shown(decide("q", demand(), WIDE, []))


_shape = st.builds(Shape, cores=st.integers(1, 3), memory_mb=st.integers(0, 2), gpus=st.integers(0, 1))
_count = st.integers(0, 30)
_maybe = st.none() | _count
_shapes = st.lists(
    st.builds(ShapeDemand, shape=_shape, pilots=_count, running_jobs=_count),
    max_size=5,
    unique_by=lambda one: msgspec.json.encode(one.shape),
)


@st.composite
def _limits(draw: st.DrawFn) -> Limits:
    return Limits(
        draw(_count), draw(_count), draw(_count), draw(st.floats(0.1, 3.0)),
        queued_ratio=draw(st.none() | st.floats(0.1, 3.0)), min_queued=draw(st.integers(1, 5)), max_cores=draw(_maybe),
        max_memory_mb=draw(_maybe), max_backlog=draw(_maybe), nodes=draw(st.integers(1, 3)),
    )  # fmt: skip


@st.composite
def _groups(draw: st.DrawFn, nodes: int) -> list[Group]:
    made = st.builds(Group, shape=_shape, queued=_count, running=_count, nodes=st.just(nodes))
    return draw(st.lists(made, max_size=5, unique_by=lambda one: msgspec.json.encode(one.shape)))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[DemandReply, Limits, list[Group], Situation]:
    asked = demand(*draw(_shapes))
    asked.idle_pilots = draw(_count)
    asked.others = draw(
        st.lists(st.builds(WorkerCount, _shape, queued=_count, running=_count, nodes=st.integers(1, 2)), max_size=3)
    )
    limits = draw(_limits())
    load = st.builds(BatchLoad, waiting=_count, running=_count)
    situation = st.builds(Situation, st.none() | load, st.integers(0, 3), _maybe, _count, st.just("why"))
    return asked, limits, draw(_groups(limits.nodes)), draw(situation)


def _with(workers: list[Group], decision: Decision) -> list[Group]:
    """The workers after a decision was carried out."""
    nodes = decision.limits.nodes
    extra = [Group(line.shape, line.new, 0, nodes) for line in decision.lines if line.new]
    merged: dict[bytes, Group] = {}
    for one in [*workers, *extra]:
        key = msgspec.json.encode(one.shape)
        old = merged.get(key, Group(one.shape, 0, 0, nodes))
        merged[key] = Group(one.shape, old.queued + one.queued, old.running + one.running, nodes)
    return list(merged.values())


@settings(max_examples=500, deadline=None)
@given(case=_cases())
def test_no_limit_is_ever_passed(case: tuple[DemandReply, Limits, list[Group], Situation]) -> None:
    asked, limits, workers, situation = case
    decision = decide("q", asked, limits, workers, situation)
    assert all(line.new >= 0 for line in decision.lines)
    assert all(line.new <= line.wanted for line in decision.lines)
    assert all(bool(line.bound) == (line.new < line.wanted) for line in decision.lines)
    assert decision.new <= limits.per_cycle
    queued, running = decision.queued, decision.running
    assert decision.new <= max(0, limits.max_workers - queued - running)
    assert decision.new <= max(0, limits.max_queued - queued)
    if limits.queued_ratio is not None:
        assert decision.new <= max(0, max(limits.min_queued, limits.queued_ratio * running) - queued)
    if situation.allowance is not None:
        assert decision.new <= max(0, situation.allowance - situation.unproven)
    if limits.max_backlog is not None:
        waiting = limits.max_backlog if situation.load is None else situation.load.waiting
        assert decision.new <= max(0, limits.max_backlog - waiting - situation.unsent)
    for amount, most in (("cores", limits.max_cores), ("memory_mb", limits.max_memory_mb)):
        used = sum(getattr(one.shape, amount) * (one.queued + one.running) for one in workers) * limits.nodes
        added = sum(getattr(line.shape, amount) * line.new for line in decision.lines) * limits.nodes
        assert most is None or added <= max(0, most - used)
    assert sum(line.queued for line in decision.lines) <= queued * limits.nodes
    assert sum(line.running for line in decision.lines) <= running * limits.nodes
    assert sum(n for _, n in decision.surplus) <= queued


@settings(max_examples=200, deadline=None)
@given(case=_cases(), more=st.integers(1, 30), which=st.sampled_from(["max_workers", "max_queued", "per_cycle"]))
def test_more_room_takes_nothing_from_anybody(
    case: tuple[DemandReply, Limits, list[Group], Situation], more: int, which: str
) -> None:
    asked, limits, workers, situation = case
    limits = replace(limits, max_cores=None, max_memory_mb=None)
    before = decide("q", asked, limits, workers, situation)
    after = decide("q", asked, replace(limits, **{which: getattr(limits, which) + more}), workers, situation)
    assert all(new.new >= old.new for new, old in zip(after.lines, before.lines))


@settings(max_examples=200, deadline=None)
@given(case=_cases(), more=st.integers(1, 30), which=st.integers(0, 4))
def test_more_demand_never_means_fewer_workers(
    case: tuple[DemandReply, Limits, list[Group], Situation], more: int, which: int
) -> None:
    asked, limits, workers, situation = case
    if not asked.shapes:
        return
    limits = replace(limits, max_cores=None, max_memory_mb=None)
    # Workers that could serve another shape may go to the one that wants more: nothing else is there but the shapes' own.
    workers = [one for one in workers if any(one.shape == line.shape for line in asked.shapes)]
    before = decide("q", asked, limits, [], situation)
    line = asked.shapes[which % len(asked.shapes)]
    line.pilots += more
    assert decide("q", asked, limits, [], situation).new >= before.new


@settings(max_examples=200, deadline=None)
@given(case=_cases())
def test_idle_pilots_never_mean_more_workers(case: tuple[DemandReply, Limits, list[Group], Situation]) -> None:
    asked, limits, workers, situation = case
    before = decide("q", asked, limits, workers, situation)
    asked.idle_pilots += 1
    assert decide("q", asked, limits, workers, situation).new <= before.new or limits.max_cores or limits.max_memory_mb


@settings(max_examples=200, deadline=None)
@given(case=_cases(), starts=st.lists(st.integers(0, 30), min_size=30, max_size=30))
def test_nothing_swings_while_nothing_changes(
    case: tuple[DemandReply, Limits, list[Group], Situation], starts: list[int]
) -> None:
    """Cycle after cycle over the same demand: it comes to rest, at no more than the targets, and withdraws nothing that it
    submitted, however the workers start."""
    asked, limits, workers, situation = case
    situation = replace(situation, allowance=None)
    first = decide("q", asked, limits, workers, situation)
    target = sum(line.target for line in first.lines)
    submitted = 0
    for n in starts:
        decision = decide("q", asked, limits, workers, situation)
        workers = _with(workers, decision)
        submitted += decision.new
        settled = decide("q", asked, limits, workers, situation)
        assert settled.too_many <= first.too_many, "what was just submitted is too many"
        for at, one in enumerate(workers):
            started = min(n, one.queued)
            workers[at] = replace(one, queued=one.queued - started, running=one.running + started)
    assert submitted * limits.nodes <= target + limits.nodes * len(first.lines)
    last = decide("q", asked, limits, workers, situation)
    if not any(line.bound for line in last.lines):
        assert last.new == 0 or limits.per_cycle == 0


@settings(max_examples=200, deadline=None)
@given(case=_cases())
def test_withdrawing_what_is_too_many_leaves_nothing_missing(
    case: tuple[DemandReply, Limits, list[Group], Situation],
) -> None:
    asked, limits, workers, _ = case
    before = decide("q", asked, limits, workers)
    left = {msgspec.json.encode(shape): n for shape, n in before.surplus}
    fewer = [replace(one, queued=one.queued - left.get(msgspec.json.encode(one.shape), 0)) for one in workers]
    after = decide("q", asked, limits, fewer)
    assert after.too_many == 0
    assert all(new.missing <= old.missing for new, old in zip(after.lines, before.lines))


@settings(max_examples=100, deadline=None)
@given(targets=st.lists(st.integers(1, 40), min_size=1, max_size=6), room=st.integers(1, 3), cycles=st.just(60))
def test_every_shape_that_wants_workers_gets_one_soon(targets: list[int], room: int, cycles: int) -> None:
    """As many cycles as there are shapes are enough, however little room there is, and the parts come to be the same."""
    asked = demand(*(ShapeDemand(Shape(cores=n + 1), pilots=target) for n, target in enumerate(targets)))
    workers: list[Group] = []
    limits = Limits(1000, 1000, room)
    for cycle in range(cycles):
        workers = _with(workers, decide("q", asked, limits, workers))
        if cycle + 1 >= len(targets):
            assert len(workers) == len(targets)
    have = {one.shape.cores: one.queued for one in workers}
    parts = [have[n + 1] / target for n, target in enumerate(targets)]
    assert max(parts) - min(parts) <= 1 / min(targets) + 1e-9
