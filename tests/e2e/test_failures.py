"""What goes wrong, with the real programs: every failure ends where DESIGN says, with its number, and nothing is left.

One system serves all tests of this module, so that each takes a second or two; whatever a test leaves is killed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode
from common.http import ProblemError
from tests.e2e.looks import (
    LONG_S,
    NOTHING,
    QUICK_S,
    bad_replicas,
    described,
    file_input,
    log_text,
    only_job,
    only_unit,
)
from tests.e2e.system import System
from tests.services.xrootd import XrootdServer

# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    "damage, code",
    [("missing", ErrorCode.NO_SUCH_FILE), ("damaged", ErrorCode.GET_ADLER32_MISMATCH)],
)
def test_next_replica_is_tried_and_the_bad_one_reported(system: System, damage: str, code: ErrorCode) -> None:
    near, far = system.storage(f"near-{damage}"), system.storage(f"far-{damage}", site="there", distance=30)
    content, name = b"what was measured", "next.dat"
    if damage == "damaged":
        (near / name).write_bytes(b"what was mea5ured")
    (far / name).write_bytes(content)
    file = described(name, content, near.name, far.name)
    task = system.task(
        input=file_input(file), jobscript='#!/bin/sh\ncat $(cat "$PILOTAGE_INPUT_FILES")\necho > out.txt\n'
    )
    system.wait_task(task, "done", QUICK_S)
    job = only_job(system, task)
    assert content.decode() in log_text(system, task)
    assert job.error_code is None
    assert bad_replicas(system, task) == [(f"test:{name}", near.name, int(code))]
    assert only_unit(system, task).other_failures == 0
    system.assert_sums(task, 1)


@pytest.mark.parametrize(
    "damage, code",
    [("missing", ErrorCode.NO_SUCH_FILE), ("damaged", ErrorCode.GET_ADLER32_MISMATCH)],
)
def test_unit_without_a_good_replica_is_lost_and_the_others_are_done(
    system: System, damage: str, code: ErrorCode
) -> None:
    one, two = system.storage(f"one-{damage}"), system.storage(f"two-{damage}")
    good, bad = b"good", b"bad!"
    (one / "good.dat").write_bytes(good)
    if damage == "damaged":
        for folder in (one, two):
            (folder / "bad.dat").write_bytes(b"b4d!")
    files = [described("good.dat", good, one.name), described("bad.dat", bad, one.name, two.name)]
    task = system.task(input=file_input(*files), jobscript=NOTHING)
    system.wait_task(task, "finished", QUICK_S)
    units = {unit.did: unit for unit in system.units(task)}
    assert units["test:good.dat"].state == "done"
    lost = units["test:bad.dat"]
    assert (lost.state, lost.error_code, lost.payload_failures) == ("lost", int(code), 0)
    assert sorted(bad_replicas(system, task)) == [("test:bad.dat", name.name, int(code)) for name in (one, two)]
    failed = [job for job in system.jobs(task) if job.state == "failed"]
    assert [job.error_code for job in failed] == [int(code)]
    system.assert_sums(task, 2)


def test_common_input_that_is_missing_fails_the_job_as_the_sites_fault(system: System) -> None:
    system.storage("calibrations")
    missing = described("calibration.dat", b"calibration", "calibrations")
    task = system.task(common_input=[missing], jobscript=NOTHING)
    failed = system.wait_jobs(task, "failed", deadline=QUICK_S)
    assert failed[0].error_code == ErrorCode.NO_SUCH_FILE
    unit = only_unit(system, task)
    assert unit.state != "lost" and unit.payload_failures == 0 and unit.other_failures >= 1


def test_real_xrootd_that_is_down_costs_a_site_fault_and_succeeds_when_it_is_back(
    system: System, xrootd: XrootdServer, tmp_path: Path
) -> None:
    content = os.urandom(10_000)
    (tmp_path / "in.dat").write_bytes(content)
    xrootd.put(tmp_path / "in.dat", "/failures/in.dat")
    system.storage("xrd", f"{xrootd.url}/failures")
    with xrootd.outage():
        task = system.task(input=file_input(described("in.dat", content, "xrd")), jobscript=NOTHING)
        failed = system.wait_jobs(task, "failed", deadline=QUICK_S)[0]
        unit = only_unit(system, task)
    assert failed.error_code in (ErrorCode.STAGE_IN_FAILED, ErrorCode.REPLICA_NOT_FOUND)
    assert "xrd" in failed.error_detail
    assert unit.state in ("ready", "reserved")
    assert unit.other_failures >= 1 and unit.payload_failures == 0
    system.wait_task(task, "done", QUICK_S)
    assert bad_replicas(system, task) == []
    system.assert_sums(task, 1)


# ---------------------------------------------------------------- the payload


def test_payload_that_fails_uses_up_its_attempts(system: System) -> None:
    task = system.task(
        jobscript="#!/bin/sh\necho to-stdout\necho to-stderr >&2\necho x > out.txt\nexit 3\n",
        outputs=[{"pattern": "out.txt", "storage": "disk"}],
        max_attempts=2,
    )
    system.wait_task(task, "failed", QUICK_S)
    unit = only_unit(system, task)
    assert (unit.state, unit.error_code, unit.payload_failures) == ("failed", ErrorCode.PAYLOAD_FAILED, 2)
    jobs = system.jobs(task)
    assert [(job.state, job.exit_code, job.error_code) for job in jobs] == [("failed", 3, ErrorCode.PAYLOAD_FAILED)] * 2
    for job in jobs:
        assert "to-stdout" in job.log_tail and "to-stderr" in job.log_tail
        assert "to-stdout" in log_text(system, task, job.id) and "to-stderr" in log_text(system, task, job.id)
        assert job.log_did in [output.did for output in system.outputs(task, "log")]
    assert system.outputs(task) == []
    assert not list(system.folder.glob("storages/disk/**/*out.txt"))
    system.assert_sums(task, 1)


def test_retry_gives_a_failed_unit_new_attempts(system: System, gate: Path) -> None:
    task = system.task(jobscript=f"#!/bin/sh\n[ -e {gate} ]\n", max_attempts=1)
    system.wait_task(task, "failed", QUICK_S)
    gate.touch()
    system.command(task, "retry")
    system.wait_task(task, "done", QUICK_S)
    assert [job.state for job in system.jobs(task)] == ["failed", "finished"]


@pytest.mark.parametrize(
    "name, code", [("SEGV", ErrorCode.SIGSEGV), ("KILL", ErrorCode.KILL_SIGNAL), ("BUS", ErrorCode.SIGBUS)]
)
def test_payload_ended_by_a_signal_fails_with_the_signals_number(system: System, name: str, code: ErrorCode) -> None:
    task = system.task(jobscript=f"#!/bin/sh\nkill -{name} $$\n", max_attempts=1)
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert (job.error_code, job.exit_code) == (code, None)
    assert f"SIG{name}" in job.error_detail
    assert only_unit(system, task).payload_failures == 1


@pytest.mark.parametrize(
    "script, code, word",
    [
        (NOTHING, ErrorCode.MISSING_OUTPUT, "out.txt"),
        ("#!/bin/sh\nln -s /etc/hostname out.txt\n", ErrorCode.OUTPUT_NOT_REGULAR, "out.txt"),
        ("#!/bin/sh\nmkdir out.txt\n", ErrorCode.OUTPUT_NOT_REGULAR, "out.txt"),
        ("#!/no/such/interpreter\n", ErrorCode.BAD_JOBSCRIPT, "shebang"),
    ],
    ids=["missing", "a link", "a folder", "no interpreter"],
)
def test_output_that_cannot_be_had_fails_the_job_and_uploads_nothing(
    system: System, script: str, code: ErrorCode, word: str
) -> None:
    task = system.task(jobscript=script, outputs=[{"pattern": "out.txt", "storage": "disk"}], max_attempts=1)
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert (job.state, job.error_code) == ("failed", code)
    assert word in job.error_detail
    assert system.outputs(task) == []
    assert len(system.outputs(task, "log")) == 1
    assert not list(system.folder.glob(f"storages/disk/test/{task}/**/*out.txt"))


def test_payload_that_fills_its_disk_is_killed(system: System) -> None:
    task = system.task(
        jobscript=f"#!/bin/sh\nhead -c 40000000 /dev/zero > big\nsleep {LONG_S}\n",
        requirements={"cores": 1, "memory_mb": 500, "disk_mb": 10},
        max_attempts=1,
    )
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert job.error_code == ErrorCode.WORK_DIR_TOO_LARGE
    assert "allowed 10" in job.error_detail
    assert job.metrics["work_dir_mb"] > 10


def test_payload_that_takes_too_much_memory_is_killed(system: System) -> None:
    hungry = f"import time; data = bytearray(300_000_000); time.sleep({LONG_S})"
    task = system.task(
        command=[sys.executable, "-c", hungry],
        requirements={"cores": 1, "memory_mb": 100, "disk_mb": 50},
        max_attempts=1,
    )
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert job.error_code == ErrorCode.MEMORY_EXCEEDED
    assert job.metrics["max_rss_mb"] > 100  # it may be killed before it has all that it wants
    assert not system.payloads("bytearray(300_000_000)")


@pytest.mark.usefixtures("apptainer")
def test_real_apptainer_image_that_does_not_exist_fails_at_once(system: System, tmp_path: Path) -> None:
    task = system.task(jobscript=NOTHING, image=str(tmp_path / "nothing.sif"))
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert job.error_code == ErrorCode.IMAGE_NOT_FOUND
    assert "nothing.sif" in job.error_detail


def test_storage_that_takes_no_files_keeps_its_tasks_waiting(system: System) -> None:
    system.storage("closed")
    closed = {"name": "closed", "site": "here", "endpoints": [{"url": system.storages["closed"]}]}
    system.put("/v1/storages/closed", {**closed, "status": "offline"})
    task = system.task(
        jobscript="#!/bin/sh\necho x > out.txt\n", outputs=[{"pattern": "out.txt", "storage": "closed"}], max_attempts=1
    )
    system.wait_task(task, "ready", QUICK_S)
    reason = system.cli("why", "--queue", "local", "--json")
    assert "output_storage" in reason.stdout
    system.put("/v1/storages/closed", closed)
    system.wait_task(task, "done", QUICK_S)
    unit = only_unit(system, task)
    assert (unit.payload_failures, unit.other_failures) == (0, 0)


def test_storage_that_closes_while_the_payload_runs_costs_no_attempt(system: System, gate: Path) -> None:
    system.storage("closing")
    closing = {"name": "closing", "site": "here", "endpoints": [{"url": system.storages["closing"]}]}
    task = system.task(
        jobscript=f"#!/bin/sh\necho kept-all-the-same\nwhile [ ! -e {gate} ]; do sleep 0.05; done\necho x > out.txt\n",
        outputs=[{"pattern": "out.txt", "storage": "closing"}],
        max_attempts=1,
    )
    system.wait_jobs(task, "running", deadline=QUICK_S)
    system.put("/v1/storages/closing", {**closing, "status": "offline"})
    time.sleep(3.0)  # the server's look at the world may be a second old, and more where it is busy
    gate.touch()
    failed = system.wait_jobs(task, "failed", deadline=QUICK_S)[0]
    assert failed.error_code == ErrorCode.NO_STORAGE
    assert "closing" in failed.error_detail
    assert "kept-all-the-same" in log_text(system, task, failed.id)
    system.put("/v1/storages/closing", closing)
    system.wait_task(task, "done", QUICK_S)
    unit = only_unit(system, task)
    assert unit.payload_failures == 0 and unit.other_failures >= 1
    assert len(system.outputs(task)) == 1


# ---------------------------------------------------------------- refused at submission


@pytest.mark.parametrize(
    "change, path",
    [
        ({"jobscript": "echo no shebang\n"}, "$.stages[0].jobscript"),
        ({"outputs": [{"pattern": "*", "storage": "nowhere"}]}, "$.stages[0].outputs[0].storage"),
        ({"input": file_input(described("a", b"", "nowhere"))}, "$.stages[0].input.files[0].replicas[0].storage"),
        ({"input": {"kind": "files", "files": []}}, "$.stages[0].input.files"),
        ({"input": file_input(*[described("a", b"", "disk")] * 2)}, "$.stages[0].input.files[1].did"),
        ({"input": {"kind": "stage", "stage": "other"}}, "$.stages[0].input.stage"),
        ({"jobscrip": NOTHING}, "$.stages[0]"),
        ({"files_per_job": "two"}, "$.stages[0].files_per_job"),
    ],
    ids=["shebang", "output storage", "replica storage", "no files", "same DID", "no stage", "field", "type"],
)
def test_submission_that_is_wrong_is_refused_and_nothing_of_it_kept(
    system: System, change: dict[str, Any], path: str
) -> None:
    before = [workflow.id for workflow in system.calls.workflows(1000)]
    with pytest.raises(ProblemError) as refused:
        system.task(**{"jobscript": NOTHING, **change})
    assert refused.value.status == 400
    assert path in [error.path for error in refused.value.problem.errors], refused.value.problem
    assert all(error.message for error in refused.value.problem.errors)
    assert [workflow.id for workflow in system.calls.workflows(1000)] == before
