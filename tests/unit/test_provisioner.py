"""How many workers: pure arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.states import ResourceState, WorkerState
from common.wire import DemandReply, QueueSpec, Shape, ShapeDemand
from harvester.explain import as_plain, explained
from harvester.provisioner import Group, Limits, decide, group, holds, target_of

SMALL = Shape(cores=1, memory_mb=1000)
LARGE = Shape(cores=8, memory_mb=16000)
WIDE = Limits(max_workers=1000, max_queued=1000, per_cycle=1000)


def demand(*shapes: ShapeDemand, status: ResourceState = ResourceState.ONLINE) -> DemandReply:
    return DemandReply(queue=QueueSpec(name="q", site="s", status=status), shapes=list(shapes), idle_pilots=2)


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


def test_limits_are_shared_between_shapes_in_the_servers_order() -> None:
    shapes = (ShapeDemand(SMALL, pilots=4), ShapeDemand(LARGE, pilots=4))
    assert new(*shapes, limits=Limits(max_workers=6, max_queued=6, per_cycle=6)) == [(4, ""), (2, "max_workers")]


def test_a_worker_without_limits_promises_nothing() -> None:
    assert not holds(Shape(cores=1), Shape(cores=1, wall_s=60))
    assert holds(Shape(cores=1, wall_s=60), Shape(cores=1))


def test_missing_and_ended_workers_are_not_counted() -> None:
    states = [WorkerState.MISSING, WorkerState.FINISHED, WorkerState.PLANNED, WorkerState.HELD, WorkerState.RUNNING]
    assert group((SMALL, state) for state in states) == [Group(SMALL, queued=2, running=1)]


def test_explanation_shows_the_numbers() -> None:
    decision = decide("q", demand(ShapeDemand(SMALL, pilots=9, ready_jobs=9)), Limits(4, 4, 4), [Group(SMALL, 1, 1)])
    head = str(explained(decision)[0])
    assert "1 workers wait, 1 run, 2 pilots are idle" in head
    assert "max_workers 4" in head
    (line,) = as_plain(decision)["lines"]
    assert (line["target"], line["wanted"], line["new"], line["bound"]) == (9, 7, 2, "max_workers")


_shape = st.builds(Shape, cores=st.integers(1, 3), memory_mb=st.integers(0, 2), gpus=st.integers(0, 1))
_count = st.integers(0, 30)


@given(
    shapes=st.lists(st.builds(ShapeDemand, shape=_shape, pilots=_count, running_jobs=_count), max_size=5),
    workers=st.lists(st.builds(Group, shape=_shape, queued=_count, running=_count), max_size=5),
    limits=st.builds(Limits, _count, _count, _count, st.floats(0.1, 3.0)),
)
def test_no_limit_is_ever_passed(shapes: list[ShapeDemand], workers: list[Group], limits: Limits) -> None:
    decision = decide("q", demand(*shapes), limits, workers)
    assert all(line.new >= 0 for line in decision.lines)
    assert all(line.new <= line.wanted for line in decision.lines)
    assert all(bool(line.bound) == (line.new < line.wanted) for line in decision.lines)
    assert decision.new <= limits.per_cycle
    assert decision.new <= max(0, limits.max_workers - decision.queued - decision.running)
    assert decision.new <= max(0, limits.max_queued - decision.queued)
    assert sum(line.queued for line in decision.lines) <= decision.queued
    assert sum(line.running for line in decision.lines) <= decision.running
