"""The rules of projects."""

from __future__ import annotations

import pytest

from common.states import TaskState, UnitState, allowed
from common.wire import Endpoint, ReplicaSpec, SiteSpec, StorageSpec
from common.wire.projects import FileOutcome, ProjectState, RestartState
from server.engine.access import Caller, Isolation, Role
from server.engine.projects import (
    LAST_TIER,
    RESTARTED,
    TARGETS,
    BadCondition,
    Condition,
    Facts,
    Outcome,
    Source,
    conditions,
    end_of_tier,
    from_start,
    in_order,
    may_look,
    may_work,
    outcome_of,
    project_state,
    put_back,
    reach_of,
    replica_views,
    restart_target,
    searchable,
    task_states,
)
from server.engine.sizing import number_of, raised, tier_of
from server.engine.world import FAR, World


def caller(name: str, *roles: Role, groups: tuple[str, ...] = ()) -> Caller:
    return Caller(name, frozenset(roles or (Role.USER,)), groups=frozenset(groups))


FACTS = Facts(1, "owner", "dune", frozenset({"friend"}), frozenset({"prod-team", "outside_worker"}))


@pytest.mark.parametrize(
    ("who", "may"),
    [
        (caller("owner"), True),
        (caller("friend"), True),
        (caller("x", groups=("prod-team",)), True),
        (caller("cron", Role.OUTSIDE_WORKER), True),
        (caller("x", Role.ADMIN), True),
        (caller("x", Role.PRODUCTION, groups=("dune",)), True),
        (caller("x", groups=("dune",)), False),
        (caller("x", Role.PRODUCTION), False),
        (caller("x"), False),
    ],
)
def test_who_may_work_on_a_project(who: Caller, may: bool) -> None:
    assert may_work(who, FACTS) is may


def test_members_of_the_group_may_look_where_people_are_kept_apart() -> None:
    assert may_look(caller("x", groups=("dune",)), FACTS, Isolation.GROUP)
    assert may_look(caller("friend"), FACTS, Isolation.GROUP)
    assert not may_look(caller("x"), FACTS, Isolation.GROUP)
    assert may_look(caller("x"), FACTS, Isolation.OFF)


def test_every_state_of_a_task_is_one_of_a_project_and_the_other_way_round() -> None:
    for state in TaskState:
        assert state in task_states(project_state(state))
    assert {project_state(state) for state in TaskState} == set(ProjectState)


def test_restarts_and_outcomes_are_moves_that_the_tables_have() -> None:
    for outcome in TARGETS.values():
        assert allowed(UnitState.RESERVED, outcome)
    for states in RESTARTED.values():
        assert all(allowed(state, UnitState.READY) for state in states)
    for state in TaskState:
        target = restart_target(state)
        if target is not None and state not in (TaskState.ABORTED, TaskState.BROKEN):
            # A project that was done goes on by way of its restarted units.
            assert allowed(state, target)
    assert set(RESTARTED) == set(RestartState)


def test_what_a_worker_says() -> None:
    assert outcome_of(FileOutcome.DONE, retry=False) is Outcome.DONE
    assert outcome_of(FileOutcome.FAILED, retry=True) is Outcome.RETRY
    assert outcome_of(FileOutcome.FAILED, retry=False) is Outcome.FAILED


def test_what_comes_back_goes_behind_and_a_restart_forgets_that() -> None:
    place = 7
    for times in range(1, 5):
        place = put_back(place)
        assert (tier_of(place), number_of(place)) == (times, 7)
    assert from_start(place) == 7
    last = raised(7, LAST_TIER)
    assert put_back(last) == last < 2**63
    assert end_of_tier(7) == raised(0, 1)


def test_the_order_of_buckets() -> None:
    reach = {"here": 0, "there": 40}
    near, far = Source(1, ("here",), 10), Source(2, ("there",), 0)
    both, gone = Source(3, ("there", "here"), 4), Source(4, ("nowhere",), 0)
    again = Source(5, ("here",), raised(0, 1))
    virtual = Source(6, (), 3)
    order = in_order([near, far, both, gone, again, virtual], reach, 100.0)
    assert [each.id for each in order] == [6, 3, 1, 2, 5]
    near.empty_until = 101.0
    assert 1 not in [each.id for each in in_order([near, far], reach, 100.0)]
    assert 1 in [each.id for each in in_order([near, far], reach, 101.0)]


WORLD = World(
    {"a": SiteSpec("a", distances={"b-disk": 30}), "b": SiteSpec("b")},
    {},
    {
        name: StorageSpec(name=name, site=name[0], endpoints=[Endpoint(f"file:///{name}")])
        for name in ("a-disk", "b-disk")
    },
)


def test_replicas_are_shown_nearest_first_and_what_cannot_be_read_only_to_who_asks() -> None:
    replicas = [ReplicaSpec("b-disk", "f"), ReplicaSpec("a-disk", "f"), ReplicaSpec("gone", "f")]
    shown = replica_views(replicas, WORLD, "a", all_=False)
    assert [(each.storage, each.distance) for each in shown] == [("a-disk", 0), ("b-disk", 30)]
    down = World(WORLD.sites, {}, WORLD.storages, frozenset({"a-disk"}))
    assert [each.storage for each in replica_views(replicas, down, "a", all_=False)] == ["b-disk"]
    assert [each.available for each in replica_views(replicas, down, "a", all_=True)] == [False, True]


def test_a_worker_that_says_not_where_it_is_finds_all_equally_far() -> None:
    assert set(reach_of(WORLD, None).values()) == {FAR}
    assert reach_of(WORLD, "a")["a-disk"] == 0


def test_conditions_are_read() -> None:
    assert conditions(" step = reco,version>=3 ,") == [
        Condition("step", "=", "reco", None),
        Condition("version", ">=", "3", 3.0),
    ]
    assert conditions("") == []


@pytest.mark.parametrize(
    "bad", ["step", "=3", "a b=3", "step>reco", "x>nan", "x<=1e999", f"x={'y' * 300}", "a=1," * 11]
)
def test_conditions_that_cannot_be_read(bad: str) -> None:
    with pytest.raises(BadCondition):
        conditions(bad)


def test_only_plain_attributes_are_searched() -> None:
    found = searchable({"a": "x", "b": 3, "c": True, "d": [1], "e": None, "f": "y" * 300, "g" * 300: 1, "h": 1.5})
    assert found == [("a", "x", None), ("b", "3", 3.0), ("c", "true", None), ("h", "1.5", 1.5)]
