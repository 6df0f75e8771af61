"""Processes before, beside and after a payload: their order, what their failures mean, and that nothing outlives them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Optional

import pytest

from common.errors import ErrorCode
from common.wire import ProcessFailure, ProcessWhen, SideProcess
from pilot.payload import JobFolder, PayloadDefinition, prepare_payload
from pilot.supervised import PayloadEnd, PayloadStarted, SupervisedProcess
from pilot.supervisor import SIDE_GRACE_S

HOST = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.create(tmp_path, "1")


def side(when: str, script: str, on_failure: str = "fail", timeout_s: int = 0) -> SideProcess:
    return SideProcess(
        command=["sh", "-c", script],
        when=ProcessWhen(when),
        on_failure=ProcessFailure(on_failure),
        timeout_s=timeout_s,
    )


def run(folder: JobFolder, payload: str, *sides: SideProcess, events: Optional[list[Any]] = None) -> PayloadEnd:
    definition = PayloadDefinition(
        job_id="1", task_id="2", command=["sh", "-c", payload], processes=list(sides), counters=[7]
    )
    spec = prepare_payload(folder, definition, HOST)
    return SupervisedProcess.start(spec, (events if events is not None else []).append).wait(120)


def said(folder: JobFolder) -> list[str]:
    path = folder.work / "order"
    return path.read_text().split() if path.exists() else []


def test_they_run_in_order_in_the_payloads_folder_and_environment(folder: JobFolder) -> None:
    end = run(
        folder,
        "echo payload >> order; exit 3",
        side("after", "echo after-$PILOTAGE_EXIT_CODE >> order"),
        side("before", "echo first-$PILOTAGE_JOB_ID >> order"),
        side("before", "echo second >> order; echo to stdout; echo to stderr >&2"),
        side("after", "echo last >> order"),
    )
    assert said(folder) == ["first-1", "second", "payload", "after-3", "last"]
    assert (end.error, end.exit_code) == (ErrorCode.PAYLOAD_FAILED, 3)
    assert [each.label for each in end.sides] == ["before-1", "before-2", "after-1", "after-2"]
    assert folder.process_log("before-2", "stdout").read_text() == "to stdout\n"
    assert folder.process_log("before-2", "stderr").read_text() == "to stderr\n"
    assert folder.stdout.read_text() == ""


def test_placeholders_are_filled_in(folder: JobFolder) -> None:
    process = SideProcess(command=["sh", "-c", 'echo "$@" > seen', "sh", "{counters}"], when=ProcessWhen.BEFORE)
    assert run(folder, "true", process).ok
    assert (folder.work / "seen").read_text() == "7\n"


@pytest.mark.parametrize(
    ("when", "code"), [("before", ErrorCode.PREPROCESS_FAILED), ("after", ErrorCode.POSTPROCESS_FAILED)]
)
def test_a_failure_before_or_after_fails_the_job(folder: JobFolder, when: str, code: ErrorCode) -> None:
    end = run(folder, "echo payload >> order", side(when, "exit 4"), side("after", "echo never >> order"))
    assert end.error is code and end.detail == f"the process {when}-1 ended with exit code 4"
    assert said(folder) == ([] if when == "before" else ["payload"])
    assert end.exit_code == (None if when == "before" else 0), "the payload's own exit code is kept apart"


def test_a_failure_that_is_the_sites_blames_no_unit(folder: JobFolder) -> None:
    end = run(folder, "true", side("before", "exit 1", "site"))
    assert end.error is ErrorCode.SITE_PROCESS_FAILED


def test_an_ignored_failure_changes_nothing(folder: JobFolder) -> None:
    until_gone = "while [ ! -s pid ]; do sleep 0.02; done; while kill -0 $(cat pid); do sleep 0.02; done 2>/dev/null"
    end = run(
        folder,
        f"{until_gone}; echo payload >> order",
        side("before", "exit 1", "ignore"),
        side("beside", "echo $$ > pid; exit 1", "ignore"),
    )
    assert end.ok and said(folder) == ["payload"]
    assert [each.failed for each in end.sides] == [True, True]


def test_one_that_cannot_be_started_has_failed(folder: JobFolder) -> None:
    end = run(folder, "true", SideProcess(command=["/no/such/program"], when=ProcessWhen.BEFORE))
    assert end.error is ErrorCode.PREPROCESS_FAILED and "could not be started" in end.detail


def test_one_beside_is_told_to_end_with_the_payload_and_may_tidy_up(folder: JobFolder) -> None:
    tidy = "trap 'echo tidied >> order; exit 9' TERM; echo beside >> order; while :; do sleep 0.05; done"
    wait = "while ! grep -q beside order 2>/dev/null; do sleep 0.02; done; echo payload >> order"
    end = run(folder, wait, side("beside", tidy), side("after", "echo after >> order"))
    assert end.ok and said(folder) == ["beside", "payload", "tidied", "after"]
    assert end.sides[0].exit_code == 9 and not end.sides[0].failed


def test_one_beside_that_ignores_being_told_to_end_is_killed_after_the_grace(folder: JobFolder) -> None:
    began = time.monotonic()
    deaf = "trap '' TERM; touch up; while :; do sleep 0.1; done"
    end = run(folder, "while [ ! -e up ]; do sleep 0.02; done", side("beside", deaf), side("after", "touch ran"))
    assert SIDE_GRACE_S <= time.monotonic() - began < SIDE_GRACE_S + 60
    assert end.ok and end.sides[0].signal == "SIGKILL" and not end.sides[0].failed
    assert (folder.work / "ran").exists()


def test_one_beside_that_ends_well_early_is_fine(folder: JobFolder) -> None:
    assert run(folder, "sleep 0.2", side("beside", "true")).ok


def test_one_beside_that_fails_ends_the_payload(folder: JobFolder) -> None:
    began = time.monotonic()
    end = run(folder, "sleep 60", side("beside", "exit 5"), side("after", "echo never >> order"))
    assert time.monotonic() - began < 50
    assert end.error is ErrorCode.COPROCESS_FAILED and end.detail == "the process beside-1 ended with exit code 5"
    assert said(folder) == []


def test_a_time_limit_ends_only_that_process(folder: JobFolder) -> None:
    end = run(folder, "echo payload >> order", side("before", "sleep 60 & wait", "ignore", timeout_s=1))
    assert end.ok and said(folder) == ["payload"]
    assert end.sides[0].timed_out and end.sides[0].words == "ran out of its time and was ended by SIGTERM"


def test_a_kill_ends_everything_and_nothing_new_begins(folder: JobFolder) -> None:
    definition = PayloadDefinition(
        job_id="1",
        task_id="2",
        command=["sh", "-c", "echo payload >> order"],
        processes=[side("before", "echo $$ > pid; sleep 60"), side("after", "echo never >> order")],
    )
    process = SupervisedProcess.start(prepare_payload(folder, definition, HOST))
    assert process.wait_started(10)
    process.kill("the test", 1.0)
    end = process.wait(120)
    assert end.killed == "the test" and said(folder) == []
    assert not end.ok


def test_a_daemon_of_a_process_before_lives_until_the_end_and_no_longer(folder: JobFolder) -> None:
    daemon = "setsid sh -c 'echo $$ > pid; exec sleep 60' & while [ ! -s pid ]; do sleep 0.02; done"
    end = run(folder, "kill -0 $(cat pid) && echo alive >> order", side("before", daemon), side("after", "true"))
    assert end.ok and said(folder) == ["alive"]
    pid = int((folder.work / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_payload_counts_as_running_from_the_first_process_on(folder: JobFolder) -> None:
    events: list[Any] = []
    run(folder, "true", side("before", "true"), events=events)
    assert [type(event) for event in events] == [PayloadStarted, PayloadEnd]


def test_a_payload_that_cannot_be_executed_leaves_no_daemon_behind(folder: JobFolder) -> None:
    daemon = "setsid sh -c 'echo $$ > pid; exec sleep 60' & while [ ! -s pid ]; do sleep 0.02; done"
    definition = PayloadDefinition(
        job_id="1", task_id="2", command=["/no/such/program"], processes=[side("before", daemon)]
    )
    end = SupervisedProcess.start(prepare_payload(folder, definition, HOST)).wait(120)
    assert end.error is ErrorCode.BAD_JOBSCRIPT
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder.work / "pid").read_text()), 0)
