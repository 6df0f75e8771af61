"""A user's priority falls with the cores in use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.priority import LEAST, user_priority


def test_the_formula_of_the_documentation() -> None:
    """A user with no active job submits 100: they get 1000 … 981."""
    assert [user_priority(0, n) for n in (0, 4, 5, 99)] == [1000, 1000, 999, 981]
    assert user_priority(5000) == 0


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_who_uses_more_never_comes_first(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 1000 >= user_priority(low) >= user_priority(high) >= LEAST
