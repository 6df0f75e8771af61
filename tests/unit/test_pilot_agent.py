"""A pilot's whole life against a fake server: real payloads under real supervisors, files copied for real."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import msgspec
import pytest

from common.errors import ErrorCode
from common.states import JobState
from common.wire import (
    AssignedFile,
    AssignedSandbox,
    AssignedUnit,
    FinishRequest,
    Instruction,
    OutputPattern,
    Replica,
    Requirements,
    UnitOutcome,
    UploadedOutput,
)
from pilot.agent import Agent, ExitCode
from pilot.config import PilotConfig
from pilot.spool import SpooledReport
from pilot.workdir import WorkDir
from pilot.workshop import Workshop
from tests.unit.pilot_fakes import SECRET, FakeServer, HttpFake, make_assignment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(tmp_path: Path) -> FakeServer:
    (tmp_path / "store").mkdir()
    return FakeServer(tmp_path / "store")


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.jobs.RETRY_FIRST_S", 0.05)


class Pilot:
    """An agent that runs on a thread of the test."""

    def __init__(self, fake: FakeServer, work: Path, secret: str = SECRET, **settings: Any) -> None:
        config = PilotConfig(**{"work_dir": str(work), "watch_s": 0.1, "memory_factor": 0.0, **settings})
        self.work_dir = WorkDir(work)
        self.connection = fake.connection(secret)
        shop = Workshop(config, "http://fake", self.connection, self.work_dir, dict(os.environ), lambda: "the log")
        self.agent: Agent = shop.agent("worker-mark")
        self.code: Optional[ExitCode] = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.code = self.agent.run()
        self.work_dir.close()

    def wait(self, deadline_s: float = 120.0) -> ExitCode:
        self._thread.join(deadline_s)
        assert self.code is not None, "the pilot did not end"
        return self.code


@contextmanager
def running(fake: FakeServer, work: Path, **settings: Any) -> Iterator[Pilot]:
    pilot = Pilot(fake, work, **settings)
    try:
        yield pilot
    finally:
        if pilot.code is None:
            pilot.agent.stop("SIGTERM")
            pilot.wait()


def run_job(fake: FakeServer, tmp_path: Path, script: str, **changes: Any) -> FinishRequest:
    """One pilot, one job; its report."""
    fake.add(make_assignment(1, script, **changes))
    with running(fake, tmp_path / "work", max_jobs=1) as pilot:
        report = fake.report_of(1)
        assert pilot.wait() is ExitCode.DONE
    assert list((tmp_path / "work" / "jobs").iterdir()) == []
    assert fake.pilots[1].end is not None
    return report


def stored(fake: FakeServer) -> list[str]:
    return sorted(path.name for path in fake.storage.iterdir())


def file_unit(tmp_path: Path, number: int, content: bytes = b"data", name: str = "") -> AssignedUnit:
    path = tmp_path / "input" / (name or f"in{number}.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    checksum = f"adler32:{zlib.adler32(content):08x}"
    replicas = [Replica("NEAR", f"file://{path}", 0)]
    return AssignedUnit(number, number, AssignedFile(f"test:in{number}.txt", len(content), checksum, replicas=replicas))


# ---------------------------------------------------------------- one job


def test_a_job_from_claim_to_confirmation(fake: FakeServer, tmp_path: Path) -> None:
    report = run_job(
        fake,
        tmp_path,
        'cat in1.txt in2.txt > sum.out; echo "$PILOTAGE_JOB_ID"',
        units=[file_unit(tmp_path, 1, b"one "), file_unit(tmp_path, 2, b"two")],
        outputs=[OutputPattern("*.out")],
    )
    assert (report.state, report.exit_code, report.error_code) == (JobState.FINISHED, 0, None)
    assert {unit.unit_id: unit.outcome for unit in report.units} == {1: UnitOutcome.PROCESSED, 2: UnitOutcome.PROCESSED}
    assert stored(fake) == ["1-job-1.log.tgz", "1-sum.out"]
    assert (fake.storage / "1-sum.out").read_bytes() == b"one two"
    assert sorted(output.did for output in report.outputs) == ["out:1-job-1.log.tgz", "out:1-sum.out"]
    assert report.metrics is not None
    assert (report.metrics.stage_in_bytes, report.metrics.wall_s > 0) == (7, True)
    with tarfile.open(fake.storage / "1-job-1.log.tgz") as archive:
        assert {Path(name).name for name in archive.getnames()} >= {"stdout", "stderr", "jobscript", "pilot-job.log"}
    assert list((tmp_path / "work" / "spool").iterdir()) == []


def test_a_payload_that_fails(fake: FakeServer, tmp_path: Path) -> None:
    report = run_job(fake, tmp_path, "echo broken >&2; touch a.out; exit 3", outputs=[OutputPattern("*.out")])
    assert (report.state, report.exit_code, report.error_code) == (JobState.FAILED, 3, ErrorCode.PAYLOAD_FAILED)
    assert "broken" in report.log_tail
    assert [unit.outcome for unit in report.units] == [UnitOutcome.FAILED]
    assert stored(fake) == ["1-job-1.log.tgz"]


def test_a_payload_that_crashes(fake: FakeServer, tmp_path: Path) -> None:
    report = run_job(fake, tmp_path, "kill -SEGV $$")
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.SIGSEGV)


def test_a_missing_output(fake: FakeServer, tmp_path: Path) -> None:
    report = run_job(fake, tmp_path, "touch a.out", outputs=[OutputPattern("*.out"), OutputPattern("*.root")])
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.MISSING_OUTPUT)
    assert "*.root" in report.error_detail
    assert stored(fake) == ["1-job-1.log.tgz"]


def test_a_jobscript_without_a_shebang(fake: FakeServer, tmp_path: Path) -> None:
    report = run_job(fake, tmp_path, "", jobscript="echo hello\n")
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.BAD_JOBSCRIPT)
    assert "#!/bin/sh" in report.error_detail


def test_an_image_that_does_not_exist(fake: FakeServer, tmp_path: Path) -> None:
    report = run_job(fake, tmp_path, "true", image="/no/such/image.sif")
    assert report.error_code in (ErrorCode.IMAGE_NOT_FOUND, ErrorCode.CONTAINER_NOT_INSTALLED)


def test_a_damaged_replica_is_replaced_by_the_next(fake: FakeServer, tmp_path: Path) -> None:
    good = file_unit(tmp_path, 1, b"good")
    assert good.file is not None
    bad = tmp_path / "input" / "bad.txt"
    bad.write_bytes(b"evil")
    good.file.replicas = [Replica("BAD", f"file://{bad}", 0), Replica("FAR", good.file.replicas[0].url, 9)]
    report = run_job(fake, tmp_path, "grep -q good in1.txt", units=[good])
    assert report.state is JobState.FINISHED
    told = [(replica.did, replica.storage, replica.error_code) for replica in report.bad_replicas]
    assert told == [("test:in1.txt", "BAD", ErrorCode.GET_ADLER32_MISMATCH)]


def test_a_unit_without_any_good_replica_is_lost(fake: FakeServer, tmp_path: Path) -> None:
    lost, good = file_unit(tmp_path, 1), file_unit(tmp_path, 2)
    (tmp_path / "input" / "in1.txt").unlink()
    report = run_job(fake, tmp_path, "test ! -e in1.txt && test -e in2.txt", units=[lost, good])
    assert report.state is JobState.FINISHED
    assert {unit.unit_id: unit.outcome for unit in report.units} == {1: UnitOutcome.LOST, 2: UnitOutcome.PROCESSED}


def test_a_job_whose_input_is_all_lost_fails(fake: FakeServer, tmp_path: Path) -> None:
    lost = file_unit(tmp_path, 1)
    (tmp_path / "input" / "in1.txt").unlink()
    report = run_job(fake, tmp_path, "true", units=[lost])
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.NO_SUCH_FILE)
    assert [unit.outcome for unit in report.units] == [UnitOutcome.LOST]


def test_common_input_that_is_missing_fails_the_job(fake: FakeServer, tmp_path: Path) -> None:
    common = file_unit(tmp_path, 9).file
    assert common is not None
    (tmp_path / "input" / "in9.txt").unlink()
    report = run_job(fake, tmp_path, "true", units=[file_unit(tmp_path, 1)], common_input=[common])
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.NO_SUCH_FILE)
    assert [unit.outcome for unit in report.units] == [UnitOutcome.RETURNED]


RANGES = """
[ "$(wc -l < $PILOTAGE_INPUT_FILES)" = 1 ] || exit 2
[ "$(cat $(cat $PILOTAGE_INPUT_FILES))" = data ] || exit 3
grep -q '"first_event": 10, "events": 5' $PILOTAGE_UNITS || exit 4
[ "$(cat $(cat $PILOTAGE_SECONDARY_PILEUP))" = datadata ] || exit 5
"""


def test_ranges_of_one_file_are_staged_in_once_beside_secondary_files(fake: FakeServer, tmp_path: Path) -> None:
    first = file_unit(tmp_path, 1)
    ranges = [
        msgspec.structs.replace(first, first_event=0, events=10),
        msgspec.structs.replace(first, unit_id=2, seq=2, first_event=10, events=5),
    ]
    beside = [file for n in (7, 8) if (file := file_unit(tmp_path, n).file) is not None]
    report = run_job(fake, tmp_path, RANGES, units=ranges, secondary={"pileup": beside})
    assert (report.state, report.exit_code) == (JobState.FINISHED, 0)
    assert {unit.unit_id: unit.outcome for unit in report.units} == dict.fromkeys((1, 2), UnitOutcome.PROCESSED)
    assert report.metrics.stage_in_bytes == 3 * len(b"data")


def test_a_secondary_file_that_is_missing_fails_the_job(fake: FakeServer, tmp_path: Path) -> None:
    gone = file_unit(tmp_path, 9).file
    assert gone is not None
    (tmp_path / "input" / "in9.txt").unlink()
    report = run_job(fake, tmp_path, "true", units=[file_unit(tmp_path, 1)], secondary={"pileup": [gone]})
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.NO_SUCH_FILE)


def test_an_upload_that_fails_returns_the_units(fake: FakeServer, tmp_path: Path) -> None:
    fake.storage = tmp_path / "no" / "such"
    (tmp_path / "no").write_text("a file where a folder should be")
    report = run_job(fake, tmp_path, "touch a.out", outputs=[OutputPattern("*.out")])
    assert report.state is JobState.FAILED
    assert report.error_code is not None
    assert [unit.outcome for unit in report.units] == [UnitOutcome.RETURNED]
    assert report.outputs == []


def test_a_payload_that_fills_its_disk_is_killed(fake: FakeServer, tmp_path: Path) -> None:
    report = run_job(
        fake,
        tmp_path,
        "dd if=/dev/zero of=big bs=1M count=40 2>/dev/null; sleep 60",
        requirements=Requirements(memory_mb=100, disk_mb=10),
    )
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.WORK_DIR_TOO_LARGE)


def test_a_payload_that_takes_too_much_memory_is_killed(fake: FakeServer, tmp_path: Path) -> None:
    fake.add(make_assignment(1, f"exec {sys.executable} -c 'x = bytearray(300_000_000); import time; time.sleep(60)'"))
    with running(fake, tmp_path / "work", max_jobs=1, memory_factor=1.0, memory_grace_s=60.0):
        report = fake.report_of(1)
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.MEMORY_EXCEEDED)


# ---------------------------------------------------------------- get-file


GET_FILES = """
while out=$(pilotage-get-file); do
  set -- $out
  cat "$2" >> all.out
  echo "$1" >> pilotage-processed-dids.txt
