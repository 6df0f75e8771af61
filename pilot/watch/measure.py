"""What watching costs, for ``pilotage bench pilot``: eight trees of twenty processes of 200 MB each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pilot.watch.limits import JobLimits
from pilot.watch.memory import READ_AGAIN_S
from pilot.watch.watcher import Watch, Watcher

TREES = 8
PROCESSES = 20
PROCESS_MB = 200
LIMIT_MB = 2000
"""Of one tree: less than what is resident of its processes together, more than what they use, as with workers that were
forked from one that had read its input."""
GROWN_MB = 1900
WATCH_S = 5.0
_TREE = """
import os, sys, time
processes, mb = int(sys.argv[1]), int(sys.argv[2])
shared = bytearray(mb << 20)
shared[:: 4096] = b"x" * len(range(0, len(shared), 4096))
go, wait = os.pipe()
for _ in range(processes - 1):
    if os.fork() == 0:
        os.close(wait)
        os.read(go, 1)
        os._exit(0)
print("up", flush=True)
more = int(sys.stdin.readline() or 0)
if more:
    grown = bytearray(more << 20)
    grown[:: 4096] = b"x" * len(range(0, len(grown), 4096))
    print("grown", flush=True)
    sys.stdin.readline()
"""
_PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], *sys.argv[2:]])"


@dataclass(frozen=True)
class WatchCost:
    """``cpu_percent`` of one core that watching takes, of which ``memory_percent`` is for reading all of the trees' memory
    anew (once in :data:`pilot.watch.memory.READ_AGAIN_S`); ``breach_s`` from the moment at which a payload has grown until
    the limit that it passed is seen; how many looks and how many passes over /proc there were."""

    cpu_percent: float
    memory_percent: float
    breach_s: float
    looks: int
    passes: int


def measure_watch(seconds: float = 30.0) -> WatchCost:
    """Start the trees, watch them for so long, then let one pass its limit. Needs some 6 GB of memory.

    Raises:
        RuntimeError: a tree did not start, or the breach was never seen.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = [stack.enter_context(_tree()) for _ in range(TREES)]
        for tree in trees:
            assert tree.stdout is not None
            if tree.stdout.readline() != "up\n":
                raise RuntimeError("a tree of processes could not be started")
        watch = Watch(WATCH_S)
        limits = JobLimits(memory_mb=LIMIT_MB, disk_mb=1000, stdout_mb=100, processes=1000, looping_s=7200.0)
        watchers = [Watcher(tree.pid, _folder(folder, number), limits, watch) for number, tree in enumerate(trees)]
        try:
            first_s, _ = _watch_for(watchers, watch, 0.0)
            cpu_s, looks = _watch_for(watchers, watch, seconds)
            breach_s = _see_a_breach(trees[0], watchers[0], watch)
        finally:
            for tree in trees:
                assert tree.stdin is not None
                tree.stdin.close()
    memory, rest = first_s / READ_AGAIN_S, cpu_s / seconds
    return WatchCost(
        round(100 * (memory + rest), 3), round(100 * memory, 3), round(breach_s, 2), looks, watch.table.passes
    )


def _tree() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PARENT, _TREE, str(PROCESSES), str(PROCESS_MB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _folder(folder: Path, number: int) -> Path:
    path = folder / f"job-{number}"
    (path / "work").mkdir(parents=True)
    for name in range(20):
        (path / "work" / f"file-{name}").write_bytes(b"x")
    return path


def _watch_for(watchers: list[Watcher], watch: Watch, seconds: float) -> tuple[float, int]:
    """CPU seconds of this thread, and how many looks there were."""
    ends = time.monotonic() + seconds
    timer, looks = threading.Event(), 0
    began = time.thread_time()
    while True:
        for watcher in watchers:
            look = watcher.look()
            looks += 1
            if look.breaches:
                raise RuntimeError(f"a limit was passed that should not be: {look.breaches[0].words}")
        left_s = ends - time.monotonic()
        if left_s <= 0:
            return time.thread_time() - began, looks
        timer.wait(min(watch.again_s(False), left_s))


def _see_a_breach(tree: subprocess.Popen[str], watcher: Watcher, watch: Watch) -> float:
    assert tree.stdin is not None and tree.stdout is not None
    tree.stdin.write(f"{GROWN_MB}\n")
    tree.stdin.flush()
    if tree.stdout.readline() != "grown\n":
        raise RuntimeError("a tree of processes could not grow")
    began = time.monotonic()
    timer = threading.Event()
    timer.wait(watch.again_s(False))
    while time.monotonic() - began < 10 * WATCH_S:
        look = watcher.look()
        if look.breaches:
            return time.monotonic() - began
        timer.wait(look.again_s)
    raise RuntimeError("the limit that was passed was never seen")
