"""Names of outputs: made of ids, so that no two jobs meet; a pilot's word is not trusted."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.wire import Did, Name
from server.engine.naming import MAX_NAME, name_problem, output_did, output_path

FILE_NAMES = st.text(min_size=1, max_size=60)
IDS = st.integers(1, 2**40)


def test_a_name_holds_the_ids_of_task_and_job() -> None:
    assert output_did("user.alice", 3, 14, "out.root") == "user.alice:3.14.out.root"
    assert output_path("user.alice", 3, 14, "out.root") == "user.alice/3/14/3.14.out.root"


@settings(deadline=None, max_examples=400)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+\-]{0,30}", fullmatch=True), IDS, IDS, FILE_NAMES)
def test_an_accepted_name_makes_a_did_and_stays_in_its_folder(scope: str, task: int, job: int, name: str) -> None:
    msgspec.convert(scope, Name)
    if name_problem(task, job, name):
        return
    assert msgspec.convert(output_did(scope, task, job, name), Did)
    parts = output_path(scope, task, job, name).split("/")
    assert parts[:3] == [scope, str(task), str(job)] and len(parts) == 4
    assert parts[3] not in (".", "..") and len(parts[3].encode()) <= MAX_NAME


@settings(deadline=None, max_examples=300)
@given(IDS, IDS, IDS, FILE_NAMES, FILE_NAMES)
def test_two_jobs_never_share_a_path(task: int, job: int, twin: int, name: str, other: str) -> None:
    if job != twin and not name_problem(task, job, name) and not name_problem(task, twin, other):
        assert output_path("s", task, job, name) != output_path("s", task, twin, other)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../out",
        "a/b",
        "/etc/passwd",
        "a:b",
        "out\n",
        "a\x00b",
        "a\tb",
        "\x1b[2J",
        "x/..",
        "50%",
        "a?b",
        "a#b",
    ],
)
def test_what_is_no_file_name_is_refused_and_named(name: str) -> None:
    problem = name_problem(1, 2, name)
    assert repr(name) in problem and "must not hold" in problem


@pytest.mark.parametrize("name", ["a", "...", "..a", "a..b", "out put.root", "ümlaut", ".hidden", "-rf"])
def test_what_is_a_file_name_is_taken(name: str) -> None:
    assert name_problem(1, 2, name) == ""


@pytest.mark.parametrize(("letter", "width"), [("a", 1), ("ü", 2), ("😀", 4)])
def test_the_whole_name_must_fit_in_bytes(letter: str, width: int) -> None:
    room = (MAX_NAME - len("1.2.")) // width
    assert name_problem(1, 2, letter * room) == ""
    assert "too long" in name_problem(1, 2, letter * (room + 1))
    assert "too long" in name_problem(1000, 2000, letter * room)