done
"""


def test_get_file_takes_the_claimed_units_and_more(fake: FakeServer, tmp_path: Path) -> None:
    fake.more_units = [file_unit(tmp_path, 2, b"2"), file_unit(tmp_path, 3, b"3")]
    fake.faults["acquire_units"] = ["lost", "away"]
    report = run_job(
        fake, tmp_path, GET_FILES, units=[file_unit(tmp_path, 1, b"1")], outputs=[OutputPattern("all.out")]
    )
    assert report.state is JobState.FINISHED, report
    assert {unit.unit_id: unit.outcome for unit in report.units} == dict.fromkeys((1, 2, 3), UnitOutcome.PROCESSED)
    assert (fake.storage / "1-all.out").read_bytes() == b"123"


def test_a_link_that_the_payload_left_for_its_log_is_not_written_through(fake: FakeServer, tmp_path: Path) -> None:
    """A bug: the pilot wrote its notes through a link, over any file of its own user."""
    (tmp_path / "precious").write_text("mine")
    script = f"ln -s {tmp_path}/precious ../pilot-job.log; ln {tmp_path}/precious ../job-1.log.tgz.partial"
    assert run_job(fake, tmp_path, script).state is JobState.FINISHED
    assert (tmp_path / "precious").read_text() == "mine"
    with tarfile.open(fake.storage / "1-job-1.log.tgz") as archive:
        assert "job-1/pilot-job.log" in archive.getnames()


def test_a_link_that_the_payload_left_for_a_unit_is_not_written_through(fake: FakeServer, tmp_path: Path) -> None:
    """A bug of the same kind: units that come later were fetched into whatever the link of that name pointed to."""
    (tmp_path / "elsewhere").mkdir()
    fake.more_units = [file_unit(tmp_path, 2, b"2")]
    report = run_job(
        fake,
        tmp_path,
        f"ln -s {tmp_path}/elsewhere unit-2\n{GET_FILES}",
        units=[file_unit(tmp_path, 1, b"1")],
        outputs=[OutputPattern("all.out")],
    )
    assert list((tmp_path / "elsewhere").iterdir()) == []
    outcomes = {unit.unit_id: unit.outcome for unit in report.units}
    assert (report.state, outcomes) == (JobState.FINISHED, {1: UnitOutcome.PROCESSED, 2: UnitOutcome.RETURNED})


def test_units_that_the_jobscript_does_not_list_go_back(fake: FakeServer, tmp_path: Path) -> None:
    units = [file_unit(tmp_path, 1), file_unit(tmp_path, 2)]
    report = run_job(fake, tmp_path, "echo test:in2.txt > justin-processed-dids.txt", units=units)
    outcomes = {unit.unit_id: unit.outcome for unit in report.units}
    assert outcomes == {1: UnitOutcome.RETURNED, 2: UnitOutcome.PROCESSED}


@pytest.mark.parametrize("line", ["echo $1 > justin-processed-dids.txt", "echo $2 > justin-processed-pfns.txt"])
def test_a_counter_is_listed_by_the_names_that_get_file_gave_it(fake: FakeServer, tmp_path: Path, line: str) -> None:
    """Jobscripts of justIN, Monte Carlo: a file that is none."""
    units = [AssignedUnit(number, seq=number, counter=number) for number in (1, 2)]
    report = run_job(
        fake, tmp_path, f"set -- $($JUSTIN_PATH/justin-get-file)\n[ $3 = MONTECARLO ]\n{line}", units=units
    )
    outcomes = {unit.unit_id: unit.outcome for unit in report.units}
    assert outcomes == {1: UnitOutcome.PROCESSED, 2: UnitOutcome.RETURNED}


# ---------------------------------------------------------------- a server that is not there, or says no


@pytest.mark.parametrize("fault", ["lost", "away"])
@pytest.mark.parametrize("call", ["register", "acquire", "heartbeat", "record", "finish"])
def test_a_call_that_is_not_answered_is_repeated(fake: FakeServer, tmp_path: Path, call: str, fault: str) -> None:
    fake.faults[call] = [fault, fault]
    report = run_job(fake, tmp_path, "sleep 0.5; touch a.out", outputs=[OutputPattern("*.out")])
    assert report.state is JobState.FINISHED
    assert not fake.faults[call]
    assert len(fake.pilots) == 1
    assert fake.jobs[1].pilot_id == 1


def test_a_lost_answer_to_a_claim_brings_the_same_job(fake: FakeServer, tmp_path: Path) -> None:
    fake.faults["acquire"] = ["lost"]
    fake.add(make_assignment(1, "true"))
    fake.add(make_assignment(2, "true"))
    with running(fake, tmp_path / "work", max_jobs=1) as pilot:
        assert pilot.wait() is ExitCode.DONE
    assert fake.report_of(1).state is JobState.FINISHED
    assert fake.jobs[2].pilot_id is None


def test_410_at_the_confirmation_removes_what_was_uploaded(fake: FakeServer, tmp_path: Path) -> None:
    fake.faults["finish"] = ["gone"]
    fake.add(make_assignment(1, "touch a.out", outputs=[OutputPattern("*.out")]))
    with running(fake, tmp_path / "work", max_jobs=1) as pilot:
        assert pilot.wait() is ExitCode.DONE
    assert fake.jobs[1].report is None
    assert stored(fake) == []
    assert list((tmp_path / "work" / "spool").iterdir()) == []


def test_410_at_the_record_forgets_the_job(fake: FakeServer, tmp_path: Path) -> None:
    fake.faults["record"] = ["gone"]
    fake.add(make_assignment(1, "true"))
    with running(fake, tmp_path / "work", max_jobs=1) as pilot:
        assert pilot.wait() is ExitCode.DONE
    assert fake.calls["finish"] == 0


def test_a_refused_report_becomes_a_failure(fake: FakeServer, tmp_path: Path) -> None:
    fake.faults["finish"] = ["refused"]
    report = run_job(fake, tmp_path, "true")
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.INTERNAL_PILOT_PROBLEM)


def test_a_payload_goes_on_while_the_server_is_away(fake: FakeServer, tmp_path: Path) -> None:
    fake.add(make_assignment(1, "touch running; while [ -e running ]; do sleep 0.05; done; echo done > a.out",
                             outputs=[OutputPattern("*.out")]))  # fmt: skip
    with running(fake, tmp_path / "work", max_jobs=1) as pilot:
        marker = tmp_path / "work" / "jobs" / "job-1" / "work" / "running"
        wait_until(marker.exists, "the payload runs")
        fake.down = True
        before = fake.calls["heartbeat"]
        fake.wait_for(lambda: fake.calls["heartbeat"] >= before + 2, "heartbeats without an answer")
        marker.unlink()
        fake.wait_for(lambda: fake.calls["record"] >= 2, "the record is asked for again")
        fake.down = False
        assert fake.report_of(1).state is JobState.FINISHED
        assert pilot.wait() is ExitCode.DONE


def wait_until(condition: Any, what: str, deadline_s: float = 120.0) -> None:
    deadline = time.monotonic() + deadline_s
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        tick.wait(0.01)


def test_a_refused_registration_ends_the_pilot(fake: FakeServer, tmp_path: Path) -> None:
    assert Pilot(fake, tmp_path / "work", secret="wrong").wait() is ExitCode.NOT_REGISTERED


def test_a_pilot_for_another_queue_leaves_and_says_so(fake: FakeServer, tmp_path: Path) -> None:
    assert Pilot(fake, tmp_path / "work", queue="other").wait() is ExitCode.WRONG_USAGE
    end = fake.pilots[1].end
    assert end is not None
    assert (end.error_code, end.log_tail) == (ErrorCode.BAD_CONFIGURATION, "the log")


def test_a_slot_that_cannot_be_used_is_reported(fake: FakeServer, tmp_path: Path) -> None:
    fake.queue.copytools = ["no-such-tool"]
    assert Pilot(fake, tmp_path / "work").wait() is ExitCode.FAILED
    end = fake.pilots[1].end
    assert end is not None
    assert end.error_code == ErrorCode.MIDDLEWARE_IMPORT_FAILED


def test_a_server_that_never_answers_ends_the_pilot_at_its_lifetime(fake: FakeServer, tmp_path: Path) -> None:
    fake.down = True
    assert Pilot(fake, tmp_path / "work", lifetime_s=0.5).wait() is ExitCode.UNREACHABLE


# ---------------------------------------------------------------- instructions


def test_a_kill_cancels_the_job_and_uploads_its_log(fake: FakeServer, tmp_path: Path) -> None:
    fake.instructions[1] = Instruction.KILL
    report = run_job(fake, tmp_path, "touch a.out; exec sleep 60", outputs=[OutputPattern("*.out")])
    assert (report.state, report.error_code) == (JobState.CANCELLED, ErrorCode.KILLED_BY_SERVER)
    assert stored(fake) == ["1-job-1.log.tgz"]


def test_an_unknown_job_is_dropped_without_a_report(fake: FakeServer, tmp_path: Path) -> None:
    fake.instructions[1] = Instruction.UNKNOWN
    fake.add(make_assignment(1, "exec sleep 60"))
    with running(fake, tmp_path / "work", max_jobs=1) as pilot:
        assert pilot.wait() is ExitCode.DONE
    assert (fake.calls["record"], fake.calls["finish"]) == (0, 0)


def test_a_rejected_pilot_drops_its_jobs_and_leaves(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.heart.REFUSED_FOR_S", 0.0)
    fake.faults["heartbeat"] = ["rejected"]
    fake.add(make_assignment(1, "exec sleep 60"))
    with running(fake, tmp_path / "work") as pilot:
        assert pilot.wait() is ExitCode.REJECTED
    assert fake.calls["finish"] == 0


def test_a_server_that_refuses_for_a_moment_does_not_cost_a_job(fake: FakeServer, tmp_path: Path) -> None:
    """A bug: the first 401 made the pilot forget its jobs and kill their payloads."""
    for call in ("heartbeat", "record", "finish"):
        fake.faults[call] = ["rejected", "rejected"]
    report = run_job(fake, tmp_path, "sleep 1; touch a.out", outputs=[OutputPattern("*.out")])
    assert report.state is JobState.FINISHED
    assert fake.calls["heartbeat"] > 2
    assert "1-a.out" in stored(fake)


def test_a_token_that_expired_in_an_outage_is_renewed_by_the_heartbeat(fake: FakeServer, tmp_path: Path) -> None:
    fake.faults["acquire"] = ["rejected", "rejected"]
    assert run_job(fake, tmp_path, "true").state is JobState.FINISHED


def test_drain_ends_the_pilot_after_its_job(fake: FakeServer, tmp_path: Path) -> None:
    fake.add(make_assignment(1, "sleep 0.5"))
    with running(fake, tmp_path / "work") as pilot:
        fake.wait_for(lambda: fake.jobs[1].pilot_id, "the job is taken")
        fake.add(make_assignment(2, "true"))
        fake.drain = True
        assert pilot.wait() is ExitCode.DONE
    assert fake.report_of(1).state is JobState.FINISHED


def test_a_new_token_is_used_and_kept(fake: FakeServer, tmp_path: Path) -> None:
    fake.add(make_assignment(1, "sleep 0.7"))
    fake.new_token = "renewed"
    with running(fake, tmp_path / "work") as pilot:
        assert fake.report_of(1).state is JobState.FINISHED
        assert pilot.work_dir.spool.token(1) == "renewed"
        assert (tmp_path / "work" / "spool" / "1.token").stat().st_mode & 0o777 == 0o600


def test_heartbeats_list_all_jobs_with_their_states(fake: FakeServer, tmp_path: Path) -> None:
    fake.queue.cores = 2
    fake.add(make_assignment(1, "sleep 1"))
    fake.add(make_assignment(2, "sleep 1"))
    with running(fake, tmp_path / "work", max_jobs=2) as pilot:
        fake.report_of(1)
        fake.report_of(2)
        pilot.wait()
    if len(os.sched_getaffinity(0)) >= 2:
        assert any(len(beat.jobs) == 2 for beat in fake.heartbeats)
    assert JobState.RUNNING in fake.jobs[1].states


def test_an_idle_pilot_leaves(fake: FakeServer, tmp_path: Path) -> None:
    fake.settings.idle_exit_s = 0.3
    assert Pilot(fake, tmp_path / "work").wait() is ExitCode.DONE
    end = fake.pilots[1].end
    assert end is not None
    assert "no job for" in end.reason
    assert not (tmp_path / "work" / "pilot.json").exists()


def test_an_idle_pilot_whose_server_is_gone_leaves(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pilots were once found asking a server that had been gone for hours."""
    monkeypatch.setattr("pilot.agent.AWAY_S", 0.5)
    fake.settings.idle_exit_s = 0.3
    fake.faults["acquire"] = ["away"] * 1000
    assert Pilot(fake, tmp_path / "work").wait() is ExitCode.UNREACHABLE


