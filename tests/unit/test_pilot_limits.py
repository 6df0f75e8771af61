"""Limits of real payloads under a real pilot: each breach ends the whole tree and says which, how much and how much was
allowed."""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode
from common.states import JobState
from common.wire import FinishRequest, OutputPattern, PayloadLimits, QueueSpec, Requirements, UnitOutcome
from pilot.config import PilotConfig
from pilot.watch import payload_rules
from pilot.watch.stacks import find_gdb
from tests.unit.pilot_fakes import FakeServer, make_assignment
from tests.unit.test_pilot_agent import running


@pytest.fixture
def fake(tmp_path: Path) -> FakeServer:
    (tmp_path / "store").mkdir()
    return FakeServer(tmp_path / "store")


def report_of(fake: FakeServer, tmp_path: Path, script: str, settings: dict[str, Any], **changes: Any) -> FinishRequest:
    """One job of a pilot with these settings."""
    fake.add(make_assignment(1, script, **changes))
    with running(fake, tmp_path / "work", max_jobs=1, **{"memory_factor": 0.0, **settings}) as pilot:
        report = fake.report_of(1)
        pilot.wait()
    return report


def in_log(fake: FakeServer, name: str) -> str:
    """A file of the job's log archive."""
    with tarfile.open(next(fake.storage.glob("*.log.tgz"))) as archive:
        stream = archive.extractfile(f"job-1/{name}")
        assert stream is not None
        return stream.read().decode()


def test_too_many_processes(fake: FakeServer, tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & echo $! >> pids; done; wait"
    report = report_of(fake, tmp_path, script, {"processes_limit": 5, "keep": True})
    assert report.error_code == ErrorCode.TOO_MANY_PROCESSES
    # It may be looked at before it has all that it wants.
    assert re.fullmatch(r"processes: ([6-9]|1[0-9])\.0, allowed 5\.0", report.error_detail)
    assert [unit.outcome for unit in report.units] == [UnitOutcome.FAILED]
    for pid in (tmp_path / "work" / "jobs" / "job-1" / "work" / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_payload_that_hangs_is_killed_and_leaves_its_stacks(fake: FakeServer, tmp_path: Path) -> None:
    report = report_of(fake, tmp_path, "echo begun; sleep 600", {"looping_s": 2.0, "core_limit_mb": 50})
    assert report.error_code == ErrorCode.LOOPING_JOB
    assert report.error_detail.startswith("looping_s: ") and report.error_detail.endswith("allowed 2.0")
    stacks = in_log(fake, "evidence/stacks.txt")
    assert " jobscript, state" in stacks and " sleep, state" in stacks
    assert "#0" in stacks or "gdb is not installed" in stacks or "ptrace_scope" in stacks
    with tarfile.open(fileobj=io.BytesIO(fake.logs[1])) as archive:  # for people who cannot read the storage
        assert "job-1/evidence/stacks.txt" in archive.getnames()


@pytest.mark.skipif(find_gdb() is None, reason="no gdb here")
def test_the_core_of_a_payload_that_hangs_is_kept(fake: FakeServer, tmp_path: Path) -> None:
    report_of(fake, tmp_path, "exec sleep 600", {"looping_s": 0.5, "core_limit_mb": 50})
    with tarfile.open(next(fake.storage.glob("*.log.tgz"))) as archive:
        core = archive.extractfile("job-1/evidence/core")
        assert core is not None and core.read(4) == b"\x7fELF"


def test_a_job_may_say_that_it_never_hangs(fake: FakeServer, tmp_path: Path) -> None:
    patient = Requirements(cores=1, memory_mb=0, disk_mb=0, looping_s=0)
    report = report_of(fake, tmp_path, "sleep 1.5", {"looping_s": 0.3}, requirements=patient)
    assert report.state is JobState.FINISHED


def test_one_that_writes_does_not_hang(fake: FakeServer, tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo $i >> out; sleep 0.2; done"
    assert report_of(fake, tmp_path, script, {"looping_s": 2.5}).state is JobState.FINISHED


def test_the_disk_is_never_filled(fake: FakeServer, tmp_path: Path) -> None:
    """One job filled the node's disk; the others failed with it, and no log was left of any."""
    free_mb = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize // 2**20
    report = report_of(fake, tmp_path, "sleep 60", {"scratch_reserve_mb": free_mb + 1000})
    assert report.error_code == ErrorCode.NO_LOCAL_SPACE
    assert f"must be at least {free_mb + 1000}.0" in report.error_detail
    assert [unit.outcome for unit in report.units] == [UnitOutcome.RETURNED]


WARNED = """exec python3 -c '
import signal, sys
def saved(*_):
    open("saved.out", "w").write("checkpoint")
    sys.exit(0)
signal.signal(signal.SIGUSR1, saved)
while True:
    signal.pause()
'"""


def test_a_payload_is_warned_before_its_time_is_over(fake: FakeServer, tmp_path: Path) -> None:
    fake.queue = QueueSpec(name="q", site="here", cores=1, copytools=["file"], wall_s=90)
    # Five seconds in which the payload gets ready.
    settings = {"end_margin_s": 0.0, "min_wall_s": 0.0, "wall_warning_s": 85.0}
    report = report_of(fake, tmp_path, WARNED, settings, outputs=[OutputPattern("*.out")])
    assert (report.state, len(report.outputs)) == (JobState.FINISHED, 2)
    assert "SIGUSR1 to 1 processes that handle it" in in_log(fake, "pilot-job.log")


def test_the_warning_kills_nobody_who_does_not_know_it(fake: FakeServer, tmp_path: Path) -> None:
    """The signal's default is to end a process: a payload that had a minute left and needed a second was killed."""
    fake.queue = QueueSpec(name="q", site="here", cores=1, copytools=["file"], wall_s=30)
    settings = {"end_margin_s": 0.0, "min_wall_s": 0.0, "wall_warning_s": 29.9}
    report = report_of(fake, tmp_path, "sleep 1; echo fine > a.out", settings)
    assert report.state is JobState.FINISHED
    assert "no process of the payload handles SIGUSR1" in in_log(fake, "pilot-job.log")


def test_what_was_measured_is_reported(fake: FakeServer, tmp_path: Path) -> None:
    script = f"dd if=/dev/zero of=big.out bs=1M count=8 conv=fsync 2>/dev/null; sleep 1.5; # {time.time()}"
    report = report_of(fake, tmp_path, script, {})
    assert report.metrics is not None
    assert report.metrics.max_rss_mb > 0 and report.metrics.processes >= 1
    assert 8 <= report.metrics.work_dir_mb < 9


def test_the_queue_is_asked_before_the_pilots_own_configuration() -> None:
    config = PilotConfig(looping_s=100.0, processes_limit=7)
    assert payload_rules(config, None).looping_s == 100.0
    rules = payload_rules(config, PayloadLimits(looping_s=0, memory_factor=1.5))
    assert (rules.looping_s, rules.processes, rules.memory_factor) == (0.0, 7, 1.5)


def test_a_limit_that_makes_no_sense_is_named() -> None:
    with pytest.raises(ValueError, match="looping_s: -1.0 is negative"):
        PilotConfig(looping_s=-1.0)
