"""Parts of the face of Data Dispatcher that need no server: its query language, digest authentication, guesses."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import FrozenClock
from server.access.guesses import EVERY_S, TRIES, Guesses
from server.catalogs.base import UnknownDataset
from server.catalogs.file_list import FileListCatalog, FileListOptions
from server.compat.data_dispatcher import digest
from server.compat.data_dispatcher.search import Alternative, BadQuery, narrowed, parse
from server.engine.projects import Condition


def condition(name: str, operator: str, text: str, number: float | None = None) -> Alternative:
    return Alternative(conditions=(Condition(name, operator, text, number),))


STEP, THREE = condition("step", "=", "reco"), condition("version", ">=", "3", 3.0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("step=reco", [STEP]),
        ("step == 'reco'", [STEP]),
        ('step = "reco"', [STEP]),
        ("step=reco and version>=3", [STEP.both(THREE)]),
        ("step=reco or version>=3", [STEP, THREE]),
        ("(step=reco or version>=3) and owner=u", [each.both(Alternative(owner="u")) for each in (STEP, THREE)]),
        ("version in 3:5", [THREE.both(condition("version", "<=", "5", 5.0))]),
        ('step in (reco, "x y")', [STEP, condition("step", "=", "x y")]),
        ("good = True", [condition("good", "=", "true")]),
        ("x != -1.5e3", [condition("x", "!=", "-1.5e3", -1500.0)]),
        ("id = 7", [Alternative(id=7)]),
        ("state = done and id in (7, 8)", [Alternative(state="done", id=7), Alternative(state="done", id=8)]),
        ("query = 'files from a:b'", [condition("data_dispatcher.query", "=", "files from a:b")]),
        ("core.runs = 7", [condition("core.runs", "=", "7", 7.0)]),
    ],
)
def test_queries_become_our_conditions(query: str, expected: list[Alternative]) -> None:
    assert parse(query) == expected


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "the end"),
        ("step", "write name = constant"),
        ("step =", "is no constant"),
        ("step = reco version = 3", "join terms by and, or"),
        ("!step = reco", "'!' is not understood"),
        ("step ~ 're.*'", "step ~"),
        ("step present", "write name = constant"),
        ("step not in (a)", "write name = constant"),
        ("len(step) > 3", "'len' is not understood"),
        ("step[0] = 1", "step ["),
        ("version > reco", "'reco' is none"),
        ("created > 5", "not looked for by created"),
        ("owner != u", "only owner = constant"),
        ("state = weird", "there are active"),
        ("id = x", "no number of a project"),
        ("(step = reco", "not closed"),
        ("step in (a, b", "not closed"),
        ("step in 3", "low:high"),
        ("a = 'b", "is not understood"),
        ("(" * 50 + "a = 1" + ")" * 50, "brackets"),
        (" or ".join(["a = 1"] * 30), "at most 20 alternatives"),
        (" and ".join(["a in (1,2)"] * 6), "at most 20 alternatives"),
        (" and ".join(["a = 1"] * 11), "of 10 conditions"),
        ("a = " + "x" * 300, "255 characters"),
        ("a = 1" + " " * 10_000, "10000 characters"),
    ],
)
def test_queries_that_are_refused(query: str, words: str) -> None:
    with pytest.raises(BadQuery) as refused:
        parse(query)
    assert words in str(refused.value)


def test_what_contradicts_itself_is_not_looked_for() -> None:
    assert narrowed(parse("owner = a and owner = b"), None, None) == []
    assert narrowed(parse("owner = a or owner = b"), "b", None) == [Alternative(owner="b")]
    assert narrowed(parse("state = held or id = 1"), None, "active") == [Alternative(id=1, state="active")]


WORDS = [
    "a",
    "=",
    "(",
    ")",
    "and",
    "or",
    "in",
    "1:2",
    ",",
    "'x'",
    "!",
    "~",
    "7",
    "owner",
    "state",
    ":",
    '"',
    "[",
    "not",
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), max_size=15))
def test_any_query_is_understood_or_refused(words: list[str]) -> None:
    try:
        assert parse(" ".join(words))
    except BadQuery as refused:
        assert str(refused)


# ---------------------------------------------------------------- digest authentication

KEY = b"k" * 32


def test_the_example_of_rfc_2617() -> None:
    """Section 3.5: Mufasa opens the circle of life."""
    header = (
        'Digest username="Mufasa", realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", '
        'uri="/dir/index.html", qop=auth, nc=00000001, cnonce="0a4f113b", '
        'response="6629fae49393a05397450978507c4ef1", opaque="5ccc069c403ebaf9f0171e9517f40e41"'
    )
    answer = digest.read_answer(header)
    assert answer is not None and answer.user == "Mufasa"
    ha1 = hashlib.md5(b"Mufasa:testrealm@host.com:Circle Of Life").hexdigest()
    assert digest.is_right(answer, "GET", "/dir/index.html", ha1)
    assert not digest.is_right(answer, "POST", "/dir/index.html", ha1)
    assert not digest.is_right(answer, "GET", "/dir/other.html", ha1)
    assert not digest.is_right(answer, "GET", "/dir/index.html", "0" * 32)
    assert not digest.is_right(answer, "GET", "/dir/index.html", None)


@pytest.mark.parametrize(
    "header",
    ["", "Digest", "Basic YTpi", 'Digest username="a"', "Digest " + "x" * 10_000, 'Digest username="a' + "\\" * 5000],
)
def test_headers_that_are_no_answer(header: str) -> None:
    assert digest.read_answer(header) is None


def test_the_name_that_nobody_has_proves_nothing() -> None:
    """Its HA1 is a constant that anybody may know."""
    nonce, uri = "n", "/auth"
    ha2 = hashlib.md5(f"GET:{uri}".encode()).hexdigest()
    response = hashlib.md5(f"{'0' * 32}:{nonce}:1:c:auth:{ha2}".encode()).hexdigest()
    assert not digest.is_right(digest.Answer("x", "r", nonce, uri, response, "1", "c"), "GET", "/auth", None)


def test_nonces_are_signed_and_short_lived() -> None:
    nonce = digest.new_nonce(KEY, 1000.0)
    assert digest.is_fresh(KEY, nonce, 1000.0) and digest.is_fresh(KEY, nonce, 1000.0 + digest.NONCE_S)
    assert not digest.is_fresh(KEY, nonce, 1001.0 + digest.NONCE_S)
    assert not digest.is_fresh(b"x" * 32, nonce, 1000.0)
    for odd in ("", "x", "é", nonce[:-4], nonce[4:], nonce + "AAAA", "A" * len(nonce)):
        assert not digest.is_fresh(KEY, odd, 1000.0)
    assert digest.new_nonce(KEY, 1000.0) != nonce


def test_a_line_that_is_no_password_is_not_shown() -> None:
    good = "# people\n\nalice:dune:" + "A" * 32 + "\nbob:a:b:" + "0" * 32 + "\n"
    assert digest.passwords(good) == {("alice", "dune"): "a" * 32, ("bob", "a:b"): "0" * 32}
    for line in ("alice:dune", "alice:dune:secret", ":dune:" + "0" * 32, "alice::" + "0" * 32):
        with pytest.raises(ValueError, match="line 2") as refused:
            digest.passwords(f"\n{line}\n")
        assert "secret" not in str(refused.value)


# ---------------------------------------------------------------- guesses, and the list of all files


def test_wrong_passwords_are_paced_name_by_name() -> None:
    clock = FrozenClock()
    guesses = Guesses(clock)
    assert [guesses.take("a") for _ in range(int(TRIES))] == [0.0] * int(TRIES)
    assert guesses.take("a") == EVERY_S and guesses.take("b") == 0.0
    clock.advance(EVERY_S)
    assert guesses.take("a") == 0.0 and guesses.take("a") > 0
    for _ in range(100):
        clock.advance(EVERY_S)
        assert guesses.take("a") == 0.0
        guesses.give_back("a")
    guesses.give_back("never seen")


def test_a_list_of_all_files_is_looked_into_by_name(tmp_path: Path) -> None:
    def write(*names: str) -> None:
        replicas = [{"storage": "disk", "path": "x"}]
        (tmp_path / "all.json").write_text(json.dumps([{"did": f"a:{name}", "replicas": replicas} for name in names]))

    write("one", "two")
    catalog = FileListCatalog(FileListOptions(folder=str(tmp_path), index="all.json"))
    assert [file.did for file in catalog.locate(["a:two", "a:three", "a:one"])] == ["a:two", "a:one"]
    write("three")
    os.utime(tmp_path / "all.json", (1, 1))
    assert [file.did for file in catalog.locate(["a:two", "a:three"])] == ["a:three"]
    (tmp_path / "all.json").unlink()
    with pytest.raises(UnknownDataset, match="no such list"):
        catalog.locate(["a:one"])
    with pytest.raises(UnknownDataset, match="option index"):
        FileListCatalog(FileListOptions(folder=str(tmp_path))).locate(["a:one"])
