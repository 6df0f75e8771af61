"""Tests of one file run in one process, and all that share batch systems in the same."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from tests.conftest import pytest_xdist_make_scheduler
from tests.scheduling import BATCH_SYSTEMS

TESTS = Path(__file__).parents[1]


def test_tests_of_one_file_once_ran_in_two_processes() -> None:
    config = Mock()
    config.getvalue.return_value = ["2*popen"]
    scope_of = pytest_xdist_make_scheduler(config, Mock())._split_scope
    assert scope_of("tests/unit/test_a.py::test_x[1::2]") == scope_of("tests/unit/test_a.py::test_y")
    assert scope_of("tests/unit/test_a.py::test_x") != scope_of("tests/unit/test_b.py::test_x")
    shared = {
        scope_of(f"tests/{file.relative_to(TESTS)}::test_x")
        for file in TESTS.rglob("*.py")
        if file.name in BATCH_SYSTEMS
    }
    assert len(shared) == 1


def test_the_files_that_share_batch_systems_are_there() -> None:
    assert {file.name for file in TESTS.rglob("test_*.py")} >= BATCH_SYSTEMS
