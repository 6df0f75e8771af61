"""Web processes keep to cores of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.cores import choose, take_core


@pytest.mark.parametrize(
    ("allowed", "kept", "start", "core"),
    [
        ([0, 1], [], 0, 0),
        ([0, 1], [], 7, 1),
        ([0, 1], [0], 0, 1),
        ([0, 1], [1], 7, 0),
        ([0, 1], [0, 1, 1], 1, 0),
        ([4, 6, 9], [6, 9], 1, 4),
        ([4, 6, 9], [4, 6, 9], 5, 9),
        ([4, 6], [0, 1, 2], 1, 6),
    ],
)
def test_a_core_that_fewest_others_keep_to(allowed: list[int], kept: list[int], start: int, core: int) -> None:
    assert choose(allowed, kept, start) == core


def test_where_it_is_forbidden_the_server_starts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: int, __: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert take_core(os.getpid(), tmp_path) is None


SERVED = """
import os, sys, threading
from pathlib import Path
from server.cores import take_core
take_core(int(sys.argv[1]), Path(sys.argv[2]))
thread_sees = []
thread = threading.Thread(target=lambda: thread_sees.extend(os.sched_getaffinity(0)))
thread.start(); thread.join()
print(*os.sched_getaffinity(0), *thread_sees, flush=True)
sys.stdin.read()
"""


def test_processes_of_one_parent_spread_over_the_cores_and_one_that_is_replaced_gets_the_free_one(
    tmp_path: Path,
) -> None:
    allowed = os.sched_getaffinity(0)

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVED, str(os.getpid()), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        core, of_thread = process.stdout.readline().split()
        assert core == of_thread
        return process, int(core)

    begun = [start() for _ in range(len(allowed))]
    try:
        assert sorted(core for _, core in begun) == sorted(allowed)
        gone, core = begun.pop()
        gone.communicate()
        begun.append(start())
        assert begun[-1][1] == core
    finally:
        for process, _ in begun:
            process.communicate()
    assert os.sched_getaffinity(0) == allowed
