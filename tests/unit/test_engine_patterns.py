"""Patterns agree with Python's where both know them, and end in time on the worst of messages."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.patterns import Pattern, PatternError

ATOMS = st.sampled_from(
    ["a", "b", " ", ".", r"\d", r"\w", r"\s", r"\.", "[ab]", "[^a]", "[0-9_]", "^", "$", r"\b", "1"]
)


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    sign = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "{,2}"])
    return st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, sign),
        st.builds("({})".format, inner),
    )


@settings(max_examples=600, deadline=None)
@given(st.recursive(ATOMS, _more, max_leaves=8), st.text("ab1 _.\n", max_size=12))
def test_what_both_know_they_find_alike(pattern: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Pattern(pattern).search(text) == bool(re.search(pattern, text))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^(a+)+$", "a" * 1000 + "b"),
        ("^(a|a)*$", "a" * 1000 + "b"),
        ("(a?){30}a{30}", "a" * 29),
        (".*.*.*.*=.*;", "x" * 1000),
        ("(.*a){12}c", "a" * 1000),
    ],
)
def test_a_pattern_that_ran_for_years_ends_at_once(pattern: str, text: str) -> None:
    begun = time.monotonic()
    assert not Pattern(pattern).search(text)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    "bad",
    [
        "(", "(a", "a)", "[a", "*a", "a**", "a+?", r"\1", r"(a)\1", "(?=a)", "(?<=a)b", "(?P<n>a)", "\\", "[b-a]",
        "[[:alpha:]]", "a{200}", "a{3,2}", r"\Z", "^*", "(a{100}){100}", "[a--b]", "(((){99}){99}){99}",
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_words(bad: str) -> None:
    with pytest.raises(PatternError, match=".{10,}"):
        Pattern(bad)


def test_letters_may_be_taken_large_or_small() -> None:
    assert Pattern("(?i)no SPACE left").search("write: No space left on device")
    assert not Pattern("no SPACE left").search("write: No space left on device")


def test_words_of_real_failures() -> None:
    pattern = Pattern(r"std::bad_alloc|MemoryError|Cannot allocate memory")
    assert pattern.search("terminate called after throwing an instance of 'std::bad_alloc'\n  what(): std::bad_alloc")
    assert pattern.search("OSError: [Errno 12] Cannot allocate memory")
    assert not pattern.search("Segmentation fault (core dumped)")
    assert Pattern(r"\bcode=(13|42)\b").search("died with code=42 at last")
    assert not Pattern(r"\bcode=(13|42)\b").search("died with code=421")
    assert Pattern("").search("") and Pattern("a{x}").search("a{x}")
