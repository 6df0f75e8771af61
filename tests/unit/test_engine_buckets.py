"""The arrangement of buckets gives what matching one by one gives, and keeps its cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import TaskState
from common.wire import Endpoint, Offer, QueueSpec, Requirements, ShareSpec, SiteSpec, StorageSpec
from server.engine.buckets import Buckets
from server.engine.matching import Candidate, Moment, SiteFaults, Slot, Traits, match
from server.engine.shares import ShareUse, service_order
from server.engine.world import World

NOW = 1000.0
SHARES = [ShareSpec("a", None, 2.0), ShareSpec("b", None, 1.0), ShareSpec("a1", "a", 1.0), ShareSpec("a2", "a", 3.0)]
WORLD = World(
    sites={"HERE": SiteSpec("HERE", distances={"D10": 10, "D50": 50})},
    storages={
        name: StorageSpec(name=name, site=site, endpoints=[Endpoint("root://h//d")])
        for name, site in (("D0", "HERE"), ("D10", "X"), ("D50", "X"))
    },
)
QUEUE = QueueSpec(name="Q", site="HERE", trusted=True)


def bucket(number: int, task: int = 1, **given: Any) -> Candidate:
    own = {name: given.pop(name) for name in ("locations", "unit_mb", "ready_since", "memory_mb") if name in given}
    traits = {
        "task_id": task,
        "state": TaskState.RUNNING,
        "requirements": Requirements(),
        "share": "a1",
        "priority": 0.0,
        "created": float(task),
    }
    return Candidate(bucket_id=number, traits=Traits(**{**traits, **given}), **{"locations": (), **own})


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for number in range(1, draw(st.integers(0, 12)) + 1):
        found.append(
            bucket(
                number,
                draw(st.integers(1, 4)),
                share=draw(st.sampled_from(["a", "a1", "a2", "b", "gone"])),
                priority=float(draw(st.sampled_from([0, 1000, 2500]))),
                requirements=Requirements(
                    cores=draw(st.sampled_from([1, 4, 8])),
                    memory_mb=draw(st.sampled_from([0, 2000, 9000])),
                    tags=draw(st.sampled_from([[], ["el9"], ["gpu"]])),
                ),
                locations=draw(st.sampled_from([(), ("D0",), ("D10",), ("D50",), ("NONE",)])),
                unit_mb=draw(st.sampled_from([0, 10, 500, 700])),
                max_distance=draw(st.sampled_from([100, 20])),
                far_after_s=draw(st.sampled_from([0.0, 100.0])),
                ready_since=draw(st.sampled_from([0.0, NOW])),
            )
        )
    return found


@given(
    given=candidates(),
    # No two shares are equally far from their targets: then either may come first.
    used=st.permutations([1.1, 2.3, 5.9]).map(lambda cores: dict(zip(("a1", "a2", "b"), cores, strict=True))),
    offer=st.builds(
        Offer,
        cores=st.sampled_from([1, 4, 8]),
        memory_mb=st.sampled_from([0, 2000, 10_000]),
        disk_mb=st.sampled_from([0, 500, 5000]),
        tags=st.sampled_from([[], ["el9"]]),
    ),
    faulty=st.sets(st.integers(1, 12), max_size=3),
    late=st.sets(st.integers(1, 12), max_size=6),
    leaving=st.sets(st.integers(1, 12), max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_the_arrangement_finds_what_matching_one_by_one_finds(
    given: list[Candidate],
    used: dict[str, float],
    offer: Offer,
    faulty: set[int],
    late: set[int],
    leaving: set[int],
) -> None:
    buckets = Buckets()
    for each in given:
        if each.bucket_id not in late:
            buckets.put(each)
    buckets.find(Slot(QUEUE, offer), Moment(WORLD, NOW), ShareUse(SHARES, used), 100)  # it learns from each search
    for each in given:
        if each.bucket_id in late:
            buckets.put(each)
    for number in leaving:
        buckets.remove(number)
    given = [each for each in given if each.bucket_id not in leaving]
    moment = Moment(WORLD, NOW, {number: {"HERE": SiteFaults(1, NOW + 5)} for number in faulty})
    slot = Slot(QUEUE, offer)
    expected, _ = match(given, slot, moment, service_order(SHARES, used))
    for _ in range(2):  # the second time from what it remembers
        found, refusals = buckets.find(slot, moment, ShareUse(SHARES, used), 100)
        assert [each.candidate.bucket_id for each in found] == [each.candidate.bucket_id for each in expected]
        assert [(each.distance, each.rank) for each in found] == [(each.distance, each.rank) for each in expected]
        assert bool(refusals) == (bool(given) and not expected)


def find(
    buckets: Buckets, offer: Offer | None = None, now: float = NOW, without: frozenset[int] = frozenset()
) -> list[int]:
    slot = Slot(QUEUE, offer or Offer(cores=8))
    found, _ = buckets.find(slot, Moment(WORLD, now), ShareUse(SHARES, {}), 10, without)
    return [each.candidate.bucket_id for each in found]


def test_buckets_come_and_go() -> None:
    buckets = Buckets()
    assert find(buckets) == []
    buckets.put(bucket(1))
    assert find(buckets) == [1]
    buckets.put(bucket(2, 2))
    buckets.put(replace(bucket(1), unit_mb=7))
    assert find(buckets) == [1, 2]
    buckets.remove(1)
    buckets.remove(99)
    assert find(buckets) == [2] and len(buckets) == 1


def test_a_bucket_that_gave_nothing_is_left_alone_for_a_while() -> None:
    buckets = Buckets()
    buckets.put(bucket(1))
    buckets.put(bucket(2, 2))
    buckets.set_aside(1, 5.0)
    assert find(buckets) == [2]
    buckets.bring_back(4.9)
    assert find(buckets) == [2]
    buckets.bring_back(5.0)
    assert find(buckets) == [1, 2]
    buckets.set_aside(1, 9.0)
    buckets.put(bucket(1))  # units came back meanwhile
    assert find(buckets) == [1, 2]


def test_what_was_tried_is_not_given_again() -> None:
    buckets = Buckets()
    for number in (1, 2, 3):
        buckets.put(bucket(number, number))
    assert find(buckets, without=frozenset({1, 3})) == [2]


def test_nothing_is_remembered_no_longer_than_it_is_true() -> None:
    buckets = Buckets()
    buckets.put(bucket(1, requirements=Requirements(cores=4)))
    assert find(buckets, Offer(cores=2)) == []
    assert find(buckets, Offer(cores=1)) == []
    assert find(buckets, Offer(cores=4)) == [1]
    buckets.put(bucket(2, requirements=Requirements(cores=1)))
    assert find(buckets, Offer(cores=2)) == [2]


def test_a_far_bucket_is_found_when_its_wait_is_over() -> None:
    buckets = Buckets()
    buckets.put(bucket(1, locations=("D10",), far_after_s=50.0, ready_since=NOW))
    assert find(buckets) == []
    assert find(buckets, now=NOW + 51) == [1]


def test_the_share_that_claimed_least_comes_first() -> None:
    buckets, use = Buckets(), ShareUse(SHARES, {})
    for number, share in enumerate(("a1", "a2", "b"), 1):
        buckets.put(bucket(number, number, share=share))
    taken = []
    for _ in range(12):
        found, _ = buckets.find(Slot(QUEUE, Offer(cores=8)), Moment(WORLD, NOW), use, 1)
        share = found[0].candidate.traits.share
        use.claim(share, 1.0)
        taken.append(share)
    # a against b two to one; within a, a1 against a2 one to three
    assert {share: taken.count(share) for share in set(taken)} == {"a1": 2, "a2": 6, "b": 4}


def test_what_is_urgent_and_far_comes_before_what_is_near_also_when_it_came_later() -> None:
    buckets = Buckets()
    buckets.put(bucket(1, 1, locations=("D0",)))
    assert find(buckets) == [1]
    buckets.put(bucket(2, 2, locations=("D10",), priority=2500.0))
    assert find(buckets) == [2, 1]
    buckets.put(bucket(3, 3, locations=("D10",)))
    buckets.remove(2)
    assert find(buckets) == [1, 3]
