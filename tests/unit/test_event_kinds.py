"""Every event that is emitted is of a registered kind, with words for people; states and kinds agree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest

from common.events import PROBLEMS, EventKind
from common.states import JobState, TaskState, WorkerState
from docs.generate import _notes

ROOT = Path(__file__).parents[2] / "server"
MOST_COLUMN = 32
PREFIXES = {"JOB_": JobState, "TASK_": TaskState, "WORKER_": WorkerState}
NOT_EMITTED = {"JOB_SENT"}
"""A job that is sent was claimed."""


def emitted(source: ast.Module) -> Iterator[tuple[int, str]]:
    """The kind of each ``Event(…)``: a name, or what a kind made from a state begins with and ``*``."""
    for node in ast.walk(source):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("Event", "events.Event"):
            continue
        given = [word.value for word in node.keywords if word.arg == "kind"] or node.args[1:2]
        for part in ast.walk(given[0]):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield node.lineno, part.value + "*" * isinstance(given[0], ast.JoinedStr)
            elif isinstance(part, ast.Attribute) and ast.unparse(part.value) == "EventKind":
                yield node.lineno, part.attr


def test_every_kind_that_is_emitted_is_registered() -> None:
    found = [
        (f"{path.relative_to(ROOT)}:{line}", kind)
        for path in sorted(ROOT.rglob("*.py"))
        for line, kind in emitted(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(found) >= 10, "the emitters were not found"
    unknown = [each for each in found if each[1] not in EventKind.__members__ and each[1].rstrip("*") not in PREFIXES]
    assert unknown == [], "add them to common/events.py, with when they happen and what their detail holds"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_there_is_a_kind_for_each_state(prefix: str) -> None:
    states: type[Enum] = PREFIXES[prefix]
    missing = {f"{prefix}{state.name}" for state in states} - set(EventKind.__members__) - NOT_EMITTED
    assert not missing


def test_every_kind_says_what_it_means_and_fits_its_column() -> None:
    notes = _notes(EventKind)
    for kind in EventKind:
        assert kind.name == kind.value
        assert len(kind.value) <= MOST_COLUMN
        assert notes.get(kind.name, "").endswith("."), kind
    assert set(EventKind) >= PROBLEMS


def test_the_reader_of_emitters_finds_what_it_is_to_find() -> None:
    source = (
        'events.Event(now, "A_B", "job", 1)\nEvent(now, f"JOB_{x.name}", "j", 1)\nEvent(now, EventKind.C_D, "j", 1)'
    )
    assert [kind for _, kind in emitted(ast.parse(source))] == ["A_B", "JOB_*", "C_D"]