# ---------------------------------------------------------------- the end of a slot


def test_sigterm_ends_the_payload_and_reports(fake: FakeServer, tmp_path: Path) -> None:
    fake.add(make_assignment(1, "trap '' TERM; touch up; while true; do sleep 1; done"))
    with running(fake, tmp_path / "work") as pilot:
        wait_until((tmp_path / "work" / "jobs" / "job-1" / "work" / "up").exists, "the payload runs")
        begun = time.monotonic()
        pilot.agent.stop("SIGTERM")
        assert pilot.wait(120) is ExitCode.STOPPED
        assert time.monotonic() - begun < 60
    report = fake.report_of(1)
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.SIGTERM)
    assert [unit.outcome for unit in report.units] == [UnitOutcome.RETURNED]
    assert stored(fake) == ["1-job-1.log.tgz"]
    end = fake.pilots[1].end
    assert end is not None
    assert end.error_code == ErrorCode.SIGTERM


def test_sigterm_does_not_wait_for_a_long_poll(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.agent.LAST_ANSWER_S", 0.2)
    fake.settings.acquire_wait_s = 20.0
    with running(fake, tmp_path / "work") as pilot:
        fake.wait_for(lambda: fake.calls["acquire"], "the pilot asks")
        begun = time.monotonic()
        pilot.agent.stop("SIGTERM")
        assert pilot.wait() is ExitCode.STOPPED
        assert time.monotonic() - begun < 15


def test_sigterm_with_the_server_away_spools_the_report(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.agent.REPORT_WITHIN_S", 1.0)
    monkeypatch.setattr("pilot.agent.LEAVE_WITHIN_S", 2.0)
    fake.add(make_assignment(1, "touch up; exec sleep 60"))
    with running(fake, tmp_path / "work") as pilot:
        wait_until((tmp_path / "work" / "jobs" / "job-1" / "work" / "up").exists, "the payload runs")
        fake.down = True
        pilot.agent.stop("SIGTERM")
        assert pilot.wait(120) is ExitCode.STOPPED
    entry = WorkDir(tmp_path / "work").spool.reports()[0]
    assert (entry.job_id, entry.report.error_code) == (1, ErrorCode.SIGTERM)
    assert (tmp_path / "work" / "spool" / "1-1.json").stat().st_mode & 0o777 == 0o600


def test_the_next_pilot_in_the_folder_delivers_what_was_spooled(fake: FakeServer, tmp_path: Path) -> None:
    with HttpFake(fake) as http:
        fake.add(make_assignment(1, "true"))
        grant = fake.connection().register(_registration())
        fake.jobs[1].pilot_id = grant.pilot_id
        left = WorkDir(tmp_path / "work")
        left.spool.save_token(grant.pilot_id, grant.token)
        report = FinishRequest(state=JobState.FINISHED)
        left.spool.put(SpooledReport(server=http.url, pilot_id=grant.pilot_id, job_id=1, report=report))
        left.close()
        with running(fake, tmp_path / "work"):
            assert fake.report_of(1) == report
        assert fake.pilots[2].registration.nonce != fake.pilots[1].registration.nonce
    assert list((tmp_path / "work" / "spool").glob("*.json")) == []


def _registration() -> Any:
    from common.wire import PilotRegistration

    return PilotRegistration("worker-mark", "another-nonce")


def test_a_spooled_report_that_comes_too_late_removes_its_uploads(fake: FakeServer, tmp_path: Path) -> None:
    output = fake.storage / "1-a.out"
    output.write_text("late")
    with HttpFake(fake) as http:
        fake.add(make_assignment(1, "true")).gone = True
        grant = fake.connection().register(_registration())
        fake.jobs[1].pilot_id = grant.pilot_id
        left = WorkDir(tmp_path / "work")
        left.spool.save_token(grant.pilot_id, grant.token)
        entry = SpooledReport(
            server=http.url,
            pilot_id=grant.pilot_id,
            job_id=1,
            report=FinishRequest(state=JobState.FINISHED),
            uploaded=[UploadedOutput("out:a", f"file://{output}")],
        )
        left.spool.put(entry)
        left.close()
        with running(fake, tmp_path / "work"):
            wait_until(lambda: not output.exists(), "the late output is removed")


# ---------------------------------------------------------------- the command, as a process


@contextmanager
def command(http: HttpFake, work: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    secret = work.parent / "secret"
    if not secret.exists():
        secret.touch(0o600)
        secret.write_text(SECRET)
    code = "from common.cli.main import main; main(prog_name='pilotage')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "pilot", "run", "--server", http.url, "--work-dir", str(work), *options],
        cwd=ROOT,
        env={**os.environ, "PILOTAGE_PILOT_WORKER": "worker-mark", "PILOTAGE_PILOT_SECRET_FILE": str(secret)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read the pilot's log up to a line with ``text``."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the pilot ended without saying {text!r}")


def test_the_command_ends_on_sigterm_with_a_report(fake: FakeServer, tmp_path: Path) -> None:
    with HttpFake(fake) as http:
        fake.add(make_assignment(1, "exec sleep 60"))
        with command(http, tmp_path / "work") as process:
            read_until(process, "job 1: running")
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=180)
            assert process.returncode == ExitCode.STOPPED, log
        assert fake.report_of(1).error_code == ErrorCode.SIGTERM
        assert "farewell: ended by SIGTERM" in (tmp_path / "work" / "pilot.log").read_text()


@pytest.mark.parametrize("phase", ["staging_in", "running", "collecting", "recording", "uploading", "confirming"])
def test_kill_9_and_a_restart_leave_nothing_behind(fake: FakeServer, tmp_path: Path, phase: str) -> None:
    with HttpFake(fake) as http:
        mark = tmp_path / "alive"
        fake.add(make_assignment(1, f"touch {mark}; sleep 1; touch a.out", outputs=[OutputPattern("*.out")]))
        with command(http, tmp_path / "work") as process:
            read_until(process, f"job 1: {phase}")
            process.kill()
            process.wait()
        wait_until(lambda: not _processes_in(tmp_path / "work"), "no process of the payload is left")
        fake.add(make_assignment(2, "true"))
        with command(http, tmp_path / "work", "--max-jobs", "1") as process:
            _, log = process.communicate(timeout=180)
            assert process.returncode == 0, log
        assert fake.report_of(2).state is JobState.FINISHED
        assert len(fake.pilots) == 1, "the nonce makes it the same pilot"
        assert list((tmp_path / "work" / "jobs").iterdir()) == []
        assert list((tmp_path / "work" / "spool").iterdir()) == []


def test_a_batch_job_leaves_nothing_on_its_node(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTAGE_PILOT_REMOVE_WORK_DIR", "true")
    with HttpFake(fake) as http:
        fake.add(make_assignment(1, "true"))
        with command(http, tmp_path / "work", "--max-jobs", "1") as process:
            _, log = process.communicate(timeout=180)
            assert process.returncode == 0, log
    assert fake.report_of(1).state is JobState.FINISHED
    assert not (tmp_path / "work").exists()


def test_a_folder_in_which_a_report_waits_stays(tmp_path: Path) -> None:
    left = WorkDir(tmp_path / "work")
    report = FinishRequest(state=JobState.FINISHED)
    left.spool.put(SpooledReport(server="http://server", pilot_id=1, job_id=1, report=report))
    left.remove()
    left.close()
    assert [entry.job_id for entry in WorkDir(tmp_path / "work").spool.reports()] == [1]


def _processes_in(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and str((path / "cwd").readlink()).startswith(str(folder)):
                found.append(path.name)
        except OSError:
            continue
    return found


def test_the_command_needs_to_know_its_worker(tmp_path: Path) -> None:
    code = "from common.cli.main import main; main(prog_name='pilotage')"
    done = subprocess.run(
        [sys.executable, "-c", code, "pilot", "run", "--server", "http://127.0.0.1:1"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == ExitCode.WRONG_USAGE
    assert "--worker MARK" in done.stderr


def test_a_sandbox_is_there_when_the_payload_starts_and_is_no_output(fake: FakeServer, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in (("tool.sh", "#!/bin/sh\necho from the sandbox\n"), ("old.txt", "not mine")):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o755
            archive.addfile(info, io.BytesIO(text.encode()))
    content = stream.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    fake.sandboxes[sha256] = content
    job = make_assignment(
        1,
        "./tool.sh > new.txt && cat $PILOTAGE_SECRET_TOKEN >> new.txt",
        outputs=[OutputPattern("*.txt")],
        sandbox=AssignedSandbox(sha256, len(content)),
        secrets={"token": "xyzzy\n"},
    )
    fake.add(job)
    with running(fake, tmp_path / "work"):
        report = fake.report_of(1)
    assert report.state is JobState.FINISHED, report
    names = {output.did for output in report.outputs}
    assert any("new.txt" in name for name in names) and not any("old.txt" in name for name in names)
    stored = next(Path(output.url.removeprefix("file://")) for output in report.outputs if "new.txt" in output.did)
    assert stored.read_text() == "from the sandbox\nxyzzy\n"
    assert fake.logs == {}


def test_the_log_of_a_failed_job_is_left_with_the_server_without_its_secrets(fake: FakeServer, tmp_path: Path) -> None:
    fake.add(make_assignment(1, "echo seen >&2; exit 3", secrets={"token": "xyzzy-secret"}))
    with running(fake, tmp_path / "work"):
        assert fake.report_of(1).state is JobState.FAILED
        fake.wait_for(lambda: fake.logs, "the log")
    with tarfile.open(fileobj=io.BytesIO(fake.logs[1])) as archive:
        texts = {name: archive.extractfile(name) for name in archive.getnames()}
        found = {name: stream.read() for name, stream in texts.items() if stream is not None}
    assert any(name.endswith("stderr") and b"seen" in text for name, text in found.items())
    assert not any(b"xyzzy-secret" in text for text in found.values())


def test_a_sandbox_that_is_gone_fails_the_job_with_words(fake: FakeServer, tmp_path: Path) -> None:
    fake.add(make_assignment(1, "true", sandbox=AssignedSandbox("a" * 64, 5)))
    with running(fake, tmp_path / "work"):
        report = fake.report_of(1)
    assert (report.state, report.error_code) == (JobState.FAILED, ErrorCode.STAGE_IN_FAILED)
    assert "the sandbox cannot be fetched" in report.error_detail
