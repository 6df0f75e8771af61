"""What a running job uses, and its limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ErrorCode
from pilot.watch import JobLimits, JobMetrics, Watch, Watcher, check_limits, disk_usage
from pilot.watch.gaps import Clocks

MB = 1024 * 1024
USE = JobMetrics(memory_mb=100, work_dir_mb=200, stdout_mb=3, cpu_s=9, wall_s=60, processes=2, quiet_s=5)


@pytest.mark.parametrize(
    ("limits", "codes"),
    [
        (JobLimits(), []),
        (JobLimits(memory_mb=100, disk_mb=200, stdout_mb=3, wall_s=60), []),
        (JobLimits(memory_mb=99), [ErrorCode.MEMORY_EXCEEDED]),
        (JobLimits(disk_mb=199), [ErrorCode.WORK_DIR_TOO_LARGE]),
        (JobLimits(stdout_mb=2), [ErrorCode.STDOUT_TOO_BIG]),
        (JobLimits(wall_s=59.5), [ErrorCode.WALL_TIME_REACHED]),
        (JobLimits(processes=1), [ErrorCode.TOO_MANY_PROCESSES]),
        (JobLimits(looping_s=4), [ErrorCode.LOOPING_JOB]),
        (JobLimits(memory_mb=1, wall_s=1), [ErrorCode.MEMORY_EXCEEDED, ErrorCode.WALL_TIME_REACHED]),
    ],
)
def test_limits(limits: JobLimits, codes: list[ErrorCode]) -> None:
    assert [breach.code for breach in check_limits(USE, limits)] == codes


def test_a_breach_says_what_was_measured() -> None:
    assert check_limits(USE, JobLimits(memory_mb=99))[0].words == "memory_mb: 100.0, allowed 99.0"


class FakeClocks:
    """Clocks that a test moves."""

    def __init__(self) -> None:
        self.wall, self.steady, self.boot = 1e9, 1000.0, 1000.0

    def watch(self, every_s: float = 5.0, reserve_mb: int = 0) -> Watch:
        """What the watchers of a test share."""
        clocks = Clocks(lambda: self.wall, lambda: self.steady, lambda: self.boot)
        return Watch(every_s, reserve_mb, clocks)

    def pass_s(self, seconds: float) -> None:
        """Time passes."""
        self.wall, self.steady, self.boot = self.wall + seconds, self.steady + seconds, self.boot + seconds


def test_disk_usage_counts_what_is_on_the_disk_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x" * MB)
    os.link(tmp_path / "sub" / "a", tmp_path / "b")
    (tmp_path / "link").symlink_to("/usr")
    with (tmp_path / "hole").open("wb") as stream:
        stream.truncate(50 * MB)
    assert MB <= disk_usage(tmp_path) < 2 * MB
    assert disk_usage(tmp_path / "no") == 0


def test_a_look_at_a_running_tree(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"x" * MB)
    (tmp_path / "stderr").write_bytes(b"x" * 3 * MB)
    hog = "x = bytearray(50_000_000); print('up', flush=True); input()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hog!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        parent.stdout.readline()
        clock = FakeClocks()
        watcher = Watcher(parent.pid, tmp_path, JobLimits(memory_mb=20, stdout_mb=2), clock.watch())
        clock.pass_s(7.5)
        look = watcher.look()
        metrics, breaches = look.metrics, look.breaches
        parent.stdin.write("\n")
    assert 48 < metrics.memory_mb < 120 and metrics.processes == 1
    assert metrics.wall_s == 7.5 and metrics.cpu_s > 0 and metrics.stdout_mb == 3
    assert [breach.code for breach in breaches] == [ErrorCode.MEMORY_EXCEEDED, ErrorCode.STDOUT_TOO_BIG]


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    """The sum of resident memory of forked workers looked like four times what they use."""
    script = """
import os, sys
x = bytearray(60_000_000)
r, w = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        os.close(w); os.read(r, 1); os._exit(0)
os.close(r)
print('up', flush=True); input(); os.close(w)
"""
    wrapper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", wrapper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        parent.stdout.readline()
        loose = Watcher(parent.pid, tmp_path, JobLimits()).look().metrics
        look = Watcher(parent.pid, tmp_path, JobLimits(memory_mb=200)).look()
        strict, breaches = look.metrics, look.breaches
        parent.stdin.write("\n")
    assert loose.memory_mb > 250 and strict.memory_mb < 150 and breaches == []


def test_of_a_payload_that_has_ended_only_files_are_seen(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    look = Watcher(process.pid, tmp_path, JobLimits(memory_mb=1)).look()
    assert look.metrics.memory_mb == 0 and look.metrics.processes == 0 and look.breaches == []
