"""How many units a claim takes: it never exceeds what it may, and stops at the first unit that does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.sizing import TIER_BITS, ReadyUnit, company, prefix, raised, tier_of


def units(*sizes: int, tier: int = 0, first: int = 0) -> list[ReadyUnit]:
    return [ReadyUnit(first + n, raised(first + n, tier), size) for n, size in enumerate(sizes)]


@st.composite
def ready(draw: st.DrawFn) -> list[ReadyUnit]:
    rows = draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 5]), st.integers(0, 60)), max_size=40))
    made = [ReadyUnit(n, raised(n, tier), size) for n, (tier, size) in enumerate(rows)]
    return sorted(made, key=lambda unit: unit.seq)


LIMITS = st.integers(1, 50)
DISKS = st.none() | st.integers(0, 400)


@settings(deadline=None, max_examples=500)
@given(ready(), LIMITS, st.integers(1, 10), DISKS)
def test_a_prefix_keeps_every_bound(found: list[ReadyUnit], limit: int, least: int, disk_mb: int | None) -> None:
    taken = prefix(found, limit, least, disk_mb)
    assert taken == found[: len(taken)]
    assert len(taken) <= limit
    assert len({tier_of(unit.seq) for unit in taken}) <= 1
    if disk_mb is not None:
        assert sum(unit.size_mb for unit in taken) <= disk_mb
    if taken:
        assert len(found) >= least
        assert len(taken) <= company(limit, tier_of(taken[0].seq))


@settings(deadline=None, max_examples=500)
@given(ready(), LIMITS, DISKS)
def test_a_prefix_stops_only_for_a_reason(found: list[ReadyUnit], limit: int, disk_mb: int | None) -> None:
    taken = prefix(found, limit, 1, disk_mb)
    if len(taken) == len(found):
        return
    following = found[len(taken)]
    tier = tier_of(found[0].seq)
    assert (
        len(taken) == company(limit, tier)
        or tier_of(following.seq) != tier
        or (disk_mb is not None and sum(unit.size_mb for unit in [*taken, following]) > disk_mb)
    )


@given(ready(), LIMITS, st.integers(1, 10), DISKS)
@settings(deadline=None)
def test_rows_beyond_the_limit_change_nothing(
    found: list[ReadyUnit], limit: int, least: int, disk_mb: int | None
) -> None:
    # The store only ever fetches so many rows.
    enough = max(limit, least)
    assert prefix(found[:enough], limit, least, disk_mb) == prefix(found, limit, least, disk_mb)


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
        ([100, 1, 1], 5, 1, 99, 0),
        ([0, 0, 0], 5, 1, 0, 3),
        ([1], 5, 1, 0, 0),
    ],
)
def test_a_prefix(sizes: list[int], limit: int, least: int, disk_mb: int | None, expected: int) -> None:
    assert len(prefix(units(*sizes), limit, least, disk_mb)) == expected


def test_a_claim_never_spans_two_tiers() -> None:
    mixed = units(1, 1) + units(1, 1, tier=1, first=2)
    assert prefix(mixed, 10, 1, None) == mixed[:2]


@pytest.mark.parametrize(("tier", "expected"), [(0, 100), (1, 25), (2, 6), (3, 1), (4, 1), (99, 1)])
def test_a_unit_that_failed_comes_back_in_smaller_company(tier: int, expected: int) -> None:
    assert company(100, tier) == expected
    assert len(prefix(units(*[1] * 200, tier=tier), 100, 1, None)) == expected


@given(LIMITS, st.integers(0, 100))
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
