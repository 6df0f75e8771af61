"""The share tree: the share that is furthest below its target is served first, at each level."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.wire import ShareSpec
from server.engine.shares import ShareUse, service_order


def best_first(shares: list[ShareSpec], used: dict[str, float]) -> list[str]:
    order = service_order(shares, used)
    return sorted(order, key=lambda name: order[name])


def test_no_shares_no_order() -> None:
    assert service_order([], {"ghost": 5.0}) == {}


def test_the_share_furthest_below_its_target_comes_first() -> None:
    shares = [ShareSpec("a", weight=3), ShareSpec("b", weight=1)]
    assert best_first(shares, {"a": 30, "b": 11}) == ["a", "b"]
    assert best_first(shares, {"a": 30, "b": 9}) == ["b", "a"]


def test_equal_use_of_target_is_equal_order() -> None:
    order = service_order([ShareSpec("a", weight=3), ShareSpec("b", weight=1)], {"a": 30, "b": 10})
    assert order["a"] == order["b"]


NESTED = [
    ShareSpec("prod", weight=80),
    ShareSpec("mc", parent="prod", weight=1),
    ShareSpec("data", parent="prod", weight=1),
    ShareSpec("user", weight=20),
    ShareSpec("alice", parent="user", weight=1),
]


def test_a_busy_group_waits_whatever_its_members_hold() -> None:
    # prod holds 90 of its 80: its idle member comes after user's, which holds 10 of 20.
    order = service_order(NESTED, {"mc": 90.0, "alice": 10.0})
    assert order["alice"] < order["data"] < order["mc"]


def test_members_are_weighed_only_against_their_siblings() -> None:
    order = service_order(NESTED, {"mc": 10.0, "data": 5.0, "alice": 400.0})
    assert order["data"] < order["mc"] < order["alice"]


def test_use_of_a_group_counts_all_that_is_below_it() -> None:
    order = service_order(NESTED, {"prod": 1.0, "mc": 2.0, "data": 3.0})
    assert list(order["prod"]) == [pytest.approx(6.0 * 100 / 80)]


def test_the_key_of_a_share_begins_with_its_parents() -> None:
    order = service_order(NESTED, {"mc": 2.0, "alice": 1.0})
    for share in NESTED:
        if share.parent:
            assert order[share.name][:-1] == order[share.parent]
        else:
            assert len(order[share.name]) == 1


def test_the_order_of_the_list_does_not_matter() -> None:
    used = {"mc": 2.0, "data": 1.0, "alice": 1.0}
    assert service_order(NESTED, used) == service_order(NESTED[::-1], used)


def test_a_share_whose_parent_is_not_there_is_left_out() -> None:
    assert set(service_order([*NESTED, ShareSpec("orphan", parent="gone")], {})) == {share.name for share in NESTED}


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[ShareSpec], dict[str, float]]:
    count = draw(st.integers(1, 12))
    shares: list[ShareSpec] = []
    for number in range(count):
        parent = draw(st.none() | st.sampled_from([share.name for share in shares])) if shares else None
        shares.append(ShareSpec(f"s{number}", parent, float(draw(st.integers(1, 9)))))
    return shares, {share.name: float(draw(st.integers(0, 50))) for share in shares}


def path_of(name: str, shares: dict[str, ShareSpec]) -> list[str]:
    path = [name]
    while (parent := shares[path[0]].parent) is not None:
        path.insert(0, parent)
    return path


@settings(deadline=None, max_examples=400)
@given(trees())
def test_where_two_paths_part_use_over_weight_decides(tree: tuple[list[ShareSpec], dict[str, float]]) -> None:
    shares, used = tree
    by_name = {share.name: share for share in shares}
    paths = {name: path_of(name, by_name) for name in by_name}
    held = {name: sum(used[other] for other, path in paths.items() if name in path) for name in by_name}
    order = service_order(shares, used)
    assert set(order) == set(by_name)
    for a, b in ((a, b) for a in by_name for b in by_name):
        fork = next(((x, y) for x, y in zip(paths[a], paths[b]) if x != y), None)
        if fork is None:
            continue
        left, right = (Fraction(held[name]) / Fraction(by_name[name].weight) for name in fork)
        if left < right:
            assert order[a] < order[b]


@settings(deadline=None)
@given(trees(), st.sampled_from([2.0, 8.0, 0.25]))
def test_only_the_proportions_of_the_weights_count(
    tree: tuple[list[ShareSpec], dict[str, float]], factor: float
) -> None:
    shares, used = tree
    scaled = [ShareSpec(share.name, share.parent, share.weight * factor) for share in shares]
    assert service_order(scaled, used) == service_order(shares, used)


def test_views_tell_target_and_use_in_the_order_of_service() -> None:
    shares = [
        ShareSpec("a", None, 3.0),
        ShareSpec("b", None, 1.0),
        ShareSpec("a1", "a", 1.0),
        ShareSpec("a2", "a", 3.0),
    ]
    use = ShareUse(shares, {"a1": 30.0, "a": 10.0, "b": 10.0})
    found = {view.name: view for view in use.views()}
    assert [view.name for view in use.views()] == ["b", "a", "a2", "a1"]
    assert [round(found[name].target, 4) for name in ("a", "b", "a1", "a2")] == [0.75, 0.25, 0.1875, 0.5625]
    assert (found["a"].cores, found["a"].own_cores, found["a"].used, found["a1"].depth) == (40.0, 10.0, 0.8, 1)
    assert [view.name for view in use.views("a")] == ["a", "a2", "a1"]
    assert [view.name for view in use.views("a2")] == ["a2"] and use.views("gone") == []


def test_siblings_use_what_is_unused_before_it_moves_up() -> None:
    # a is far above its target and b below: but of a's own, a2 uses nothing, and a1 may have all of a.
    shares = [
        ShareSpec("a", None, 1.0),
        ShareSpec("b", None, 1.0),
        ShareSpec("a1", "a", 1.0),
        ShareSpec("a2", "a", 9.0),
    ]
    use = ShareUse(shares, {"a1": 40.0, "b": 50.0})
    assert list(use.in_order({"a1", "b"})) == ["a1", "b"]  # a as a whole is behind, although a1 is far above its own
    use.claim("a1", 20.0)
    assert list(use.in_order({"a1", "b"})) == ["b", "a1"]
